"""What transformers and PEFT compute on SmolLM2-135M-Instruct.

Needs `cargo xtask fetch --only smollm2` and `cargo xtask peer-env`; run it with `.peer/bin/python`. The whole is too large
for the repository; `tests/parity/smollm2/` gets what a test needs to notice any difference:

    rows.jsonl, batch.json  as below
    expected.json           losses, the ten steps, versions, and which logits and which elements were kept
    expected.safetensors    logits64.<row> and logits32.<row> [tokens, kept columns], and final.<key> [kept elements]

Writes `target/parity/smollm2/`:

    rows.jsonl              ten {"input_ids", "labels"} rows of 2 to 200 tokens
    logits64.safetensors    logits.<row> [tokens, vocabulary] of a run in f64 throughout
    logits32.safetensors    the same of PyTorch in f32
    expected.json           the mean loss over all supervised tokens of the rows, in f64 and f32
    lora/                   train.jsonl (twenty {"input_ids", "labels"} rows, two a step, in file order), and as in
                            generate.py: adapter_init, batch.json, steps.json, adapter_final
"""

import copy
import json
import math
import os
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import peft
import reference
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "models/SmolLM2-135M-Instruct"
OUT = Path("target/parity/smollm2")
KEPT = Path("tests/parity/smollm2")
COLUMNS = 48
ELEMENTS = 24
LENGTHS = [2, 5, 9, 17, 33, 48, 64, 97, 128, 200]
MAX_LENGTH = 64

TEXT = """The tide pools along the northern shore fill twice a day. In 1874 a surveyor counted 3,512 of them and drew each one
on a map that is still kept in the harbour office. "Nobody asked me to," he wrote, "but somebody ought to know." Crabs,
anemones and small fish live there; so do starfish, which can open a mussel by pulling at it for hours. When the water is
10 °C colder than usual, most of them hide under the kelp. def area(r): return 3.14159 * r ** 2 is how a program would
estimate the size of a round pool, and naïve as that is, it errs by less than 7% on average. Visitors are asked to leave
the stones where they lie, to keep their dogs away, and to be back on the path before the sea returns. The path itself
climbs past an old lighthouse, crosses a field of barley, and ends at the railway station, from which one train an hour
goes south. It takes 2 hours and 45 minutes to reach the city, and the last one leaves at 21:05. """

QUESTIONS = [
    ("Which tool measures temperature", ["a ruler", "a thermometer", "a scale", "a compass"], 1),
    ("Which of these is a mammal", ["a trout", "a sparrow", "a bat", "a lizard"], 2),
    ("What do green plants take from the air to make sugar", ["carbon dioxide", "helium", "dust", "smoke"], 0),
    ("Which object is attracted by a magnet", ["a glass bead", "a wooden spoon", "a candle", "an iron nail"], 3),
    ("What causes day and night on Earth", ["clouds", "the rotation of Earth", "the Moon", "the tides"], 1),
]
PHRASES = ["Question: {}?\nAnswer:", "{}? The right answer is", "A pupil asks: {}?\nThe teacher says:", "Q: {}? A:"]


def evaluation_rows(tokenizer):
    """Rows of the wanted lengths, each beginning elsewhere in the text; the first third of each is not supervised."""
    ids = tokenizer(TEXT * 2, add_special_tokens=False).input_ids
    rows = []
    for i, length in enumerate(LENGTHS):
        row = ids[7 * i : 7 * i + length]
        rows.append((row, [-100] * (length // 3) + row[length // 3 :]))
    return rows


def training_rows(tokenizer, end):
    """Twenty questions with answers, of different lengths."""
    rows = []
    for i in range(2 * reference.STEPS):
        question, choices, answer = QUESTIONS[i % len(QUESTIONS)]
        prompt = PHRASES[(i // len(QUESTIONS)) % len(PHRASES)].format(question)
        if i % 3 == 0:
            prompt = "Choices: " + ", ".join(choices) + ".\n" + prompt
        rows.append(reference.tokenise(tokenizer, end, prompt, " " + choices[answer] + ".", MAX_LENGTH))
    return rows


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"input_ids": ids, "labels": labels}) + "\n" for ids, labels in rows))


def element(tensor, index):
    """A number in [-0.5, 0.5) that any language computes alike."""
    return ((index * 2654435761 + tensor * 2246822519 + 374761393) % 2**32 * 3266489917 % 2**32) / 2**32 - 0.5


def fill(model):
    """The initial adapter: tensors in the order of their names, elements in row-major order, of the size 1 / sqrt(columns)."""
    with torch.no_grad():
        for t, (name, parameter) in enumerate(sorted(reference.trained(model).items())):
            factor = (2.0 if "lora_A" in name else 0.2) / parameter.shape[1] ** 0.5
            values = [factor * element(t, i) for i in range(parameter.numel())]
            parameter.copy_(torch.tensor(values, dtype=torch.float64).reshape(parameter.shape))


def kept(size, count):
    """`count` places of `size`, spread by a step that shares no factor with it."""
    step = next(s for s in range(int(size * 0.618), size) if math.gcd(s, size) == 1)
    return [(i * step + 1) % size for i in range(min(count, size))]


def write_logits(rows):
    """Logits and losses of the base model."""
    losses, sample = {}, {}
    for name, dtype in (("64", torch.float64), ("32", torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, attn_implementation="sdpa").eval()
        logits, total, tokens = {}, 0.0, 0
        with torch.no_grad():
            for i, row in enumerate(rows):
                batch = reference.pad([row])
                count = sum(label != -100 for label in row[1][1:])
                logits[f"logits.{i}"] = reference.logits_of(model, batch)[0]
                total += reference.loss_of(model, batch).item() * count
                tokens += count
        reference.write_tensors(OUT / f"logits{name}.safetensors", logits)
        columns = kept(model.config.vocab_size, COLUMNS)
        sample |= {key.replace("logits", f"logits{name}"): value[:, columns] for key, value in logits.items()}
        losses[f"f{name}"] = total / tokens
    expected = {"loss": losses, "supervised_tokens": tokens}
    reference.write_json(OUT / "expected.json", expected, indent=1)
    return expected | {"columns": columns}, sample


def write_case(rows):
    """Ten steps of LoRA in f32 and f64."""
    folder = OUT / "lora"
    write_rows(folder / "train.jsonl", rows)
    batches = [reference.pad(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    reference.write_json(folder / "batch.json", batches)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=12, target_modules="all-linear"))
    fill(model)
    exact = copy.deepcopy(model).double()
    reference.save_adapter(model, folder / "adapter_init")
    steps = reference.recipe() | {"f32": reference.train(model, batches), "f64": reference.train(exact, batches)}
    reference.write_json(folder / "steps.json", steps, indent=1)
    reference.save_adapter(model, folder / "adapter_final")
    final, final64 = reference.trained(model), reference.trained(exact)
    places = {key: kept(value.numel(), ELEMENTS) for key, value in final.items()}
    sample = {f"final.{key}": value.flatten()[places[key]] for key, value in final.items()}
    for kind in ("lora_A", "lora_B"):
        keys = [key for key in final if kind in key]
        distance = sum((final[k].double() - final64[k]).pow(2).sum() for k in keys).sqrt()
        size = sum(final64[k].pow(2).sum() for k in keys).sqrt()
        worst = max(((final[k].double() - final64[k]).norm() / final64[k].norm()).item() for k in keys)
        print(f"{kind}: f32 is {distance / size:.1e} from f64 over all, {worst:.1e} at most")
    return steps, sample


def main():
    os.chdir(ROOT)
    torch.use_deterministic_algorithms(True)
    reference.make_double_exact()
    shutil.rmtree(OUT, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    end = reference.end_token(AutoModelForCausalLM.from_pretrained(MODEL).config)
    rows = evaluation_rows(tokenizer)
    write_rows(OUT / "rows.jsonl", rows)
    expected, sample = write_logits(rows)
    steps, final = write_case(training_rows(tokenizer, end))
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    shutil.copy(OUT / "rows.jsonl", KEPT)
    shutil.copy(OUT / "lora/batch.json", KEPT)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    reference.write_json(KEPT / "expected.json", expected | {"steps": steps, "versions": versions}, indent=1)
    reference.write_tensors(KEPT / "expected.safetensors", sample | final)


if __name__ == "__main__":
    main()
