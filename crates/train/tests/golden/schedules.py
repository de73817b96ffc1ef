"""Writes schedules.json: learning rates and warm-up steps of transformers, smoothed losses of torch and transformers. Run it with torch and
transformers installed: python schedules.py"""

import json
import pathlib

import torch
import transformers
from transformers.trainer_pt_utils import LabelSmoother

BASE = 3e-3


def rates(make, steps, **options):
    """The rate that each step is made at."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=BASE)
    schedule = make(optimizer, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def schedules():
    for warmup, steps in [(0, 7), (3, 11), (5, 5), (9, 4)]:
        for least in [0.0, 2e-4, BASE]:
            found = rates(
                transformers.get_cosine_with_min_lr_schedule_with_warmup,
                steps,
                num_warmup_steps=warmup,
                num_training_steps=steps,
                min_lr=least,
            )
            yield {"curve": "cosine", "warmup": warmup, "steps": steps, "least": least, "rates": found}
        found = rates(
            transformers.get_linear_schedule_with_warmup,
            steps,
            num_warmup_steps=warmup,
            num_training_steps=steps,
        )
        yield {"curve": "linear", "warmup": warmup, "steps": steps, "least": 0.0, "rates": found}


def warmups(folder):
    for ratio, steps in [(0.0, 10), (0.03, 100), (0.03, 101), (0.1, 7), (0.5, 3), (0.06, 833)]:
        try:
            arguments = transformers.TrainingArguments(output_dir=folder, warmup_ratio=ratio)
        except TypeError:
            # Newer versions take a ratio as a number of steps below 1.
            arguments = transformers.TrainingArguments(output_dir=folder, warmup_steps=ratio)
        yield {"ratio": ratio, "steps": steps, "warmup": arguments.get_warmup_steps(steps)}


def smoothed():
    for epsilon, rows, classes in [(0.1, 6, 5), (0.35, 4, 9)]:
        generator = torch.Generator().manual_seed(rows)
        logits = torch.randn(1, rows + 1, classes, generator=generator, dtype=torch.float64) * 3
        labels = torch.randint(classes, (1, rows + 1), generator=generator)
        labels[0, 2] = -100
        logits.requires_grad_()
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], label_smoothing=epsilon)
        loss.backward()
        # The same, but for a sum in f32.
        smoother = LabelSmoother(epsilon=epsilon)({"logits": logits}, labels, shift_labels=True)
        yield {
            "epsilon": epsilon,
            "logits": logits[0].tolist(),
            "labels": labels[0].tolist(),
            "loss": loss.item(),
            "label_smoother": smoother.item(),
            "gradient": logits.grad[0].tolist(),
        }


golden = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "base": BASE,
    "schedules": list(schedules()),
    "warmups": list(warmups("out")),
    "smoothed": list(smoothed()),
}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden, indent=1) + "\n")
