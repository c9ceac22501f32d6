"""The part of `EngineKit` about several prompts in one completions request: each is answered as if it had come alone."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import Answer, Harness
from xi_core.testing.kit_base import KitBase


class PromptChecks(KitBase):
    """Several prompts; chats have one."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_several_prompts_equal_each_alone(self, harness: Harness, stream: bool) -> None:
        prompts = list(self.prompts[:2])
        self.compare(harness, prompts, stream, n=2)
        self.compare(harness, prompts, stream, stop=["\u0001never", "e"])
        for name, value in (("return_token_ids", True), ("logprobs", 2), ("echo", True), ("structured_outputs", {"choice": ["yes"]})):
            if self.claims(harness, name):
                self.compare(harness, prompts, stream, n=2, **{name: value})

    @pytest.mark.parametrize("stream", [False, True])
    def test_several_prompts_of_a_seeded_request(self, harness: Harness, stream: bool) -> None:
        """Each prompt has the seeds that it has alone."""
        self.supports(harness, "seed", "temperature")
        if harness.model.manifest.endpoints[self.route]["seed"].state == "limited":
            pytest.skip("the manifest claims seeds for requests that run alone")
        self.compare(harness, list(self.prompts[:2]), stream, n=2, seed=7, temperature=1.5, ignore_eos=True)

    def test_more_prompts_than_slots(self, harness: Harness) -> None:
        self.compare(harness, [*self.prompts] * 8, stream=False, max_tokens=6)
        self.compare(harness, [*self.prompts] * 8, stream=True, max_tokens=6)

    def test_prompts_as_token_ids(self, harness: Harness) -> None:
        self.supports(harness, "return_token_ids")
        if self.route != COMPLETIONS:
            return
        ids = [self.ask(harness, prompt, temperature=0, return_token_ids=True).prompt_token_ids for prompt in self.prompts]
        found, texts = (self.several(harness, prompts, temperature=0) for prompts in (ids, list(self.prompts)))
        assert (found.texts, found.usage) == (texts.texts, texts.usage)

    def test_a_prompt_at_fault_is_named(self, harness: Harness) -> None:
        if self.route != COMPLETIONS:
            return
        good, long = self.prompts[0], "long " * (harness.model.context_length + 10)
        for prompts, param, code in (
            ([good, good, long], "prompt[2]", "context_length_exceeded"),
            ([good, [65]], "prompt[1]", "invalid_request"),
            ([good] * 129, "prompt", "invalid_request"),
            ([], "prompt", "invalid_request"),
        ):
            answer = self.several(harness, prompts)
            error = answer.error or {}
            assert (answer.status, error.get("param"), error.get("code")) == (400, param, code), error
            assert param in error["message"]
        harness.wait_idle(10.0)

    def test_abort_ends_all_prompts(self, harness: Harness) -> None:
        self.supports(harness, "ignore_eos")
        if self.route != COMPLETIONS:
            return
        body = {"prompt": list(self.prompts), "n": 4, "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": True}
        call = harness.submit(COMPLETIONS, body)
        call.first()
        call.abort()
        harness.wait_idle(10.0)

    def compare(self, harness: Harness, prompts: list[str], stream: bool, **fields: Any) -> None:
        """Whether a request of several prompts is answered as one request for each."""
        if self.route != COMPLETIONS:
            return
        asked = {"temperature": 0, "max_tokens": 16, **fields}
        alone = {prompt: self.ask(harness, prompt, **asked) for prompt in set(prompts)}
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        found = self.several(harness, prompts, **asked, **options)
        n = fields.get("n", 1)
        assert found.status == 200, found.raw
        assert len(found.finishes) == n * len(prompts)
        for place, prompt in enumerate(prompts):
            for choice in range(n):
                said, wanted = found.only(place * n + choice), alone[prompt].only(choice)
                assert (said.text, said.finishes) == (wanted.text, wanted.finishes), f"choice {choice} of prompt {place}, {fields}"
                if "return_token_ids" in fields:
                    assert (said.token_ids, said.prompt_token_ids) == (wanted.token_ids, wanted.prompt_token_ids)
                assert [entry["token"] for entry in said.logprobs] == [entry["token"] for entry in wanted.logprobs]
        for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert found.usage[count] == sum(alone[prompt].usage[count] for prompt in prompts)

    def several(self, harness: Harness, prompts: list[Any], **fields: Any) -> Answer:
        """The answer to one request of several prompts."""
        return harness.submit(COMPLETIONS, {"prompt": prompts, "max_tokens": 16, **fields}).answer(120.0)
