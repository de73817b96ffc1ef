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


def timed(name, shape, precision, function, inputs, repeats):
    """Forward and backward of a function of leaves."""
    inputs = [tensor.requires_grad_() for tensor in inputs]
    forward, backward = [], []
    for at in range(repeats + 1):
        start = time.perf_counter()
        y = function(*inputs)
        middle = time.perf_counter()
        grad = y.detach()
        start_backward = time.perf_counter()
        torch.autograd.grad(y, inputs, grad)
        if at:
            forward.append(middle - start)
            backward.append(time.perf_counter() - start_backward)
    measures = [measure("forward_seconds", "s", forward), measure("backward_seconds", "s", backward)]
    report(measures, axes={"op": name, "shape": shape, "precision": precision, "by": "peer"})


def ops(request):
    """The operations of our own `bench ops` that PyTorch has."""
    from torch.nn import functional

    batch, length, rank, repeats = (request[key] for key in ("batch", "length", "rank", "repeats"))
    tokens, (heads, kv_heads, dim) = batch * length, request["heads"]
    vocabulary = max(n_out for n_out, _ in request["linears"])
    hidden = next(n_in for n_out, n_in in request["linears"] if n_out == vocabulary)
    inner = max(n_in for n_out, n_in in request["linears"])
    for n_out, n_in in request["linears"]:
        shape = f"{n_out}x{n_in}"
        for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            weight = torch.randn(n_out, n_in, dtype=dtype)
            x = torch.randn(tokens, n_in, dtype=dtype)
            timed("product", shape, precision, lambda x, w=weight: functional.linear(x, w), [x], repeats)
        if n_out == vocabulary:
            continue
        weight = torch.randn(n_out, n_in)

        def low_rank(x, a, b):
            return 2.0 * functional.linear(functional.linear(x, a), b)

        def both(x, a, b, w=weight):
            return functional.linear(x, w) + low_rank(x, a, b)

        for name, function in (("product and low rank", both), ("low rank", low_rank)):
            inputs = [torch.randn(tokens, n_in), torch.randn(rank, n_in), torch.randn(n_out, rank)]
            timed(name, shape, "f32", function, inputs, repeats)

    def attention(q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def turned(x, cos, sin):
        half = dim // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    query, key = (batch, heads, length, dim), (batch, kv_heads, length, dim)
    timed("attention", "x".join(map(str, query)), "f32", attention, [torch.randn(s) for s in (query, key, key)], repeats)
    norm = torch.randn(hidden)
    timed("rms norm", f"{tokens}x{hidden}", "f32", lambda x: functional.rms_norm(x, (hidden,), norm, 1e-5), [torch.randn(tokens, hidden)], repeats)
    pair = [torch.randn(tokens, inner), torch.randn(tokens, inner)]
    timed("swiglu", f"{tokens}x{inner}", "f32", lambda gate, up: functional.silu(gate) * up, pair, repeats)
    angles = torch.randn(length, dim)
    cos, sin = angles.cos(), angles.sin()
    timed("rotary", "x".join(map(str, query)), "f32", lambda x: turned(x, cos, sin), [torch.randn(query)], repeats)
    targets = torch.randint(0, vocabulary, (tokens,))
    logits = [torch.randn(tokens, vocabulary)]
    timed("cross entropy", f"{tokens}x{vocabulary}", "f32", lambda x: functional.cross_entropy(x, targets, reduction="none"), logits, repeats)


def generate(request):
    """Greedy decoding of a fixed number of tokens."""
    model = load(request)
    if request["adapter"]:
        model = adapt(model, request)
    model.eval()
    ids, new = torch.tensor(request["prompt"]), request["new_tokens"]
    more = {"cache_implementation": "static"} if request["compile"] else {}
    if request["compile"]:
        model.forward = torch.compile(model.forward)

    def run(count):
        start = time.perf_counter()
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            **more,
        )
        return time.perf_counter() - start, out

    rates, firsts, out = [], [], None
    with torch.no_grad():
        for at in range(request["repeats"] + 1):
            first, _ = run(1)
            seconds, out = run(new)
            if at:
                rates.append(len(ids) * (new - 1) / (seconds - first))
                firsts.append(first)
    measures = [
        measure("tokens_per_second", "tokens/s", rates),
        measure("first_token_seconds", "s", firsts),
        measure("peak_rss", "MiB", [peak_rss()]),
    ]
    report(measures, {"ids": out[0, ids.shape[1] :].tolist()})


def main():
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    {"step": step, "rate": rate, "ops": ops, "generate": generate}[request["kind"]](request)


if __name__ == "__main__":
    main()
