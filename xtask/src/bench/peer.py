"""Measures PyTorch with transformers and PEFT for `cargo xtask bench --peer`.

    peer.py REQUEST

REQUEST is a JSON object: `kind` (step, rate, ops, generate), the configuration and `threads`. Prints one JSON object a cell:
{"axes": {..}, "measures": [{"name", "unit", "values"}], "facts": {..}}, as our own processes do.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch


def measure(name, unit, values):
    return {"name": name, "unit": unit, "values": values}


def report(measures, facts=None, axes=None):
    """Prints a cell. Versions go into the report's head."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    facts = {"versions": versions, **(facts or {})}
    print(json.dumps({"axes": axes or {}, "measures": measures, "facts": facts}), flush=True)


def peak_rss():
    """The most memory that this process ever held, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def load(request):
    """The base model in its dtype."""
    import transformers

    dtype = getattr(torch, request["dtype"])
    return transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype)


def adapt(model, request):
    """LoRA on all linear layers, B = 0."""
    import peft

    config = peft.LoraConfig(
        r=request["rank"],
        lora_alpha=2 * request["rank"],
        target_modules="all-linear",
        use_dora=request["family"] == "dora",
    )
    return peft.get_peft_model(model, config)


def step(request):
    """Training steps as a user writes them: loss, backward, clip, AdamW."""
    model = adapt(load(request), request)
    if request["recompute"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0)
    ids = torch.tensor(json.loads(Path(request["tokens"]).read_text()))
    run = torch.compile(model) if request["compile"] else model
    seconds, cpu, first = [], [], None
    for _ in range(request["warm_steps"] + request["steps"]):
        start, start_cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=request["autocast"]):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        first = loss.item() if first is None else first
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    warm = request["warm_steps"]
    measures = [
        measure("step_seconds", "s", seconds[warm:]),
        measure("cpu_seconds", "s", cpu[warm:]),
        measure("peak_rss", "MiB", [peak_rss()]),
    ]
    report(measures, {"first_loss": first, "trained_parameters": sum(param.numel() for param in params)})


def rate(request):
    """Products of large matrices."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[request["precision"]]
    tokens, n_out, n_in = request["layer"]
    square = request["square"]
    for what, rows, columns, inner in (
        ("frozen layer", tokens, n_out, n_in),
        ("square product", square, square, square),
    ):
        x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        rates = []
        with torch.no_grad():
            torch.nn.functional.linear(x, weight)
            for _ in range(request["repeats"]):
                start = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                rates.append(2 * rows * columns * inner / (time.perf_counter() - start) / 1e9)
        report([measure("product_rate", "GFLOP/s", rates)], axes={"product": what})


def main():
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    {"step": step, "rate": rate}[request["kind"]](request)


if __name__ == "__main__":
    main()
