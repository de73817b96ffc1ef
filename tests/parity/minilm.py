"""Writes minilm/: what transformers makes of ten texts with models/all-MiniLM-L6-v2 (`cargo xtask fetch`).

    texts.jsonl            the texts, the last two of them pairs
    tokens.json            the ids and types of each text's tokens, truncated to 256
    expected.safetensors   mean, cls [10, 384]: the pooled last hidden states, in f32 and (mean64, cls64) in f64
    versions.json          what made the files

    python minilm.py [folder]
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
HERE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent / "minilm")
MAX_LENGTH = 256

ROWS = [
    {"text": "A man is playing a guitar on the street."},
    {"text": "Someone performs music outdoors."},
    {"text": ""},
    {"text": " \t\n "},
    {"text": "The QUICK brown Fox, jumped; over 13 lazy dogs... didn't it?"},
    {"text": "Zo\u00eb na\u00efvely ate cr\u00e8me br\u00fbl\u00e9e; \u6771\u4eac\u306f\u4eca\u65e5\u3082\u96e8\u3002 \U0001f600 \u043f\u0440\u0438\u0432\u0435\u0442"},
    {"text": "antidisestablishmentarianism [MASK] floccinaucinihilipilification [SEP] x"},
    {"text": " ".join(f"Sentence number {i} says that rivers run down hills." for i in range(60))},
    {"text": "What is the capital of France?", "text_pair": "Paris is the capital and largest city of France."},
    {"text": "Is it?", "text_pair": "A far longer second text, which has a few more words than the question had."},
]


def main():
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModel.from_pretrained(MODEL, attn_implementation="sdpa").eval()
    expected, tokens = {}, []
    for suffix, dtype in [("", torch.float32), ("64", torch.float64)]:
        model = model.to(dtype)
        means, firsts = [], []
        for row in ROWS:
            inputs = tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            if not suffix:
                tokens.append({name: inputs[name][0].tolist() for name in ("input_ids", "token_type_ids")})
            with torch.no_grad():
                hidden = model(**inputs).last_hidden_state[0]
            means.append(hidden.mean(0))
            firsts.append(hidden[0])
        expected["mean" + suffix] = torch.stack(means)
        expected["cls" + suffix] = torch.stack(firsts)
    save_file(expected, HERE / "expected.safetensors")
    (HERE / "expected.safetensors").chmod(0o644)
    (HERE / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (HERE / "tokens.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in tokens) + "\n]\n")
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions) + "\n")


main()
