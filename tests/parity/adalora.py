"""Writes golden/adalora with the real PEFT: a whole schedule of AdaLoRA, with its penalty, in f32 and in f64.

Run by generate.py, after the models. golden/adalora holds

    adapter_init/     what the schedule starts from, saved by PEFT
    batch.json        a batch a step, as in a case
    schedule.json     the recipe; for f32 and f64, by step: the loss without the penalty, the penalty, the norm of the gradients,
                      the budget, the pattern where one was chosen, and which E are 0
    adapter_final/    the adapter at the end of the run in f32, saved by PEFT
"""

import copy
import json
import warnings
from pathlib import Path

import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import reference

STEPS = 40
LEARNING_RATE = 2e-2
CONFIG = dict(
    init_r=6,
    target_r=2,
    lora_alpha=9,
    lora_dropout=0.0,
    tinit=5,
    tfinal=9,
    deltaT=3,
    beta1=0.8,
    beta2=0.7,
    orth_reg_weight=0.3,
    total_step=STEPS,
    target_modules=["q_proj", "v_proj", "up_proj"],
)


def run(model, batches):
    """The schedule. PEFT adds its penalty to the loss that the model returns, so that is where the loss is computed."""
    inner = model.base_model.model
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=reference.WEIGHT_DECAY)
    allocator = model.base_model.rankallocator
    trace = {key: [] for key in ("loss", "penalty", "grad_norm", "budget", "pattern", "live")}

    def task_loss(logits, labels, vocab_size, **_):
        supervised = labels[:, 1:] != -100
        chosen = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
        loss = -(chosen * supervised).sum() / supervised.sum()
        trace["loss"].append(loss.item())
        return loss

    inner.loss_function = task_loss
    chosen = []
    mask_to_budget = allocator.mask_to_budget

    def watched(model, budget):
        chosen.append((budget, mask_to_budget(model, budget)))
        return chosen[-1][1]

    allocator.mask_to_budget = watched
    for step in range(1, STEPS + 1):
        batch = batches[step - 1]
        ids = torch.tensor(batch["input_ids"])
        mask = torch.arange(ids.shape[1])[None, :] < torch.tensor(batch["lengths"])[:, None]
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=torch.tensor(batch["labels"]), use_cache=False).loss
        trace["penalty"].append(loss.item() - trace["loss"][-1])
        loss.backward()
        trace["grad_norm"].append(torch.nn.utils.clip_grad_norm_(parameters, reference.MAX_GRAD_NORM).item())
        optimizer.step()
        chosen.clear()
        model.base_model.update_and_allocate(step)
        trace["budget"].append(allocator.budget_schedule(step)[0])
        pattern = None
        if chosen:
            (_, found), = chosen
            pattern = {name.replace(".default", ""): kept for name, kept in found.items()}
        trace["pattern"].append(pattern)
        live = {n.replace(".default", ""): (p != 0).view(-1).tolist() for n, p in inner.named_parameters() if "lora_E" in n}
        trace["live"].append(live)
        optimizer.zero_grad()
    model.eval()
    return trace


def write(base, batches):
    folder = Path("adalora")
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, AdaLoraConfig(task_type="CAUSAL_LM", **CONFIG))
    reference.randomise(model, 300)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Near to where training starts, so that scores are of what is learned.
            if "lora_" in name and parameter.requires_grad:
                parameter.mul_(0.3)
    reference.save_adapter(model, folder / "adapter_init")
    reference.write_json(folder / "batch.json", batches)
    exact = copy.deepcopy(model).double()
    recipe = {
        "learning_rate": LEARNING_RATE,
        "weight_decay": reference.WEIGHT_DECAY,
        "max_grad_norm": reference.MAX_GRAD_NORM,
        "steps": STEPS,
    }
    f32 = run(model, batches)
    reference.write_json(folder / "schedule.json", recipe | {"f32": f32, "f64": run(exact, batches)})
    reference.save_adapter(model, folder / "adapter_final")
    patterns = [pattern for pattern in f32["pattern"] if pattern]
    ranks = {name: sum(kept) for name, kept in patterns[-1].items()}
    print(f"adalora: {len(patterns)} choices, ranks at the end {sorted(ranks.values())}")
    assert len(set(ranks.values())) > 2, ranks
