"""Loads an adapter that lowrank wrote with PEFT, as strictly as can be, and writes what it computes.

    load_back.py MODEL ADAPTER BATCH.json OUT.safetensors

MODEL is a Hugging Face folder, BATCH.json a batch or a list of which the first counts (see generate.py). OUT gets `logits`
(f32) and `logits64` [rows, tokens, vocabulary]. Exits 1 and names the keys if PEFT would miss or ignore any tensor.
"""

import argparse
import copy
import json
import sys
import warnings
from pathlib import Path

sys.dont_write_bytecode = True

import reference
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def differences(folder, base):
    """Keys that PEFT expects for this configuration and does not find, and keys that it finds and does not expect."""
    model = get_peft_model(base, PeftConfig.from_pretrained(folder))
    expected = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(model).items()}
    found = {key: tuple(value.shape) for key, value in load_file(Path(folder) / "adapter_model.safetensors").items()}
    missing = [f"missing {key} {expected[key]}" for key in sorted(expected.keys() - found.keys())]
    unexpected = [f"unexpected {key} {found[key]}" for key in sorted(found.keys() - expected.keys())]
    wrong = [f"{k} is {found[k]}, expected {expected[k]}" for k in sorted(expected.keys() & found.keys()) if expected[k] != found[k]]
    return missing + unexpected + wrong


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("model", "adapter", "batch", "out"):
        arguments.add_argument(name)
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    reference.make_double_exact()
    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="sdpa")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems = differences(arguments.adapter, copy.deepcopy(base))
    if problems:
        sys.exit("\n".join(problems))
    with warnings.catch_warnings():
        # What from_pretrained finds wrong with keys or with the configuration, it only warns of.
        warnings.filterwarnings("error", message=".*(missing adapter keys|Unexpected keyword arguments).*")
        model = PeftModel.from_pretrained(base, arguments.adapter).eval()

    batch = json.loads(Path(arguments.batch).read_text())
    batch = batch[0] if isinstance(batch, list) else batch
    with torch.no_grad():
        logits = reference.logits_of(model, batch)
        logits64 = reference.logits_of(model.double(), batch)
    reference.write_tensors(arguments.out, {"logits": logits, "logits64": logits64})


if __name__ == "__main__":
    main()
