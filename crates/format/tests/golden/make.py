"""Writes the golden files beside it with the real libraries.

    pip install safetensors==0.8.0 numpy==2.4.6
    python make.py

mixed.safetensors holds tensors of several dtypes, given in an order that is not the file's;
config.json is written as PEFT writes its configurations.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

here = Path(__file__).parent


def ramp(shape, dtype):
    """0.25, 1.25, .. or 0, 1, ..: exact in every dtype."""
    count = int(np.prod(shape))
    offset = 0.25 if np.issubdtype(dtype, np.floating) else 0
    return (np.arange(count) + offset).astype(dtype).reshape(shape)


tensors = {
    "layer.10.weight": ramp((2, 3), np.float32),
    "layer.2.weight": ramp((3, 2), np.float32),
    "half": ramp((5,), np.float16),
    "double": ramp((2, 2, 2), np.float64),
    "bytes": ramp((3,), np.uint8),
    "index": ramp((4,), np.int64),
    "count": ramp((2,), np.uint32),
    "scalar": np.array(7.5, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    'Größe "x"': ramp((1, 2), np.float16),
}
save_file(tensors, here / "mixed.safetensors", metadata={"format": "pt"})

config = {
    "target_modules": ["v_proj", "q_proj"],
    "r": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 1e-05,
    "bias": "none",
    "rank_pattern": {"b": 4, "a": 2},
    "loftq_config": {},
    "exclude_modules": [],
    "base_model_name_or_path": "modèle/😀",
    "task_type": None,
    "inference_mode": True,
}
text = json.dumps(config, indent=2, sort_keys=True)
(here / "config.json").write_text(text, encoding="utf-8")
