"""The table of target specifications and what PEFT makes of them."""

import warnings

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForCausalLM

# Paths of linear layers that a real model might have, chosen so that careless matching goes wrong: nested numbers,
# names that end like others, numbers of two digits, a head whose name contains another's.
ODD = [
    *(f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 3, 13) for p in ("q", "v", "kq")),
    *(f"model.layers.{i}.mlp.experts.{e}.{w}" for i in (0, 3) for e in (0, 5) for w in ("w1", "w2")),
    "model.layers.3.mlp.gate",
    *(f"model.layers.{i}.q" for i in (1, 11)),
    *(f"{side}.block.{i}.layer.0.q" for side in ("encoder", "decoder") for i in (0, 1)),
    "transformer.h.2.attn.c_attn",
    "h.3.attn.c_attn",
    "q",
    "lm_head",
    "head",
]

# A name, a tree, and the keys of the configuration. `r` is 3 and `lora_alpha` 5 unless given.
SPECS = [
    ("all linear leaves the head out", "plain", dict(target_modules="all-linear")),
    ("all linear in capitals", "plain", dict(target_modules="ALL-LINEAR")),
    ("all linear and an exclusion", "plain", dict(target_modules="all-linear", exclude_modules=["k_proj", "mlp.up_proj"])),
    ("the head by name", "plain", dict(target_modules=["lm_head", "o_proj"])),
    ("a suffix of several parts", "plain", dict(target_modules=["self_attn.q_proj", "1.mlp.down_proj"])),
    ("the table of the model type", "plain", dict(target_modules=None)),
    ("part of a name is no suffix", "odd", dict(target_modules=["q_proj"])),
    ("a suffix across a dot only", "odd", dict(target_modules=["q"])),
    ("a full path is a target", "odd", dict(target_modules=["model.layers.0.self_attn.q_proj", "w2"])),
    ("an expression matches the whole path", "odd", dict(target_modules=r".*\.q")),
    ("an expression without its beginning", "odd", dict(target_modules=r"q_proj")),
    ("an expression with alternatives", "odd", dict(target_modules=r"model\.layers\.(0|13)\..*(q|v)_proj")),
    ("an expression that looks ahead", "odd", dict(target_modules=r"model\.layers\.(?!0\.)\d+\.self_attn\.\w+")),
    ("alternatives at the top", "odd", dict(target_modules=r"lm_head|.*\.c_attn")),
    ("a class and a count", "odd", dict(target_modules=r"model\.layers\.[0-9]{2}\..+_proj")),
    ("exclusion by suffix wins", "odd", dict(target_modules=["w1", "q_proj"], exclude_modules=["5.w1", "0.self_attn.q_proj"])),
    ("exclusion by expression", "odd", dict(target_modules=["w1", "w2"], exclude_modules=r".*experts\.5\..*")),
    ("exclusion by an expression that is only a part", "odd", dict(target_modules=["w1"], exclude_modules=r"experts")),
    ("the first number is the layer", "odd", dict(target_modules=["w1"], layers_to_transform=[3])),
    ("the second number is no layer", "odd", dict(target_modules=["w1"], layers_to_transform=[5])),
    ("one layer as a number", "odd", dict(target_modules=["q_proj", "q"], layers_to_transform=13)),
    ("a full path passes whatever the layer", "odd", dict(target_modules=["model.layers.0.self_attn.q_proj", "v_proj"], layers_to_transform=[3])),
    ("a pattern for layers", "odd", dict(target_modules=["q", "c_attn"], layers_to_transform=[0, 1, 3], layers_pattern="block")),
    ("a pattern at the beginning of the path", "odd", dict(target_modules=["c_attn"], layers_to_transform=[2, 3], layers_pattern="h")),
    ("a pattern for nested numbers", "odd", dict(target_modules=["w1", "w2"], layers_to_transform=[5], layers_pattern="experts")),
    ("several patterns", "odd", dict(target_modules=["q", "c_attn", "v_proj"], layers_to_transform=[1, 2, 3], layers_pattern=["h", "block"])),
    ("an empty list of layers", "odd", dict(target_modules=["v_proj"], layers_to_transform=[])),
    ("a saved module is no target", "odd", dict(target_modules=["q", "lm_head", "gate"], modules_to_save=["lm_head"])),
    ("the end of a name is saved", "odd", dict(target_modules=["q_proj"], modules_to_save=["head"])),
    ("norms end alike", "plain", dict(target_modules=["q_proj"], modules_to_save=["norm"])),
    ("the first pattern in the alphabet", "odd", dict(target_modules=["q"], rank_pattern={"q": 2, "layers.1.q": 4})),
    ("a pattern has whole parts", "odd", dict(target_modules=["q_proj", "kq_proj"], rank_pattern={"q_proj": 7})),
    ("a pattern ends with the path", "odd", dict(target_modules=["w1"], rank_pattern={"experts": 7, "experts.5": 6, r"experts\.\d+\.w1": 2})),
    ("a pattern from the beginning", "odd", dict(target_modules=["q"], rank_pattern={"^q": 7, r"^encoder\..*": 6}, alpha_pattern={r"(en|de)coder\.block\.0\..*q": 9})),
    ("a dot matches any character", "odd", dict(target_modules=["q", "lm_head"], alpha_pattern={"lm.head": 2, "layers.1.": 8, "layers.1..q": 7})),
    ("rank and alpha apart", "odd", dict(target_modules=["q_proj", "v_proj"], use_rslora=True, rank_pattern={"13.self_attn.v_proj": 2}, alpha_pattern={"v_proj": 4})),
    ("nothing matches", "odd", dict(target_modules=["o_proj"])),
    ("everything is excluded", "odd", dict(target_modules=["w1"], exclude_modules=["w1"])),
    ("layers with an expression", "odd", dict(target_modules=".*q_proj", layers_to_transform=[0])),
    ("a pattern for layers without layers", "odd", dict(target_modules=["q_proj"], layers_pattern="layers")),
]


def tree(paths):
    """A module that has linear layers at these paths."""
    root = torch.nn.Module()
    for path in paths:
        *parents, name = path.split(".")
        at = root
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, torch.nn.Module())
            at = at.get_submodule(parent)
        at.add_module(name, torch.nn.Linear(2, 3))
    return root


def outcome(model, config):
    """What PEFT adapts, and what it saves in full; or why it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = inject_adapter_in_model(LoraConfig(**config), model)
    except ValueError as error:
        return {"error": str(error)}
    adapted, saved = [], []
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            rank, alpha, scale = module.r["default"], module.lora_alpha["default"], module.scaling["default"]
            adapted.append({"path": path, "rank": rank, "alpha": alpha, "scale": scale})
        elif isinstance(module, ModulesToSaveWrapper):
            saved.append(path)
    return {"adapted": adapted, "saved": saved}


def table(plain):
    """`plain`: the folder of a LLaMA. Patterns are looked up in the order in which a saved file lists them: sorted."""
    load = lambda: AutoModelForCausalLM.from_pretrained(plain)
    linear = [path for path, module in load().named_modules() if isinstance(module, torch.nn.Linear)]
    others = [path for path, module in load().named_modules() if path.endswith("norm") or path.endswith("embed_tokens")]
    rows = []
    for name, model, config in SPECS:
        for key in ("rank_pattern", "alpha_pattern"):
            if key in config:
                config[key] = dict(sorted(config[key].items()))
        config = {"r": 3, "lora_alpha": 5} | config
        result = outcome(load() if model == "plain" else tree(ODD), config)
        rows.append({"name": name, "model": model, "config": config} | result)
    return {"models": {"plain": {"linear": linear, "others": others}, "odd": {"linear": ODD, "others": []}}, "specs": rows}
