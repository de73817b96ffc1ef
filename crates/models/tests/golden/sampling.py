"""Writes sampling.json: what transformers' filters of temperature, top-k and top-p leave. Run it with transformers installed:
python sampling.py"""

import json
import pathlib

import torch
import transformers
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

# (temperature, top_k or none, top_p)
SETTINGS = [
    (1.0, None, 1.0),
    (0.35, None, 1.0),
    (2.5, None, 1.0),
    (1.0, 5, 1.0),
    (0.7, 1, 1.0),
    (1.3, 40, 1.0),
    (1.0, None, 0.9),
    (1.7, None, 0.55),
    (0.5, None, 0.02),
    (1.0, None, 0.999),
    (0.8, 7, 0.8),
    (3.0, 12, 0.95),
    (1.1, 3, 0.5),
]
VOCAB = 37


def main():
    cases = []
    for number, (temperature, top_k, top_p) in enumerate(SETTINGS):
        generator = torch.Generator().manual_seed(number)
        logits = 3 * torch.randn(VOCAB, generator=generator, dtype=torch.float64)
        scores = TemperatureLogitsWarper(temperature)(None, logits[None])
        if top_k is not None:
            scores = TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(None, scores)
        cases.append(
            {
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "logits": logits.tolist(),
                "probabilities": scores[0].softmax(-1).tolist(),
            }
        )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    path = pathlib.Path(__file__).with_name("sampling.json")
    path.write_text(json.dumps({"versions": versions, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
