"""Writes `classify/` among the golden files, run by generate.py: classifiers of the real transformers and PEFT.

    classify.py load MODEL ADAPTER BATCH.json OUT.safetensors
                          opens MODEL as a classifier, with an adapter that lowrank wrote (`-` for none), and writes `logits` and
                          `logits64` of the first batch; exits 1 if PEFT would miss or ignore a tensor

The folder holds

    models/bert/          a BERT of two layers without a head; LLaMA's base is models/plain
    <case>/               one adapter over one of them, `task_type` "SEQ_CLS":
        adapter_init/     the adapter that everything below starts from, saved by PEFT
        batch.json        ten batches of three rows padded on the right, with the types of tokens and a label a row
        expected.safetensors
                          for batch 0 and the initial adapter: logits, logits64 [rows, classes]; merged_logits after
                          merge_and_unload
        steps.json        as generate.py has it; the loss is the mean of the rows' losses
        adapter_final/    the adapter after the ten steps in f32, saved by PEFT
"""

import argparse
import copy
import json
import os
import sys
import warnings
from pathlib import Path

if os.environ.get("PYTHONHASHSEED") != "0":
    # PEFT writes sets as lists in the order of their hashes.
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

sys.dont_write_bytecode = True

import torch
import transformers
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

import load_back
import reference

LLAMA, BERT = "models/plain", "classify/models/bert"

CASES = {
    "llama": (LLAMA, 3, LoraConfig, dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])),
    "llama_regression": (LLAMA, 1, LoraConfig, dict(r=2, lora_alpha=5, target_modules="all-linear")),
    "bert": (BERT, 3, LoraConfig, dict(r=4, lora_alpha=6, target_modules=["query", "value"])),
    "bert_two": (BERT, 2, LoHaConfig, dict(r=2, alpha=5, target_modules=["query", "key"])),
    "bert_regression": (BERT, 1, LoraConfig, dict(r=3, lora_alpha=7, target_modules=["dense"], bias="lora_only")),
}


def make_bert(seed):
    """A BERT whose every weight is random and none is zero."""
    config = BertConfig(
        vocab_size=59,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=52,
        max_position_embeddings=40,
        type_vocab_size=2,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    model = BertModel(config)
    reference.randomise_weights(model, seed)
    model.save_pretrained(BERT)


def make_batches(vocabulary, classes, seed):
    """A batch a step, of three rows: one text, or a pair of them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return torch.randint(low, high, (), generator=generator).item()

    def batch():
        rows = []
        for _ in range(3):
            first, second = draw(3, 9), draw(0, 7)
            label = torch.randn((), generator=generator).item() if classes == 1 else draw(0, classes)
            rows.append(([draw(3, vocabulary) for _ in range(first + second)], [0] * first + [1] * second, label))
        width = max(len(ids) for ids, _, _ in rows)
        padded = lambda values: values + [0] * (width - len(values))
        return {
            "input_ids": [padded(ids) for ids, _, _ in rows],
            "types": [padded(types) for _, types, _ in rows],
            "lengths": [len(ids) for ids, _, _ in rows],
            "labels": [round(label, 3) for _, _, label in rows],
        }

    return [batch() for _ in range(reference.STEPS)]


def logits_of(model, batch):
    """Logits [rows, classes]."""
    ids = torch.tensor(batch["input_ids"])
    mask = torch.arange(ids.shape[1])[None, :] < torch.tensor(batch["lengths"])[:, None]
    types = {"token_type_ids": torch.tensor(batch["types"])} if model.config.model_type == "bert" else {}
    return model(input_ids=ids, attention_mask=mask.long(), **types).logits


def loss_of(model, batch):
    """The mean over rows of the cross-entropy, or of the squared error."""
    logits = logits_of(model, batch)
    if logits.shape[1] == 1:
        values = torch.tensor(batch["labels"], dtype=logits.dtype)
        return (logits[:, 0] - values).square().mean()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(batch["labels"]))


def make_case(name, seed):
    base, classes, method, config = CASES[name]
    folder = Path("classify") / name
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes, attn_implementation="sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, method(task_type="SEQ_CLS", **config))
    reference.randomise(model, seed)
    with torch.no_grad():
        for key, parameter in reference.trained(model).items():
            if "score.weight" in key or "classifier.weight" in key:
                generator = torch.Generator().manual_seed(seed)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
    model.eval()
    exact = copy.deepcopy(model).double()
    reference.save_adapter(model, folder / "adapter_init")
    batches = make_batches(model.config.vocab_size, classes, seed)
    reference.write_json(folder / "batch.json", batches)
    with torch.no_grad():
        expected = {
            "logits": logits_of(model, batches[0]),
            "logits64": logits_of(exact, batches[0]),
            "merged_logits": logits_of(copy.deepcopy(model).merge_and_unload(), batches[0]),
        }
    reference.write_tensors(folder / "expected.safetensors", expected)
    single = reference.train(model, batches, loss_of)
    double = reference.train(exact, batches, loss_of)
    reference.write_json(folder / "steps.json", reference.recipe() | {"f32": single, "f64": double}, indent=1)
    reference.save_adapter(model, folder / "adapter_final")
    error = (expected["logits"] - expected["logits64"]).abs().max().item()
    print(f"{name:18} logits {error:.1e}  loss {double['loss'][0]:.3f}..{double['loss'][-1]:.3f}")


def write():
    make_bert(500)
    for seed, name in enumerate(CASES):
        make_case(name, 600 + seed)


def load(arguments):
    torch.set_num_threads(1)
    reference.make_double_exact()
    transformers.utils.logging.set_verbosity_error()
    batch = json.loads(Path(arguments.batch).read_text())[0]
    options = {}
    if arguments.adapter != "-":
        tensors = load_back.load_file(Path(arguments.adapter) / "adapter_model.safetensors")
        heads = [value for key, value in tensors.items() if key.endswith(("score.weight", "classifier.weight"))]
        options["num_labels"] = heads[0].shape[0]
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=torch.float32, **options)
    if arguments.adapter != "-":
        problems = load_back.differences(arguments.adapter, copy.deepcopy(model))
        if problems:
            sys.exit("\n".join(problems))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing adapter keys|Unexpected keyword arguments).*")
            model = PeftModel.from_pretrained(model, arguments.adapter)
    model = model.eval()
    with torch.no_grad():
        logits = logits_of(model, batch)
        logits64 = logits_of(model.double(), batch)
    reference.write_tensors(arguments.out, {"logits": logits, "logits64": logits64})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    loading = parser.add_subparsers(required=True).add_parser("load")
    for name in ("model", "adapter", "batch", "out"):
        loading.add_argument(name)
    load(parser.parse_args())


if __name__ == "__main__":
    main()
