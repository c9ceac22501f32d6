"""The part of `EngineKit` about text as it comes: streams, stop strings and characters over token borders."""

from __future__ import annotations

from xi_core.testing.harness import Harness
from xi_core.testing.kit_base import KitBase
from xi_core.testing.proofs import proves


class StreamChecks(KitBase):
    """Streams and stop strings."""

    @proves("stream_options")
    def test_streamed_equals_whole(self, harness: Harness) -> None:
        self.supports(harness, "stream_options")
        for prompt in self.prompts:
            whole = self.ask(harness, prompt, temperature=0)
            streamed = self.ask(harness, prompt, temperature=0, stream=True, stream_options={"include_usage": True})
            assert streamed.streamed
            assert streamed.raw.endswith(b"data: [DONE]\n\n")
            assert (streamed.text, streamed.finishes, streamed.usage) == (whole.text, whole.finishes, whole.usage)

    @proves("stop")
    def test_stop_strings(self, harness: Harness) -> None:
        self.supports(harness, "stop")
        for prompt in self.prompts:
            whole = self.ask(harness, prompt, temperature=0).text
            for start, end in ((len(whole) // 2, len(whole) // 2 + 3), (1, 3), (len(whole) - 2, len(whole) - 1)):
                stop = whole[start:end]
                for stream in (False, True):
                    answer = self.ask(harness, prompt, temperature=0, stop=["\u0001never", stop], stream=stream)
                    assert answer.text == whole[: whole.index(stop)], f"stop {stop!r}, stream {stream}"
                    assert answer.finishes == ["stop"]

    def test_characters_are_never_split(self, harness: Harness) -> None:
        for prompt in self.prompts:
            answer = self.ask(harness, prompt, temperature=0, stream=True)
            assert "\ufffd" not in answer.text
            whole, tokens = answer.text, self.ask(harness, prompt, temperature=0).usage["completion_tokens"]
            for most in range(1, min(tokens, 24)):
                cut = self.ask(harness, prompt, temperature=0, max_tokens=most)
                assert whole.startswith(cut.text), "a character that is cut short does not come out"
