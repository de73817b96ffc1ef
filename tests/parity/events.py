"""Compares the events in a run's folder, as TensorBoard reads them, with its metrics.jsonl.

    python3 -m venv tb && tb/bin/pip install tensorboard==2.21.0
    tb/bin/python events.py RUN_FOLDER..

Exits 1 and names what differs: a scalar that is missing, one too many, or one that is not the logged number in 32 bits.
"""

import json
import math
import struct
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def tag_of(line, key):
    if "event" in line:
        return f"{line['event']}/{key}"
    return "eval/" + key.removeprefix("eval_") if any(k.startswith("eval_") for k in line) else f"train/{key}"


def logged(folder):
    """Tags with the steps and numbers that they must have."""
    tags = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        step = line.pop("step")
        numbers = [(tag_of(line, key), value) for key, value in line.items() if value is None or type(value) in (int, float)]
        ranks = line.get("ranks")
        numbers += [(f"ranks/{site}", rank) for site, rank in (ranks.items() if isinstance(ranks, dict) else [])]
        for tag, value in numbers:
            value = math.nan if value is None else struct.unpack("f", struct.pack("f", value))[0]
            tags.setdefault(tag, []).append((step, value))
    return tags


def read(folder):
    accumulator = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def same(one, other):
    return len(one) == len(other) and all(
        a[0] == b[0] and (a[1] == b[1] or math.isnan(a[1]) and math.isnan(b[1])) for a, b in zip(one, other)
    )


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    problems = []
    for folder in map(Path, sys.argv[1:]):
        expected, found = logged(folder), read(folder)
        problems += [f"{folder}: {tag} is missing" for tag in sorted(expected.keys() - found.keys())]
        problems += [f"{folder}: {tag} is not logged" for tag in sorted(found.keys() - expected.keys())]
        for tag in sorted(expected.keys() & found.keys()):
            if not same(expected[tag], found[tag]):
                problems.append(f"{folder}: {tag} is {found[tag]}, expected {expected[tag]}")
        count = sum(map(len, found.values()))
        print(f"{folder}: {len(found)} tags, {count} scalars")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
