"""Writes zoo/<case>: what transformers computes on small random models of every kind that is loaded.

    config.json, model.safetensors    as save_pretrained writes them (LayerNorm, biases and all are random)
    batch.json                        right-padded rows: ids, lengths, types of tokens, labels of tokens or rows
    expected.safetensors              logits, hidden (where the class has them) and loss in f32; those with 64 in f64

Rows of logits and hidden states mean nothing past a row's length. `versions.json` says what made the files.

    python zoo.py [folder]
"""

import json
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "tests" / "parity"))

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

import reference

HERE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent / "zoo")

ENCODER = dict(
    vocab_size=37,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=30,
    type_vocab_size=2,
)
ROBERTA = {**ENCODER, "max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1}
DECODER = dict(
    vocab_size=41,
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=44,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
CASES = {
    "bert_mlm": (BertForMaskedLM, BertConfig(**ENCODER, layer_norm_eps=1e-5)),
    "bert_classes": (BertForSequenceClassification, BertConfig(**ENCODER, hidden_act="gelu_new", num_labels=3)),
    "bert_regression": (BertForSequenceClassification, BertConfig(**ENCODER, hidden_act="relu", num_labels=1)),
    "bert": (BertModel, BertConfig(**{**ENCODER, "num_attention_heads": 4})),
    "roberta_mlm": (RobertaForMaskedLM, RobertaConfig(**ROBERTA, hidden_act="gelu_new")),
    "roberta_classes": (RobertaForSequenceClassification, RobertaConfig(**ROBERTA, num_labels=4)),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(**DECODER, head_dim=8, sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 300.0}),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **{**DECODER, "hidden_size": 36},
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
    ),
}
LENGTHS = [17, 5, 11]


def randomise(model):
    """Every parameter, large enough for attention to prefer some keys clearly."""
    generator = torch.Generator().manual_seed(20)
    done = set()
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in done:
            continue
        done.add(parameter.data_ptr())
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() == 2:
            value = noise * (1.5 / parameter.shape[1] ** 0.5 if "embed" not in name else 0.8)
        else:
            value = 0.3 * noise + (1.0 if name.endswith("norm.weight") or name.endswith("Norm.weight") else 0.0)
        parameter.data = value.to(torch.float32)
    model.tie_weights()


def rows(config, encoder, padding):
    generator = torch.Generator().manual_seed(21)
    ids, types, labels = [], [], []
    for length in LENGTHS:
        gap = max(LENGTHS) - length
        text = torch.randint(3, config.vocab_size, (length,), generator=generator).tolist()
        known = torch.randint(3, config.vocab_size, (length,), generator=generator).tolist()
        # Encoders are asked for a third of the tokens, decoders for all but the first few.
        kept = [(at % 3 == 1) if encoder else at > 1 for at in range(length)]
        ids.append(text + [padding] * gap)
        types.append([0 if at < length // 2 or config.model_type != "bert" else 1 for at in range(length)] + [0] * gap)
        labels.append([label if keep else -100 for label, keep in zip(known, kept)] + [-100] * gap)
    return ids, types, labels


def main():
    torch.set_num_threads(1)
    reference.make_double_exact()
    shutil.rmtree(HERE, ignore_errors=True)
    for case, (kind, config) in CASES.items():
        folder = HERE / case
        torch.manual_seed(22)
        # The eager form rounds probabilities to f32.
        config._attn_implementation = "sdpa"
        model = kind(config).eval()
        randomise(model)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        encoder = config.model_type in ("bert", "roberta")
        padding = config.pad_token_id if config.pad_token_id is not None else 0
        ids, types, labels = rows(config, encoder, padding)
        batch = {"ids": ids, "lengths": LENGTHS, "types": types}
        mask = torch.tensor([[1] * n + [0] * (max(LENGTHS) - n) for n in LENGTHS])
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": mask}
        if config.model_type == "bert":
            inputs["token_type_ids"] = torch.tensor(types)
        if kind is BertModel:
            given = None
        elif "Sequence" in kind.__name__:
            batch["row_labels"] = [2, 0, 1] if config.num_labels > 1 else [0.75, -1.5, 2.25]
            given = torch.tensor(batch["row_labels"])
        else:
            batch["labels"] = labels
            given = torch.tensor(labels)
        expected = {}
        for suffix, dtype in [("", torch.float32), ("64", torch.float64)]:
            wide = model.to(dtype)
            if given is not None and given.is_floating_point():
                given = given.to(dtype)
            extra = {} if given is None else {"labels": given}
            with torch.no_grad():
                output = wide(**inputs, **extra, output_hidden_states=True)
            expected["hidden" + suffix] = output.hidden_states[-1]
            if given is not None:
                expected["logits" + suffix] = output.logits
                expected["loss" + suffix] = output.loss.reshape(1)
        save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")
        for file in folder.iterdir():
            file.chmod(0o644)
        (folder / "batch.json").write_text(json.dumps(batch) + "\n")
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions) + "\n")


main()
