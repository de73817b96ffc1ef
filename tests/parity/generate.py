"""Writes the golden files of the parity tests with the real transformers and PEFT.

    generate.py           rewrites tests/parity/golden
    generate.py --check   writes them elsewhere and compares: names and integers exactly, numbers within 1e-5

Everything is random and small; nothing is downloaded. `golden/` holds

    versions.json         what made the files
    targets.json          which modules PEFT adapts, for specifications that are easy to get wrong
    models/<model>/       base models as save_pretrained writes them
    classify/             classifiers: see classify.py
    adalora/              a whole schedule of AdaLoRA: see adalora.py
    optimizers/           ten steps of other optimisers than AdamW: see optimizers.py
    cases/<case>/         one adapter configuration over one of them:
        adapter_init/     the adapter that everything below starts from, saved by PEFT
        batch.json        ten batches of three right-padded rows; labels[i] supervises the prediction of token i
        expected.safetensors
                          for batch 0 and the initial adapter: logits, logits64 [rows, tokens, vocabulary] (rows mean
                          nothing past their length); grad.<key>, grad64.<key> of the loss; after merge_and_unload
                          merged.<module>.weight (and .bias) of every module that the adapter changes, and merged_logits
        steps.json        ten steps of torch's AdamW: the recipe, losses and gradient norms in f32 and f64
        adapter_final/    the adapter after the ten steps in f32, saved by PEFT
        adapter_converted/
                          for starts that PEFT subtracts from the base: adapter_init as PEFT converts it to plain LoRA

`64` marks a run in f64 throughout; the rest is what PyTorch computes in f32 with one thread.
"""

import argparse
import copy
import json
import os
import platform
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

if os.environ.get("PYTHONHASHSEED") != "0":
    # PEFT writes sets as lists in the order of their hashes.
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

sys.dont_write_bytecode = True

import peft
import torch
import transformers
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import adalora
import classify
import optimizers
import reference
import targets

GOLDEN = Path(__file__).resolve().parent / "golden"

MODELS = {
    # Grouped queries, a head of its own, in three shards.
    "plain": (
        dict(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        ),
        "100KB",
    ),
    # Every bias, a tied head, scaled frequencies, heads that together are wider than the hidden state.
    "biased": (
        dict(
            vocab_size=61,
            hidden_size=42,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=8,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
        ),
        "1GB",
    ),
}

CASES = {
    "lora": ("plain", dict(r=4, lora_alpha=6, target_modules="all-linear")),
    # Ranks and scales that differ by module; v_proj has a pattern for each, q_proj of layer 1 for the rank alone.
    "rslora_patterns": (
        "plain",
        dict(
            r=3,
            lora_alpha=5,
            use_rslora=True,
            target_modules=r"model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.(up|down)_proj)",
            rank_pattern={"layers.1.self_attn.q_proj": 5, r"^model\.layers\.2\..*down_proj": 2, "v_proj": 6},
            alpha_pattern={"v_proj": 7, r"layers\.[01]\.mlp\.down_proj": 11},
        ),
    ),
    "bias_all": ("biased", dict(r=5, lora_alpha=3, target_modules=["q_proj", "down_proj"], bias="all")),
    "bias_lora_only": ("biased", dict(r=5, lora_alpha=3, target_modules=["v_proj", "up_proj"], bias="lora_only")),
    # PEFT compares the ends of names, so that "norm" also means input_layernorm and post_attention_layernorm.
    "modules_to_save": (
        "plain",
        dict(r=2, lora_alpha=5, target_modules=["q_proj", "v_proj"], modules_to_save=["norm", "lm_head"]),
    ),
    # Embedding and head share a weight in the base. PEFT copies it once for each: from then on they are two
    # weights, trained and saved apart (it warns, and unties nothing in config.json).
    "modules_to_save_tied": (
        "biased",
        dict(r=3, lora_alpha=4, target_modules=["k_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "layers": (
        "plain",
        dict(
            r=4,
            lora_alpha=10,
            target_modules=["q_proj", "o_proj", "gate_proj"],
            exclude_modules=["o_proj"],
            layers_to_transform=[0, 2],
            layers_pattern="layers",
        ),
    ),
    "gaussian": (
        "biased",
        dict(r=6, lora_alpha=4, target_modules=["k_proj", "gate_proj"], init_lora_weights="gaussian"),
    ),
    # Over layers with a bias, which DoRA does not scale.
    "dora": ("biased", dict(r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "down_proj"], use_dora=True)),
    "dora_rslora_patterns": (
        "plain",
        dict(
            r=3,
            lora_alpha=5,
            use_dora=True,
            use_rslora=True,
            target_modules=["k_proj", "v_proj", "gate_proj"],
            rank_pattern={"layers.1.self_attn.k_proj": 5, "v_proj": 6},
            alpha_pattern={"v_proj": 7},
        ),
    ),
    # Saved unconverted: the files mean something over the base as it was before PEFT changed it, decomposed again.
    "pissa": (
        "plain",
        dict(
            r=4,
            lora_alpha=6,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"v_proj": 3},
            alpha_pattern={"down_proj": 7},
            init_lora_weights="pissa",
        ),
    ),
    "olora": (
        "biased",
        dict(r=5, lora_alpha=4, target_modules=["k_proj", "up_proj"], use_rslora=True, init_lora_weights="olora"),
    ),
    # Ranks that are small enough to be computed as a product of rank r^2, and some that are not (v_proj, one up_proj). PEFT
    # rounds alpha / r to f32 whatever the weights are; here nothing is lost by that.
    "loha": (
        "plain",
        dict(
            method=LoHaConfig,
            r=3,
            alpha=6,
            target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
            rank_pattern={"q_proj": 2, "v_proj": 4, "layers.1.mlp.up_proj": 6},
            alpha_pattern={"v_proj": 7},
        ),
    ),
    # The first factor whole; the second a product but for v_proj and down_proj of layer 0.
    "lokr": (
        "biased",
        dict(
            method=LoKrConfig,
            r=2,
            alpha=5,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"v_proj": 6, "layers.0.mlp.down_proj": 5},
            alpha_pattern={"v_proj": 7},
            modules_to_save=["norm"],
        ),
    ),
    # Sides divided by 8 where it divides them, so that the first factor is a product too.
    "lokr_both": (
        "plain",
        dict(
            method=LoKrConfig,
            r=2,
            alpha=3,
            target_modules=["q_proj", "k_proj", "gate_proj"],
            decompose_both=True,
            decompose_factor=8,
            init_weights="lycoris",
        ),
    ),
    # Ranks are taken after step 2 and fixed from step 8 on. The penalty is in the golden files of adalora.py.
    "adalora": (
        "biased",
        dict(
            method=AdaLoraConfig,
            init_r=5,
            target_r=2,
            lora_alpha=7,
            tinit=1,
            tfinal=2,
            deltaT=2,
            total_step=10,
            orth_reg_weight=0.0,
            target_modules=["q_proj", "v_proj", "down_proj"],
            bias="lora_only",
        ),
    ),
}

# Starts that PEFT subtracts from the base.
RESIDUAL = ("pissa", "olora")


def make_model(name, seed):
    """Writes a model whose every weight is random and none is zero."""
    config, shard = MODELS[name]
    model = LlamaForCausalLM(LlamaConfig(**config, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    reference.randomise_weights(model, seed)
    model.save_pretrained(f"models/{name}", max_shard_size=shard)


def make_batches(vocabulary, seed, steps=reference.STEPS):
    """A batch a step, of three rows: prompts without labels, answers with labels, some holes in the answers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return torch.randint(low, high, (), generator=generator).item()

    def row():
        prompt, answer = draw(2, 7), draw(3, 10)
        ids = [draw(3, vocabulary) for _ in range(prompt + answer)]
        labels = [-100] * prompt + ids[prompt:]
        if answer > 5:
            labels[prompt + draw(1, answer)] = -100
        return ids, labels

    return [reference.pad([row() for _ in range(3)]) for _ in range(steps)]


def subtract_exactly(model, base, init):
    """PEFT decomposes in f32, whatever the weights are. The run in f64 gets residuals that are decomposed in f64."""
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            weight, r, scale = base.get_submodule(path).weight.detach().double(), layer.r["default"], layer.scaling["default"]
            if init == "pissa":
                u, s, vh = torch.linalg.svd(weight, full_matrices=False)
                start = (u[:, :r] * s[:r]) @ vh[:r]
            else:
                q, upper = torch.linalg.qr(weight)
                start = scale * q[:, :r] @ upper[:r]
            layer.get_base_layer().weight.data = weight - start


def save_converted(model, initial, folder):
    """The adapter as plain LoRA over the base as it was, by PEFT itself. It attaches `initial` for that, so to a copy."""
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))
    (folder / "README.md").unlink()


def make_case(name, seed):
    base, config = CASES[name]
    config = dict(config)
    method = config.pop("method", LoraConfig)
    folder = Path("cases") / name
    model = AutoModelForCausalLM.from_pretrained(f"models/{base}", attn_implementation="sdpa")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, method(task_type="CAUSAL_LM", **config))
    init = config.get("init_lora_weights")
    with tempfile.TemporaryDirectory() as initial:
        initial = Path(initial) / "initial"
        model.save_pretrained(initial)
        reference.randomise(model, seed, fresh=init not in RESIDUAL)
        model.eval()
        if init in RESIDUAL:
            save_converted(model, initial, folder / "adapter_converted")
    exact = copy.deepcopy(model).double()
    if init in RESIDUAL:
        subtract_exactly(exact, AutoModelForCausalLM.from_pretrained(f"models/{base}"), init)
    reference.save_adapter(model, folder / "adapter_init")
    saved = set(load_file(folder / "adapter_init" / "adapter_model.safetensors"))
    assert saved == set(reference.trained(model)), saved ^ set(reference.trained(model))

    batches = make_batches(model.config.vocab_size, seed)
    reference.write_json(folder / "batch.json", batches)

    expected = {}
    for kind, run in (("", model), ("64", exact)):
        with torch.no_grad():
            expected[f"logits{kind}"] = reference.logits_of(run, batches[0])
        reference.loss_of(run, batches[0]).backward()
        for key, parameter in reference.trained(run).items():
            assert parameter.grad is not None, key
            expected[f"grad{kind}.{key}"] = parameter.grad.clone()
        run.zero_grad()
    changed = [n for n, m in model.base_model.model.named_modules() if isinstance(m, (BaseTunerLayer, ModulesToSaveWrapper))]
    merged = copy.deepcopy(model).merge_and_unload()
    for path in changed:
        for part, value in merged.get_submodule(path).named_parameters():
            expected[f"merged.{path}.{part}"] = value
    with torch.no_grad():
        expected["merged_logits"] = reference.logits_of(merged, batches[0])
    reference.write_tensors(folder / "expected.safetensors", expected)

    steps = reference.recipe() | {"f32": reference.train(model, batches), "f64": reference.train(exact, batches)}
    reference.write_json(folder / "steps.json", steps, indent=1)
    reference.save_adapter(model, folder / "adapter_final")
    report(name, expected, steps, reference.trained(model), reference.trained(exact), batches[0]["lengths"])


def report(name, expected, steps, final, final64, lengths):
    """Says how far f32 is from f64, that is how much of a tolerance the reference itself uses up."""
    error = max(
        (expected["logits"][row, :n] - expected["logits64"][row, :n]).abs().max().item() for row, n in enumerate(lengths)
    )
    loss = max(abs(a - b) / b for a, b in zip(steps["f32"]["loss"], steps["f64"]["loss"]))
    tensor = max(((final[k].double() - v).norm() / v.norm()).item() for k, v in final64.items())
    norms = steps["f64"]["grad_norm"]
    print(
        f"{name:22} logits {error:.1e}  losses {loss:.1e}  adapters {tensor:.1e}  "
        f"loss {steps['f64']['loss'][0]:.3f}..{steps['f64']['loss'][-1]:.3f}  norms {min(norms):.2f}..{max(norms):.2f}"
    )


def generate(golden):
    """Writes all golden files below an empty folder."""
    # PEFT records the path of the base model: a relative one reads the same everywhere.
    os.chdir(golden)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    reference.make_double_exact()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    reference.write_json(
        "versions.json",
        {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        indent=2,
    )
    for seed, name in enumerate(MODELS):
        make_model(name, 100 + seed)
    reference.write_json("targets.json", targets.table("models/plain"), indent=1)
    for seed, name in enumerate(CASES):
        make_case(name, 200 + seed)
    adalora.write("models/plain", make_batches(MODELS["plain"][0]["vocab_size"], 300, adalora.STEPS))
    optimizers.write()
    classify.write()
    size = sum(path.stat().st_size for path in golden.rglob("*") if path.is_file())
    print(f"{size / 2**20:.2f} MiB")
    assert size < 5e6


def same(old, new, where):
    """Compares two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        assert sorted(old) == sorted(new), f"{where}: keys {sorted(old)} and {sorted(new)}"
        for key in old:
            same(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        assert len(old) == len(new), f"{where}: lengths {len(old)} and {len(new)}"
        for i, pair in enumerate(zip(old, new)):
            same(*pair, f"{where}[{i}]")
    elif isinstance(old, float) and isinstance(new, float):
        assert abs(old - new) <= 1e-5 * max(1, abs(old)), f"{where}: {old} and {new}"
    else:
        assert old == new, f"{where}: {old!r} and {new!r}"


def compare(old, new):
    """Compares two golden folders file by file."""
    files = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files(old) == files(new), f"the files differ: {sorted(set(files(old)) ^ set(files(new)))}"
    for name in files(old):
        if name.endswith(".json"):
            same(*(json.loads((folder / name).read_text()) for folder in (old, new)), name)
        else:
            a, b = load_file(old / name), load_file(new / name)
            assert sorted(a) == sorted(b), f"{name}: the tensors differ"
            for key in a:
                assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype, f"{name}: {key}"
                distance = (a[key].double() - b[key].double()).norm() / max(1.0, a[key].double().norm())
                assert distance <= 1e-5, f"{name}: {key} differs by {distance:.1e}"
    print("the golden files are what the installed PEFT writes")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--check", action="store_true", help="compare with the files at hand, write none")
    check = arguments.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        os.chdir(GOLDEN.parent)
        if check:
            compare(GOLDEN, Path(folder))
        else:
            shutil.rmtree(GOLDEN, ignore_errors=True)
            shutil.copytree(folder, GOLDEN)


if __name__ == "__main__":
    main()
