"""The part of `EngineKit` about whole answers: greedy, batched, how long, how many, and what the prompt is made of."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from xi_core.engine.base import TokenEngine
from xi_core.serving.request import CHAT
from xi_core.testing.harness import Harness
from xi_core.testing.kit_base import KitBase
from xi_core.testing.proofs import proves


class AnswerChecks(KitBase):
    """Whole answers."""

    def test_probe_token(self, harness: Harness) -> None:
        harness.probe()

    def test_greedy_repeats(self, harness: Harness) -> None:
        for prompt in self.prompts:
            first = self.ask(harness, prompt, temperature=0)
            assert first.status == 200, first.raw
            assert first.text
            assert self.ask(harness, prompt, temperature=0).text == first.text

    def test_many_at_once_equal_alone(self, harness: Harness) -> None:
        alone = {prompt: self.ask(harness, prompt, temperature=0).text for prompt in self.prompts}
        calls = [(prompt, self.start(harness, prompt, temperature=0)) for prompt in self.prompts * 8]
        for prompt, call in calls:
            assert call.answer().text == alone[prompt]

    @proves("max_tokens")
    def test_max_tokens_and_usage(self, harness: Harness) -> None:
        self.supports(harness, "max_tokens")
        answer = self.ask(harness, self.prompts[-1], temperature=0, max_tokens=4)
        assert answer.finishes == ["length"]
        assert answer.usage["completion_tokens"] == 4
        assert answer.usage["prompt_tokens"] > 0
        assert answer.usage["total_tokens"] == answer.usage["prompt_tokens"] + 4
        beyond = self.ask(harness, self.prompts[-1], temperature=0, max_tokens=2 * harness.model.context_length)
        assert beyond.status == 200, beyond.raw

    @proves("n")
    def test_n_choices(self, harness: Harness) -> None:
        self.supports(harness, "n")
        one = self.ask(harness, self.prompts[0], temperature=0)
        for stream in (False, True):
            more = self.ask(
                harness,
                self.prompts[0],
                temperature=0,
                n=3,
                stream=stream,
                **({"stream_options": {"include_usage": True}} if stream else {}),
            )
            assert more.texts == [one.text] * 3
            assert len(more.finishes) == 3
            assert more.usage["completion_tokens"] == 3 * one.usage["completion_tokens"]
            assert more.usage["prompt_tokens"] == one.usage["prompt_tokens"]

    @proves("return_token_ids")
    def test_token_ids(self, harness: Harness) -> None:
        self.supports(harness, "return_token_ids", "max_tokens")
        for fields in ({}, {"max_tokens": 4}, {"stop": ["\u0001never"]}):
            asked: dict[str, Any] = {"temperature": 0, "return_token_ids": True, **fields}
            whole = self.ask(harness, self.prompts[0], **asked)
            assert len(whole.token_ids) == whole.usage["completion_tokens"]
            assert len(whole.prompt_token_ids) == whole.usage["prompt_tokens"]
            if isinstance(harness.engine, TokenEngine):
                data = b"".join(map(harness.engine.tokenizer.token_bytes, whole.token_ids))
                assert data.decode("utf-8", "ignore").lstrip(" ") == whole.text.lstrip(" ")
            streamed = self.ask(harness, self.prompts[0], stream=True, **asked)
            assert (streamed.token_ids, streamed.prompt_token_ids) == (whole.token_ids, whole.prompt_token_ids)
        unasked = self.ask(harness, self.prompts[0], temperature=0, max_tokens=2)
        assert b"token_ids" not in unasked.raw

    def test_parts_of_a_message_are_lines(self, harness: Harness) -> None:
        if self.route != CHAT:
            return  # prompts have no parts
        first, second = self.prompts[0], self.prompts[-1]
        parts = [{"type": "text", "text": text} for text in (first, second)]
        answer = harness.chat([{"role": "user", "content": parts}], temperature=0)
        plain = self.ask(harness, f"{first}\n{second}", temperature=0)
        assert (answer.text, answer.usage) == (plain.text, plain.usage)

    def test_messages_without_content(self, harness: Harness) -> None:
        if self.route != CHAT:
            return  # prompts have no messages
        question = {"role": "user", "content": self.prompts[0]}
        silent = harness.chat([question, {"role": "assistant", "content": None}, question], temperature=0)
        assert silent.status == 200, silent.raw
        assert harness.chat([{"role": "user"}]).status == 400

    @proves("chat_template_kwargs")
    def test_template_variables(self, harness: Harness) -> None:
        self.supports(harness, "chat_template_kwargs")
        template = "{{ words }}{% if loud %} LOUD LOUD LOUD LOUD{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
        with Harness(replace(self.plan, chat_template=template)) as other:
            sizes = [
                self.ask(other, "Hi", max_tokens=1, chat_template_kwargs=variables).usage["prompt_tokens"]
                for variables in (None, {"words": "", "loud": False}, {"words": "a, b, c, d, e, f"}, {"loud": True}, {"other": 1})
            ]
        assert sizes[0] == sizes[1] == sizes[4], "what the template does not read changes nothing"
        assert sizes[0] < min(sizes[2], sizes[3]), "what it reads does"
        for wrong in ({"messages": "x"}, {"words": ["x"]}, {"1": 1}):
            answer = self.ask(harness, "Hi", chat_template_kwargs=wrong)
            assert (answer.status, (answer.error or {}).get("param", "").partition("[")[0]) == (400, "chat_template_kwargs")

    @proves("ignore_eos")
    def test_ignore_eos(self, harness: Harness) -> None:
        self.supports(harness, "ignore_eos", "max_tokens")
        usage = self.ask(harness, self.prompts[0], temperature=0, max_tokens=200).usage
        most = usage["completion_tokens"] + 8
        answer = self.ask(harness, self.prompts[0], temperature=0, max_tokens=most, ignore_eos=True)
        assert (answer.finishes, answer.usage["completion_tokens"]) == (["length"], most)

    @proves("echo")
    def test_echo(self, harness: Harness) -> None:
        self.supports(harness, "echo")
        for prompt in self.prompts:
            alone = self.ask(harness, prompt, temperature=0)
            for stream in (False, True):
                assert self.ask(harness, prompt, temperature=0, echo=True, stream=stream).text == prompt + alone.text
