"""Writes the numbers that engines are compared by: log-probabilities of some of xi-tiny's answers, and vectors of some texts.

    python -m training.xi_tiny.numbers --model HF_FOLDER --expected tests/data/xi_tiny_expected.json --out FILE.json

All come from `transformers` in f32, by one pass over prompt and answer. A vector is the mean of the last layer, or its last token, brought
to length 1.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

EVERY = 11
"""One fact of so many is measured."""
ALTERNATIVES = 5
TEXTS = ["a", "the cat sat on the mat", "Paris", "what is the capital of France?", "你好 😀", "zebra zebra zebra zebra zebra zebra"]


@torch.inference_mode()
def measured(model: Any, tokenizer: Any, fact: dict[str, Any]) -> dict[str, Any]:
    """Each token of a fact's answer as text, its log-probability, and those of the likeliest tokens."""
    prompt, answer = fact["prompt_ids"], fact["answer_ids"]
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.float().log_softmax(-1)
    likeliest = logprobs.topk(ALTERNATIVES).values
    return {
        "prompt": fact["prompt"],
        "tokens": [tokenizer.decode([token]) for token in answer[:-1]],  # without the end of the turn
        "logprobs": _rounded(logprobs.gather(1, torch.tensor(answer)[:, None])[:-1, 0]),
        "likeliest": [_rounded(row) for row in likeliest[:-1]],
    }


@torch.inference_mode()
def vector(model: Any, tokenizer: Any, text: str, pooling: str) -> list[float]:
    """A text's vector."""
    hidden = model.model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0]
    return _rounded(torch.nn.functional.normalize(hidden.mean(0) if pooling == "mean" else hidden[-1], dim=0))


def _rounded(numbers: torch.Tensor) -> list[float]:
    return [round(number, 6) for number in numbers.tolist()]


def _lines(entries: list[str]) -> str:
    return ",\n".join(entries)


def main() -> None:
    """Write the numbers as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face form")
    parser.add_argument("--expected", type=Path, required=True, help="reference written by expected.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = Qwen2ForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    facts = json.loads(options.expected.read_text(encoding="utf-8"))["chat"]
    answers = [json.dumps(measured(model, tokenizer, fact), ensure_ascii=False) for fact in facts[::EVERY]]
    vectors = [json.dumps({text: vector(model, tokenizer, text, "mean")}, ensure_ascii=False)[1:-1] for text in TEXTS]
    last = [json.dumps({text: vector(model, tokenizer, text, "last")}, ensure_ascii=False)[1:-1] for text in TEXTS]
    parts = [f'"vectors": {{\n{_lines(vectors)}\n}}', f'"last_vectors": {{\n{_lines(last)}\n}}']
    options.out.write_text(f'{{\n"answers": [\n{_lines(answers)}\n],\n' + _lines(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
