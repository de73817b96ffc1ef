"""Writes the folders prequantised/* with the real transformers and bitsandbytes: small random LLaMAs that were saved in NF4.

    python prequantised.py          # in the environment that `cargo xtask peer-env` makes

Each holds config.json and model.safetensors as `save_pretrained` writes them, and expected.safetensors:

    dense.<name> [rows, columns]    some of the matrices in four bits, dequantised by bitsandbytes to f32
    ids [tokens]                    a text
    logits [tokens, vocabulary]     its logits, in f64

bitsandbytes' own product on the CPU rounds to bf16 and needs sizes that are multiples of 32, so the logits are those of a
dense model with the dequantised matrices.
Case `double` has f32 weights and more than 256 blocks in a matrix, so that there are several scales of scales; `single` has
bf16 weights and leaves some layers out of four bits; `storage` keeps its codes in tensors of bf16.
"""

import copy
import shutil
import tempfile
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "prequantised"
VOCABULARY = 37
KEPT = ("k_proj", "down_proj")

torch.set_num_threads(1)


def config(hidden, inner, layers, **fields):
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=10,
        max_position_embeddings=48,
        **fields,
    )


# Rows are no whole number of blocks, and matrices are neither.
CASES = {
    "double": (config(72, 230, 1), torch.float32, True, {}),
    "single": (
        config(21, 26, 2, attention_bias=True),
        torch.bfloat16,
        False,
        {"llm_int8_skip_modules": ["lm_head", "up_proj"]},
    ),
    "storage": (
        config(24, 26, 1, tie_word_embeddings=True),
        torch.bfloat16,
        True,
        {"bnb_4bit_quant_storage": torch.bfloat16},
    ),
}


def quantised(folder, dtype, double=False, **keys):
    given = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        **keys,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=given, dtype=dtype, device_map="cpu"
    )


def dense(linear):
    """The numbers in f32; in the dtype of the model they are these, rounded."""
    weight = linear.weight
    found = functional.dequantize_4bit(weight.data, weight.quant_state)
    state = copy.copy(weight.quant_state)
    state.dtype = torch.float32
    single = functional.dequantize_4bit(weight.data, state)
    assert torch.equal(single.to(found.dtype), found)
    return single.reshape(weight.quant_state.shape)


def make(name, config, dtype, double, keys):
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough for attention to prefer some keys clearly.
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) * 1.3 / parameter.shape[-1] ** 0.5)
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        model.to(dtype).save_pretrained(folder)
        quantised(folder, dtype, double, **keys).save_pretrained(out)
    (out / "generation_config.json").unlink()

    # What is compared is what comes back from the files.
    back = AutoModelForCausalLM.from_pretrained(out, device_map="cpu", dtype=dtype)
    expected = {}
    weights = {}
    for path, module in back.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            matrix = dense(module)
            if path.endswith(KEPT):
                expected[f"dense.{path}.weight"] = matrix
            weights[f"{path}.weight"] = matrix.double()
            if module.bias is not None:
                weights[f"{path}.bias"] = module.bias.data.double()
        else:
            for own, parameter in module.named_parameters(path, recurse=False):
                weights[own] = parameter.data.double()
    reference = LlamaForCausalLM(config).double()
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    ids = torch.randint(VOCABULARY, (11,))
    with torch.no_grad():
        expected |= {"ids": ids, "logits": reference(input_ids=ids[None]).logits[0]}
    save_file({key: tensor.contiguous() for key, tensor in expected.items()}, out / "expected.safetensors")
    stored = load_file(out / "model.safetensors")
    size = sum(file.stat().st_size for file in out.iterdir())
    print(name, len(stored), "tensors,", size, "bytes")


for name, case in CASES.items():
    make(name, *case)
