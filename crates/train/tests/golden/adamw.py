"""Writes adamw.json: what torch.optim.AdamW does to a few tensors. Run it with torch installed: python adamw.py"""

import json
import pathlib

import torch

SHAPE = (3, 5)
STEPS = 7


def numbers(generator, dtype, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def case(name, dtype, rates, betas, eps, weight_decay, revive=None):
    """Every row is a parameter of its own, so that one can be revived: new values, no state."""
    generator = torch.Generator().manual_seed(len(name))
    start = numbers(generator, dtype, *SHAPE)
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    optimizer = torch.optim.AdamW(rows, lr=1.0, betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)
    steps = []
    for step, rate in enumerate(rates, start=1):
        grad = numbers(generator, dtype, *SHAPE) * 10.0 ** (step % 3 - 1)
        optimizer.param_groups[0]["lr"] = rate
        for row, row_grad in zip(rows, grad):
            row.grad = row_grad.clone()
        optimizer.step()
        record = {"grad": grad.tolist()}
        if revive is not None and step == revive["after"]:
            fresh = numbers(generator, dtype, SHAPE[1])
            row = rows[revive["rank"]]
            row.data.copy_(fresh)
            del optimizer.state[row]
            record["fresh"] = fresh.tolist()
        record["values"] = [row.detach().tolist() for row in rows]
        steps.append(record)
    return {
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rates": rates,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "revive": revive,
        "start": start.tolist(),
        "steps": steps,
    }


def main():
    falling = [0.03 * (1 - k / STEPS) for k in range(STEPS)]
    rising = [0.0] + [0.01 * k for k in range(1, STEPS)]
    revive = {"after": 3, "rank": 1}
    cases = [
        case("defaults", torch.float64, falling, [0.9, 0.999], 1e-8, 0.0),
        case("decay and warm-up", torch.float64, rising, [0.8, 0.95], 1e-3, 0.3),
        case("one rank revived", torch.float64, falling, [0.9, 0.99], 1e-6, 0.1, revive),
        case("defaults, single precision", torch.float32, falling, [0.9, 0.999], 1e-8, 0.0),
        case("revived, single precision", torch.float32, rising, [0.7, 0.99], 1e-6, 0.2, revive),
    ]
    golden = {"versions": {"torch": torch.__version__}, "cases": cases}
    path = pathlib.Path(__file__).with_name("adamw.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
