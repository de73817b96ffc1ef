"""Writes smollm2/generate.json: what transformers writes greedily, in f32, after eleven prompts with SmolLM2-135M-Instruct:
ten to 40 new tokens, and one to its end before that.

Needs `cargo xtask fetch --only smollm2` and `cargo xtask peer-env`; run it with `.peer/bin/python`. A case holds the prompt
(`chat`: as a user's message), its tokens, and at most 40 new ones without the end token; `margin` is the smallest distance
between the likeliest token and the next, which must be far above what two correct runs differ by.
"""

import json
import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models/SmolLM2-135M-Instruct"
NEW_TOKENS = 40
LEAST_MARGIN = 2e-3

PROMPTS = [
    ("The lighthouse keeper climbed the stairs, and at the top", False),
    ("Three things to pack for a night on the shore:\n1.", False),
    ("def area(radius):\n    \"\"\"The area of a circle.\"\"\"\n", False),
    ("On the map of 1874, the harbour", False),
    ("Das Wetter an der Küste ist heute", False),
    ("emoji: 🌊 🦀 🐚", False),
    ("Water boils at a lower temperature on a mountain because", False),
    ("{\"name\": \"harbour\", \"boats\": [", False),
    ("The recipe calls for two cups of flour and", False),
    ("Why is the sea salty? Explain it to a child.", True),
    ("Write a short poem about a ferry.", True),
]


def main():
    # One thread always adds up in the same order.
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    cases = []
    for prompt, chat in PROMPTS:
        if chat:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            prompt_ids = tokenizer(prompt)["input_ids"]
        written = model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = written.sequences[0, len(prompt_ids) :].tolist()
        top = torch.stack([row[0] for row in written.logits]).topk(2).values
        margin = (top[:, 0] - top[:, 1]).min().item()
        finish = "length"
        if ids[-1] == tokenizer.eos_token_id:
            ids, finish = ids[:-1], "stop"
        text = tokenizer.decode(ids, skip_special_tokens=True)
        print(f"{len(ids)} tokens, margin {margin:.4f}: {text!r}")
        assert margin > LEAST_MARGIN, "too near to call: take another prompt"
        cases.append(
            {
                "prompt": prompt,
                "chat": chat,
                "prompt_ids": prompt_ids,
                "ids": ids,
                "text": text,
                "finish": finish,
                "margin": round(margin, 4),
            }
        )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    golden = {"versions": versions, "cases": cases}
    path = Path(__file__).with_name("smollm2") / "generate.json"
    lines = json.dumps(golden, ensure_ascii=False).replace('{"prompt"', '\n{"prompt"')
    path.write_text(lines + "\n")


if __name__ == "__main__":
    main()
