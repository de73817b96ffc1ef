"""Prints the loss of the first rows of smollm2/rows.jsonl, in f32 and on layers that bitsandbytes holds in NF4.

The model is the folder that `cargo xtask fetch` makes. bitsandbytes' own product on the CPU rounds to bf16, so every
layer is dequantised by it and multiplied by torch in f32. tests/tests/storages/nf4.rs holds the two numbers; made with
torch 2.11.0, transformers 5.23.0, bitsandbytes 0.50.2.
"""

import json
from pathlib import Path

import torch
from bitsandbytes import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

ROWS = 6
HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "models" / "SmolLM2-135M-Instruct"

torch.set_num_threads(1)
rows = [json.loads(line) for line in (HERE / "smollm2" / "rows.jsonl").read_text().splitlines()]


def loss(model):
    total = count = 0
    for row in rows[:ROWS]:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += (labels != -100).sum().item()
    return total / count


def widen(module):
    for name, child in module.named_children():
        if type(child).__name__ == "Linear4bit":
            weight = functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
            dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            dense.weight.data = weight
            setattr(module, name, dense)
        else:
            widen(child)


print("f32", loss(AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)))
quantised = AutoModelForCausalLM.from_pretrained(
    FOLDER,
    dtype=torch.float32,
    device_map="cpu",
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
)
widen(quantised)
print("nf4", loss(quantised))
