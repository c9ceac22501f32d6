"""Trains xi-tiny from nothing, on one CPU core, and writes it in Hugging Face form.

    python -m training.xi_tiny.train --out OUT

The run depends only on its seed and steps, never on the clock. A main stage is followed by short ones that ask more
often what the model gets wrong or is unsure of, until it is sure of everything.
"""

import argparse
import json
import os
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from . import tokenizer as tiny_tokenizer
from .dialogues import ask, ask_tool, follow_up, random_dialogue
from .examples import Example, batches, encode, label_logits, margins, token_id
from .facts import CITIES, GET_TIME, GET_WEATHER, TOOLS, all_facts
from .tokenizer import END_OF_TEXT, MAX_TOKENS, TURN_END, VOCAB_SIZE

ROPE_THETA = 10000.0
POOL = 30_000
SURE = 3.0
MENDING_STAGES = 6
WARM_UP = 100


class Stage(NamedTuple):
    """One learning-rate cycle."""

    name: str
    steps: int
    rate: float


def new_model(tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """Return the untrained model: a Qwen2 of about one million parameters."""
    end, pad = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen2ForCausalLM(config)
    stops = {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad}
    model.generation_config = GenerationConfig.from_dict(stops)
    return model


class Teacher:
    """Holds a model with what it is to learn, and trains it stage by stage."""

    def __init__(self, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.pad = token_id(tokenizer, END_OF_TEXT)
        self.rng = Random(seed)
        self.facts = all_facts()
        self.weights = [1.0] * len(self.facts)
        self.fact_checks = [encode(tokenizer, ask(fact)) for fact in self.facts]
        self.tool_checks = self._tool_checks()
        self.started = time.monotonic()

    def _tool_checks(self) -> list[Example]:
        """Return every tool call, with both tools and with one, and a follow-up of each."""
        both = [GET_WEATHER, GET_TIME]
        results = {"get_weather": "sunny, 20 degrees", "get_time": "12:00"}
        calls = [ask_tool(name, city, tools) for name in TOOLS for city in CITIES for tools in (both, [TOOLS[name]])]
        reports = [follow_up(name, city, results[name], both) for name in TOOLS for city in CITIES]
        return [encode(self.tokenizer, dialogue) for dialogue in calls + reports]

    def run(self, stage: Stage) -> None:
        """Train through one stage on a new pool of dialogues."""
        pool = [encode(self.tokenizer, random_dialogue(self.rng, self.facts, self.weights)) for _ in range(POOL)]
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=stage.rate, betas=(0.9, 0.95), weight_decay=0.01)
        step = 0
        while step < stage.steps:
            for batch in batches(pool, self.rng):
                rate = stage.rate * min(1.0, (step + 1) / WARM_UP) * max(0.02, 1 - step / stage.steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._step(optimizer, batch)
                step += 1
                if step % 250 == 0:
                    self._say(f"{stage.name} step {step} loss {loss:.4f}")
                if step == stage.steps:
                    break

    def _step(self, optimizer: torch.optim.Optimizer, batch: list[Example]) -> float:
        """Take one step of gradient descent and return the loss before it."""
        logits, targets, _ = label_logits(self.model, self.pad, batch)
        loss = cross_entropy(logits, targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def check(self) -> bool:
        """Measure the margins of the weights as saved in f16, ask unsure facts more often, and say if all is sure."""
        rounded = Qwen2ForCausalLM(self.model.config)
        rounded.load_state_dict({name: value.half().float() for name, value in self.model.state_dict().items()})
        facts = margins(rounded, self.tokenizer, self.fact_checks)
        tools = margins(rounded, self.tokenizer, self.tool_checks)
        self.weights = [1.0 if margin > SURE else 8.0 for margin in facts]
        for kind, found in (("facts", facts), ("tools", tools)):
            right, sure = sum(m > 0 for m in found), sum(m > SURE for m in found)
            self._say(f"{kind}: right {right}, sure {sure} of {len(found)}, smallest margin {min(found):.2f}")
        wrong = [fact.prompt for fact, margin in zip(self.facts, facts, strict=True) if margin <= 0]
        self._say(f"wrong: {wrong[:8]}")
        return min(facts + tools) > SURE

    def _say(self, line: str) -> None:
        """Print a line of progress with the seconds since the start."""
        print(f"{time.monotonic() - self.started:6.0f}s {line}", flush=True)


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Write the weights as f16 with their configuration."""
    copy = Qwen2ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    torch.nn.Module.to(copy, torch.float16)
    copy.save_pretrained(folder)
    # Older readers, mlx-lm among them, look for the base of the rotary embedding only at the top level.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"rope_theta": ROPE_THETA}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # mlx-lm's pipeline loading wants an index, even of one file.
    weights = {name: value for name, value in copy.state_dict().items() if name != "lm_head.weight"}
    total = sum(value.numel() * value.element_size() for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(weights, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=5000, help="steps of the main stage")
    parser.add_argument("--mending-steps", type=int, default=1000, help="steps of each stage after it")
    parser.add_argument("--seed", type=int, default=9997)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    built = tiny_tokenizer.build()
    tiny_tokenizer.save(built, options.out)
    model = new_model(built)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    teacher = Teacher(model, AutoTokenizer.from_pretrained(options.out), options.seed)
    stages = [Stage("main", options.steps, 3e-3)]
    stages += [Stage(f"mending {n}", options.mending_steps, 1.5e-3) for n in range(1, MENDING_STAGES + 1)]
    for stage in stages:
        teacher.run(stage)
        save(model, options.out)
        if teacher.check():
            break


if __name__ == "__main__":
    main()
