"""Writes sgd.json: what torch.optim.SGD does to a few tensors. Run it with torch installed: python sgd.py"""

import json
import pathlib

import torch

SHAPE = (3, 5)
STEPS = 7


def case(name, dtype, revive=None, **settings):
    """Every row is a parameter of its own, so that one can be revived: new values, no state."""
    generator = torch.Generator().manual_seed(len(name))
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    rates = [0.3 * (1 - k / STEPS) for k in range(STEPS)]
    start = draw(*SHAPE)
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    optimizer = torch.optim.SGD(rows, lr=1.0, foreach=False, **settings)
    steps = []
    for step, rate in enumerate(rates, start=1):
        grad = draw(*SHAPE)
        optimizer.param_groups[0]["lr"] = rate
        for row, row_grad in zip(rows, grad):
            row.grad = row_grad.clone()
        optimizer.step()
        record = {"grad": grad.tolist()}
        if revive is not None and step == revive["after"]:
            fresh = draw(SHAPE[1])
            row = rows[revive["rank"]]
            row.data.copy_(fresh)
            optimizer.state.pop(row, None)
            record["fresh"] = fresh.tolist()
        record["values"] = [row.detach().tolist() for row in rows]
        steps.append(record)
    return {
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rates": rates,
        "settings": settings,
        "revive": revive,
        "start": start.tolist(),
        "steps": steps,
    }


def main():
    revive = {"after": 3, "rank": 1}
    cases = [
        case("plain", torch.float64),
        case("decay", torch.float64, weight_decay=0.3),
        case("momentum", torch.float64, momentum=0.9),
        case("dampened, with decay", torch.float64, momentum=0.8, dampening=0.3, weight_decay=0.1),
        case("nesterov, one revived", torch.float64, revive, momentum=0.7, nesterov=True, weight_decay=0.2),
        case("dampened, one revived", torch.float64, revive, momentum=0.6, dampening=0.5),
        case("nesterov in single precision", torch.float32, revive, momentum=0.9, nesterov=True, weight_decay=0.1),
        case("plain in single precision", torch.float32, revive, weight_decay=0.1),
    ]
    golden = {"versions": {"torch": torch.__version__}, "cases": cases}
    path = pathlib.Path(__file__).with_name("sgd.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
