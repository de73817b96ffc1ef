"""Fine-tunes a Hugging Face folder with PEFT on the rows and by the rules of a lowrank run, and says what it costs.

    peer_train.py MODEL TRAIN.jsonl --init ADAPTER --steps 20 --batch-size 4 --lr 2e-4 --threads 2

TRAIN.jsonl holds {"prompt", "completion"} rows, used in file order without end. The adapter's configuration and first
values come from ADAPTER. AdamW without decay, constant rate, clipping at 1. Prints one JSON object a step (`loss` before the
update, `seconds` of forward, backward and update, `tokens` without padding) and at the end `peak_rss_mb` (VmHWM, MiB).
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

import reference
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def peak_rss():
    """The most memory that this process ever held, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("model")
    arguments.add_argument("train")
    arguments.add_argument("--init", required=True, help="folder of the initial adapter")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--batch-size", type=int, default=4)
    arguments.add_argument("--lr", type=float, default=2e-4)
    arguments.add_argument("--max-length", type=int, default=512)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--out", help="save the adapter here")
    arguments = arguments.parse_args()

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    end = reference.end_token(model.config)
    model = PeftModel.from_pretrained(model, arguments.init, is_trainable=True).train()
    lines = [json.loads(line) for line in Path(arguments.train).read_text().splitlines() if line.strip()]
    rows = [reference.tokenise(tokenizer, end, row["prompt"], row["completion"], arguments.max_length) for row in lines]

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.lr, weight_decay=0.0)
    for step in range(arguments.steps):
        first = step * arguments.batch_size
        batch = reference.pad([rows[i % len(rows)] for i in range(first, first + arguments.batch_size)])
        start = time.perf_counter()
        loss = reference.loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        line = {"step": step + 1, "loss": loss.item(), "seconds": round(seconds, 4), "tokens": sum(batch["lengths"])}
        print(json.dumps(line), flush=True)
    print(json.dumps({"peak_rss_mb": round(peak_rss(), 1)}))
    if arguments.out:
        reference.save_adapter(model, arguments.out)


if __name__ == "__main__":
    main()
