"""What every parity script shares: an exact model, the loss, the training steps, and reading and writing."""

import json
import math
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2

LEARNING_RATE = 3e-3
WARMUP_STEPS = 3
STEPS = 10
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def randomise_weights(model, seed):
    """Gives a model weights that are random; none is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if path.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif "norm" in path.lower():
                weight.copy_(1 + 0.3 * noise)
            elif "embed" in path:
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(noise / weight.shape[1] ** 0.5)


def inverse_frequencies(config):
    """The rotary frequencies of a configuration, in f64 [head_dim / 2]."""
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = rope["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    assert rope["rope_type"] == "llama3", rope
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (smooth + (1 - smooth) / rope["factor"])


def make_double_exact():
    """Lets a model in f64 compute in f64 throughout: transformers rounds norms and rotary angles to f32 whatever the model's
    dtype is. Models in f32 are left as they are."""
    for norm, rotary in [
        (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaRotaryEmbedding),
        (modeling_mistral.MistralRMSNorm, modeling_mistral.MistralRotaryEmbedding),
        (modeling_qwen2.Qwen2RMSNorm, modeling_qwen2.Qwen2RotaryEmbedding),
    ]:
        make_exact(norm, rotary)


def make_exact(norm, rotary):
    stock_norm, stock_rotary = norm.forward, rotary.forward

    def exact_norm(self, hidden):
        if hidden.dtype != torch.float64:
            return stock_norm(self, hidden)
        return self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def exact_rotary(self, x, position_ids):
        if x.dtype != torch.float64:
            return stock_rotary(self, x, position_ids)
        angles = position_ids[..., None].double() * inverse_frequencies(self.config)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    norm.forward, rotary.forward = exact_norm, exact_rotary


def logits_of(model, batch):
    """Logits [rows, tokens, vocabulary] of right-padded rows."""
    ids = torch.tensor(batch["input_ids"])
    mask = torch.arange(ids.shape[1])[None, :] < torch.tensor(batch["lengths"])[:, None]
    return model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits


def loss_of(model, batch):
    """The mean over supervised tokens: labels[i] supervises the prediction of token i."""
    logits, labels = logits_of(model, batch)[:, :-1], torch.tensor(batch["labels"])[:, 1:]
    supervised = labels != -100
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(chosen * supervised).sum() / supervised.sum()


def pad(rows):
    """A batch out of (input_ids, labels) rows, padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": [ids + [0] * (width - len(ids)) for ids, _ in rows],
        "labels": [labels + [-100] * (width - len(labels)) for _, labels in rows],
        "lengths": [len(ids) for ids, _ in rows],
    }


def learning_rate(step):
    """Linear warm-up, then linear decay; `step` counts from 1."""
    k = step - 1
    if k < WARMUP_STEPS:
        return LEARNING_RATE * k / WARMUP_STEPS
    return LEARNING_RATE * (1 - (k - WARMUP_STEPS) / max(1, STEPS - WARMUP_STEPS))


def train(model, batches, loss_of=loss_of):
    """Ten steps of torch's AdamW with clipping. Returns losses before each step and norms before clipping."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        loss = loss_of(model, batches[(step - 1) % len(batches)])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        losses.append(loss.item())
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.eval()
    return {"loss": losses, "grad_norm": norms}


def recipe():
    """The constants of `train`, as `steps.json` records them."""
    return {
        "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": WEIGHT_DECAY},
        "learning_rate": LEARNING_RATE,
        "schedule": "linear",
        "warmup_steps": WARMUP_STEPS,
        "steps": STEPS,
        "max_grad_norm": MAX_GRAD_NORM,
        "lr": [learning_rate(step) for step in range(1, STEPS + 1)],
    }


def trained(model):
    """Trainable parameters by the names under which PEFT saves them."""
    names = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
            name = name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
            names[name.removesuffix(".default")] = parameter
    return names


FACTORS = ("lora_A", "lora_B", "lora_E", "hada_", "lokr_")


def randomise(model, seed, spread=0.4, fresh=True):
    """Gives every trainable parameter values that matter: factors at random (`spread` is about the size of a LoRA's update
    beside a weight of unit gain) or, if not `fresh`, near where they started; copies, biases and magnitudes near the base's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(trained(model).items()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if fresh and any(factor in name for factor in FACTORS):
                value = noise * (spread if "lora_B" in name else 1.0) / math.sqrt(parameter.shape[1])
            else:
                value = parameter.double() + 0.1 * noise
            parameter.copy_(value)


def tokenise(tokenizer, end, prompt, completion, max_length):
    """A row (input_ids, labels): both parts tokenised apart without special tokens and joined as they are, the end token
    added, loss on completion and end token; too long a row loses its right end."""
    prompt = tokenizer(prompt, add_special_tokens=False).input_ids
    completion = tokenizer(completion, add_special_tokens=False).input_ids + [end]
    return (prompt + completion)[:max_length], ([-100] * len(prompt) + completion)[:max_length]


def end_token(config):
    """The end token of a model, the first of a list."""
    return config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id


def save_adapter(model, folder):
    """PEFT's own files, less the model card."""
    model.save_pretrained(folder)
    (Path(folder) / "README.md").unlink()


def write_json(path, value, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value, **options) + "\n")


def write_tensors(path, tensors):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, path)
