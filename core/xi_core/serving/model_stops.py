"""A model's own stops, which its family names: strings, and ids of tokens. They count beside a request's; `ignore_eos` leaves them out.

A string that is written as one special token means that token: special tokens have no text, so that no answer's text would ever hold it.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from xi_core.engine.base import Tokenizer
from xi_core.models.special_tokens import special_tokens
from xi_core.serving.request import Job
from xi_core.wire.plan import LaunchPlan


class ModelStops(Struct, frozen=True):
    """What ends an answer beside the end tokens that the model's own files name."""

    strings: tuple[str, ...] = ()
    ids: frozenset[int] = frozenset()

    def of(self, job: Job) -> ModelStops:
        """Those that count for a request, its own strings first."""
        return ModelStops(tuple(job.stops)) if job.ignore_eos else ModelStops((*job.stops, *self.strings), self.ids)


NO_STOPS = ModelStops()


def by_tokenizer(plan: LaunchPlan, tokenizer: Tokenizer) -> ModelStops:
    """The plan's stops, special tokens found by the loaded model's own tokenizer."""
    found: dict[str, int] = {}
    for text in plan.stop:
        ids = tokenizer.encode(text)
        if len(ids) == 1 and not tokenizer.token_bytes(ids[0]):
            found[text] = ids[0]
    return _sorted_out(plan, found)


def by_files(plan: LaunchPlan) -> ModelStops:
    """The plan's stops for an engine that has the tokenizer itself: special tokens found in a Hugging Face directory's files.

    A GGUF file's aren't looked for: what can run it knows them.
    """
    directory = Path(plan.artifact.path)
    return _sorted_out(plan, special_tokens(plan.artifact.path) if plan.stop and directory.is_dir() else {})


def _sorted_out(plan: LaunchPlan, special: dict[str, int]) -> ModelStops:
    strings = tuple(text for text in plan.stop if text not in special)
    return ModelStops(strings, frozenset(plan.stop_token_ids) | {special[text] for text in plan.stop if text in special})
