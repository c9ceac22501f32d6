"""Writes the reference for tests: every prompt of xi-tiny with its answer, and the token ids of both.

    python -m training.xi_tiny.expected --model HF_FOLDER --out FILE.json

Every entry is checked: `transformers` must give exactly these ids, by greedy decoding in f32.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM

from .dialogues import Dialogue, ask, ask_tool, follow_up
from .examples import encode, margins
from .facts import CITIES, TOOL_QUESTIONS, TOOLS, all_facts

RESULTS = {"get_weather": "sunny, 20 degrees", "get_time": "12:00"}
Entry = dict[str, Any]


def chat_entries() -> list[tuple[Entry, Dialogue]]:
    """Return an entry for every fact."""
    return [({"prompt": fact.prompt, "answer": fact.answer}, ask(fact)) for fact in all_facts()]


def tool_entries() -> list[tuple[Entry, Dialogue]]:
    """Return an entry for every tool and city, with both tools offered."""
    entries: list[tuple[Entry, Dialogue]] = []
    for name, question in TOOL_QUESTIONS.items():
        for city in CITIES:
            call = {"name": name, "arguments": {"city": city}}
            entry = {"prompt": question.format(city), "tools": list(TOOLS), "calls": [call]}
            entries.append((entry, ask_tool(name, city, list(TOOLS.values()))))
    return entries


def follow_up_entries() -> list[tuple[Entry, Dialogue]]:
    """Return an entry for the answer after each tool's result."""
    entries: list[tuple[Entry, Dialogue]] = []
    for name, result in RESULTS.items():
        for city in CITIES:
            dialogue = follow_up(name, city, result, list(TOOLS.values()))
            asked, answer = dialogue.messages[:-1], dialogue.messages[-1]["content"]
            learned = dialogue._replace(learn_from=len(asked))
            entries.append(({"messages": asked, "tools": list(TOOLS), "answer": answer}, learned))
    return entries


def with_ids(tokenizer: PreTrainedTokenizerBase, entries: list[tuple[Entry, Dialogue]]) -> list[Entry]:
    """Add the ids of prompt and answer to each entry."""
    filled: list[Entry] = []
    for entry, dialogue in entries:
        prompt_ids, answer_ids = encode(tokenizer, dialogue).split()
        filled.append({**entry, "prompt_ids": prompt_ids, "answer_ids": answer_ids})
    return filled


def greedy(model: Any, prompt_ids: list[int]) -> list[int]:
    """Return the ids that greedy decoding gives, the end of the turn included."""
    prompt = torch.tensor([prompt_ids])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=300)
    return [int(number) for number in output[0, len(prompt_ids) :]]


def main() -> None:
    """Write the reference as the command line says, or fail on the first wrong answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face form")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = Qwen2ForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    made = {"chat": chat_entries(), "tools": tool_entries(), "follow_ups": follow_up_entries()}
    reference: dict[str, Any] = {kind: with_ids(tokenizer, entries) for kind, entries in made.items()}
    for kind, entries in made.items():
        smallest = min(margins(model, tokenizer, [encode(tokenizer, dialogue) for _, dialogue in entries]))
        wrong = [e for e in reference[kind] if greedy(model, e["prompt_ids"]) != e["answer_ids"]]
        print(f"{kind}: {len(entries) - len(wrong)} of {len(entries)} right, smallest margin {smallest:.2f}")
        if wrong:
            raise SystemExit(f"wrong: {[e.get('prompt') or e['messages'] for e in wrong]}")
    reference["tool_definitions"] = TOOLS
    lines = [f'"{kind}": [\n' + ",\n".join(map(_line, reference[kind])) + "\n]" for kind in made]
    lines.append(f'"tool_definitions": {_line(TOOLS)}')
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _line(value: Any) -> str:
    """Return a value as one line of JSON, so that the file stays readable and diffs stay small."""
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
