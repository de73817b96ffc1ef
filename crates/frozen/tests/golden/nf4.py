"""Writes nf4.safetensors with the real bitsandbytes, on the CPU.

Of every case `c` the file holds

    c.input [rows, columns]    the numbers, in f32 or bf16
    c.codes                    packed codes
    c.absmax                   the scale of each block
    c.numbers [rows, columns]  the dequantised numbers in f32
    c.double.codes             with double quantisation: the code of each scale,
    c.double.absmax            the scale of every 256 of them,
    c.double.offset            what was subtracted from all,
    c.double.numbers           and the dequantised numbers

and `map` are the 256 values of the 8 bits. Case `large` has no dequantised numbers, which are products of the rest; of
`many`, whose input is arithmetic, there are the quantised scales only.
The versions are in the file's metadata. One thread is used, since bitsandbytes' offset depends on it.
"""

import os
import platform
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

torch.set_num_threads(1)
BLOCK = 64


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def book():
    return functional.get_4bit_type("nf4", device="cpu")


def row(*values):
    """A block that begins with these values and goes on with the last."""
    values = torch.tensor(values, dtype=torch.float32)
    return torch.cat([values, values[-1:].expand(BLOCK - len(values))])


def between():
    """Every boundary between two codes, and the numbers next to it, times scales that divide exactly and that do not."""
    values = book()
    middles = (values[:-1] + values[1:]) / 2
    infinity = torch.full_like(middles, torch.inf)
    near = [middles, torch.nextafter(middles, infinity), torch.nextafter(middles, -infinity)]
    one = torch.cat([torch.ones(1), *near, values, torch.zeros(2)])
    return torch.stack([scale * one for scale in (1.0, 2.0**-7, 2.0**20, -1.0, 0.3, 7.7e-3)])


def adversarial():
    rows = [
        row(0.0),
        row(-0.0),
        row(0.0, -0.0, 0.0),
        row(1e4, 1e-4, -1e-4, 0.0, 1.0, -3.0, 1e-3),
        row(-1e4, 1e-4, -1e-4, 2e3),
        row(0.37),
        row(-0.37),
        -normal(1, BLOCK).abs(),
        row(1e-40, -1e-40, 3e-41, 1e-45, 0.0),
        row(1e-38, -1e-38, 5e-39, 2e-38),
        row(1.2e-38, -0.7e-38, 0.9e-38, 1e-45),
        normal(2, BLOCK) * 1e-30,
        normal(3, BLOCK).exp() * 1e3,
        row(1.0, -1.0, 0.5, -0.5, 0.25, 1.0),
    ]
    return torch.cat([torch.stack(rows), between()])


def huge():
    return torch.stack([row(1e38, -1e38, 3e37, 1.0), row(3.4e38, -3.3e38, 1e20), row(-2e38, 1e-45)])


def many():
    """So many scales that every level of torch's sum takes part."""
    i = torch.arange(9000 * BLOCK + 17)
    size = 1000 + (i // BLOCK) ** 2 * 37 % 9001
    return (i * 48271 % size - size // 2).float() * 2.0**-14


CASES = {
    "normal": normal(4, 24, 128) * 0.02,
    "spanning": normal(5, 17, 70) * 1.7,
    "odd": normal(6, 7, 23),
    "short": normal(7, 3, 11) * 0.4,
    "zero_tail": torch.cat([normal(8, 64), torch.zeros(36)]).view(4, 25),
    "adversarial": adversarial(),
    "huge": huge(),
    "constant": torch.full((5, 64), -0.11),
    # More blocks than share a scale of scales, and a last one that is not full.
    "many": many(),
    "large": (normal(9, 129, 130) * normal(10, 129, 1).exp() * 0.05).bfloat16(),
}

out = {"map": functional.create_dynamic_map()}
for name, given in CASES.items():
    numbers = given.float()
    codes, state = functional.quantize_4bit(numbers, blocksize=BLOCK, quant_type="nf4")
    if name != "many":
        out[f"{name}.input"] = given
        out[f"{name}.codes"] = codes.flatten()
        out[f"{name}.absmax"] = state.absmax
    both = torch.stack([codes.flatten() >> 4, codes.flatten() & 15], 1).flatten()[: numbers.numel()]

    def check(scales, found):
        """bitsandbytes dequantises to a value of the book times a scale, rounded once."""
        product = book()[both.long()] * scales.repeat_interleave(BLOCK)[: len(both)]
        assert torch.equal(product.view_as(found).view(torch.int32), found.view(torch.int32)), name

    found = functional.dequantize_4bit(codes, state)
    check(state.absmax, found)
    if name not in ("large", "many"):
        out[f"{name}.numbers"] = found
    if name == "huge":
        continue  # The sum of its scales is infinite in f32.
    again, double = functional.quantize_4bit(
        numbers, blocksize=BLOCK, quant_type="nf4", compress_statistics=True
    )
    assert torch.equal(again, codes)
    inner = double.state2.code[double.absmax.long()]
    inner = inner * double.state2.absmax.repeat_interleave(256)[: len(inner)] + double.offset
    found = functional.dequantize_4bit(again, double)
    check(inner, found)
    out[f"{name}.double.codes"] = double.absmax
    out[f"{name}.double.absmax"] = double.state2.absmax
    out[f"{name}.double.offset"] = double.offset.view(1)
    if name not in ("large", "many"):
        out[f"{name}.double.numbers"] = found

versions = {
    "python": platform.python_version(),
    "torch": torch.__version__,
    "bitsandbytes": bitsandbytes.__version__,
    "cpu": torch.backends.cpu.get_cpu_capability(),
}
path = Path(__file__).with_suffix(".safetensors")
save_file({name: tensor.contiguous() for name, tensor in sorted(out.items())}, path, versions)
print(os.path.getsize(path), "bytes", versions)
