"""Writes `optimizers/`: ten steps of other optimisers than AdamW, over adapters and batches of `cases/`.

    optimizers/<run>.json         the case, the lines of a run file's [train] that say the same, losses and gradient norms in
                                  f32 and f64, and how many numbers train
    optimizers/<run>.safetensors  the adapter after the ten steps in f64, by PEFT's names, written in f32

Schedule, decay and clipping are those of `reference.py`; a group's own rate follows the schedule. LoRA-FA's product with the
inverse is taken out of bf16, in which PEFT computes it where it can. Run by generate.py.
"""

import copy
import json
from pathlib import Path

import reference
import torch
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, lorafa
from transformers import AutoModelForCausalLM


def lora_plus(model):
    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=reference.LEARNING_RATE,
        loraplus_lr_ratio=4.0,
        loraplus_weight_decay=reference.WEIGHT_DECAY,
    )


def lora_fa(model):
    config = model.peft_config["default"]
    return create_lorafa_optimizer(
        model,
        r=config.r,
        lora_alpha=config.lora_alpha,
        lr=reference.LEARNING_RATE,
        weight_decay=reference.WEIGHT_DECAY,
    )


def sgd(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(
        trained, lr=reference.LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=reference.WEIGHT_DECAY
    )


LORA_PLUS = (lora_plus, ["lora_plus_ratio = 4"])
LORA_FA = (lora_fa, ['optimizer = "lora_fa"'])
SGD = (sgd, ['optimizer = "sgd"', "momentum = 0.9", "nesterov = true"])

RUNS = {
    "lora_plus": ("lora", *LORA_PLUS),
    # Magnitudes have one axis.
    "lora_plus_dora": ("dora", *LORA_PLUS),
    # Biases do not decay, norms without bias do.
    "lora_plus_biases": ("bias_all", *LORA_PLUS),
    "lora_plus_modules": ("modules_to_save", *LORA_PLUS),
    "lora_fa": ("lora", *LORA_FA),
    "lora_fa_patterns": ("rslora_patterns", *LORA_FA),
    "lora_fa_biases": ("bias_lora_only", *LORA_FA),
    "sgd": ("lora", *SGD),
}


def train(model, batches, make):
    """Ten steps. Returns losses before each step, norms before clipping, and how many numbers train."""
    model.train()
    optimizer = make(model)
    own = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for step in range(1, reference.STEPS + 1):
        for group, rate in zip(optimizer.param_groups, own):
            group["lr"] = rate * reference.learning_rate(step) / reference.LEARNING_RATE
        loss = reference.loss_of(model, batches[step - 1])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, reference.MAX_GRAD_NORM).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return {"loss": losses, "grad_norm": norms}, sum(p.numel() for p in parameters)


def write():
    """Writes the folder into the working directory, which holds `cases` and `models`."""
    lorafa.is_bf16_available = lambda *_: False
    folder = Path("optimizers")
    folder.mkdir()
    for name, (case, make, lines) in RUNS.items():
        start = Path("cases") / case
        batches = json.loads((start / "batch.json").read_text())
        base = json.loads((start / "adapter_init" / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa")
        model = PeftModel.from_pretrained(model, start / "adapter_init", is_trainable=True)
        names = list(reference.trained(model))
        exact = copy.deepcopy(model).double()
        (single, trained), (double, _) = (train(run, batches, make) for run in (model, exact))
        record = {"case": case, "train": lines, "trainable_parameters": trained, "f32": single, "f64": double}
        reference.write_json(folder / f"{name}.json", record, indent=1)
        for parameter in exact.parameters():
            parameter.requires_grad_(True)
        last = reference.trained(exact)
        reference.write_tensors(folder / f"{name}.safetensors", {key: last[key].detach().float() for key in names})
        print(f"{name:22} loss {double['loss'][0]:.3f}..{double['loss'][-1]:.3f}, {trained} train")
