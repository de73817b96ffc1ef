"""LoRA on an encoder for a classification task with PyTorch and PEFT, as `lowrank train` does it: the peer of this record.

peer.py MODEL TRAIN.jsonl DEV.jsonl --seed S [--epochs E] [--lr R] [--batch B] [--max-length L] [--no-dropout]

Prints one JSON object: metrics on DEV before and after, seconds of training and of evaluation, peak memory.
Written for torch 2.11, transformers 5.23, peft 0.21.2; two threads.
"""
import argparse, json, math, random, resource, time
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

p = argparse.ArgumentParser()
p.add_argument("model"); p.add_argument("train"); p.add_argument("dev")
p.add_argument("--seed", type=int, required=True); p.add_argument("--epochs", type=int, default=3)
p.add_argument("--lr", type=float, default=1e-3); p.add_argument("--batch", type=int, default=32)
p.add_argument("--max-length", type=int, default=128); p.add_argument("--no-dropout", action="store_true")
p.add_argument("--steps", type=int, default=0)
a = p.parse_args()
torch.set_num_threads(int(__import__("os").environ.get("THREADS", "2")))
torch.manual_seed(a.seed); random.seed(a.seed)
rows = lambda path: [json.loads(line) for line in open(path)]
train, dev = rows(a.train), rows(a.dev)
tokenizer = AutoTokenizer.from_pretrained(a.model)
more = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) if a.no_dropout else {}
base = AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=2, dtype=torch.float32, **more)
model = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, lora_dropout=0.0,
                                         target_modules=["query", "key", "value", "dense"]))

def collate(chunk):
    x = tokenizer([r["text"] for r in chunk], truncation=True, max_length=a.max_length, padding=True, return_tensors="pt")
    return x, torch.tensor([r["label"] for r in chunk])

def evaluate():
    model.eval(); tp = tn = fp = fn = 0
    with torch.no_grad():
        for i in range(0, len(dev), 64):
            x, y = collate(dev[i:i + 64]); z = model(**x).logits.argmax(-1)
            tp += int(((z == 1) & (y == 1)).sum()); tn += int(((z == 0) & (y == 0)).sum())
            fp += int(((z == 1) & (y == 0)).sum()); fn += int(((z == 0) & (y == 1)).sum())
    d = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {"accuracy": (tp + tn) / len(dev), "matthews": (tp * tn - fp * fn) / d if d else 0.0}

params = [q for q in model.parameters() if q.requires_grad]
optimizer = torch.optim.AdamW(params, lr=a.lr, weight_decay=0.0)
per_epoch = math.ceil(len(train) / a.batch); total = a.steps or per_epoch * a.epochs
schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.06 * total), total)
before = evaluate(); start = time.time(); step = 0; losses = []
while step < total:
    order = torch.randperm(len(train)).tolist()
    model.train()
    for i in range(0, len(order), a.batch):
        x, y = collate([train[j] for j in order[i:i + a.batch]])
        loss = model(**x, labels=y).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step(); schedule.step(); optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item()); step += 1
        if step == total: break
seconds = time.time() - start; t = time.time(); after = evaluate()
print(json.dumps({"seed": a.seed, "before": before, "after": after, "steps": step, "train_seconds": round(seconds, 1),
                  "eval_seconds": round(time.time() - t, 1), "last_losses": sum(losses[-20:]) / len(losses[-20:]),
                  "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                  "trainable": sum(q.numel() for q in params)}))
