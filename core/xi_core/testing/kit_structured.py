"""The part of `EngineKit` about structured output."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from xi_core.testing.harness import Harness
from xi_core.testing.kit_base import KitBase
from xi_core.testing.proofs import proves
from xi_core.testing.structured_checks import CASES, Case, check_valid


class StructuredChecks(KitBase):
    """Answers that must look like something."""

    runs: ClassVar[int] = 10
    """Answers of each kind that must all be valid."""

    def structured_case(self, harness: Harness, name: str) -> Case:
        """A case of structured output; skips what the manifest doesn't claim."""
        case = CASES[name]
        self.supports(harness, case.field)
        kinds = harness.model.manifest.endpoints[self.route][case.field].values
        if case.kind and kinds and case.kind not in kinds:
            answer = self.ask(harness, self.prompts[0], **case.fields)
            assert answer.status == 400
            assert answer.error is not None
            assert answer.error["param"] == f"structured_outputs.{case.kind}"
            pytest.skip(f"the manifest does not claim {case.kind} on {self.route}; it is refused")
        return case

    @proves("response_format")
    @pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.field == "response_format"])
    def test_response_format(self, harness: Harness, name: str) -> None:
        self.all_are_valid(harness, self.structured_case(harness, name))

    @proves("structured_outputs")
    @pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.field == "structured_outputs"])
    def test_structured_outputs(self, harness: Harness, name: str) -> None:
        self.all_are_valid(harness, self.structured_case(harness, name))

    def all_are_valid(self, harness: Harness, case: Case) -> None:
        """`runs` answers at temperature 1, and a greedy one, whole and streamed."""
        fields: dict[str, Any] = {**case.fields, "temperature": 1, "max_tokens": 256}
        seeds = range(self.runs if case.ends else min(self.runs, 20))  # an endless object is written until it is cut
        seeded = self.claims(harness, "seed")
        calls = [self.start(harness, self.prompts[seed % 3], **fields, **({"seed": seed} if seeded else {})) for seed in seeds]
        for answer in [call.answer(120.0) for call in calls]:
            assert answer.status == 200, answer.raw
            check_valid(case, answer.text, answer.finishes[0])
        greedy = {**case.fields, "temperature": 0, "max_tokens": 256}
        whole, streamed = self.ask(harness, self.prompts[0], **greedy), self.ask(harness, self.prompts[0], stream=True, **greedy)
        assert (streamed.text, streamed.finishes) == (whole.text, whole.finishes)
        check_valid(case, whole.text, whole.finishes[0])

    def test_structured_output_beside_free_text(self, harness: Harness) -> None:
        case = self.structured_case(harness, "choice")
        alone = self.ask(harness, self.prompts[-1], temperature=0).text
        bound = [self.start(harness, self.prompts[0], temperature=1, n=3, **case.fields) for _ in range(4)]
        free = [self.start(harness, self.prompts[-1], temperature=0) for _ in range(4)]
        assert [call.answer().text for call in free] == [alone] * 4
        assert all(case.valid(text) for call in bound for text in call.answer().texts)

    def test_structured_output_is_cut_by_max_tokens(self, harness: Harness) -> None:
        case = self.structured_case(harness, "json")
        cut = self.ask(harness, self.prompts[0], temperature=1, max_tokens=2, **case.fields)
        assert (cut.finishes, cut.usage["completion_tokens"]) == (["length"], 2)

    def test_structured_output_has_logprobs(self, harness: Harness) -> None:
        case = self.structured_case(harness, "choice")
        self.supports(harness, "logprobs")
        answer = self.ask(harness, self.prompts[0], temperature=0, **case.fields, **self.with_logprobs(2))
        assert case.valid(answer.text)
        assert "".join(entry["token"] for entry in answer.logprobs) == answer.text
        assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in answer.logprobs)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"structured_outputs": {"json": {"type": "object", "not": {}}}}, "structured_outputs.json"),
            ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
            ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
            ({"structured_outputs": {"grammar": "root ::= nope"}}, "structured_outputs.grammar"),
            ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
            ({"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ],
    )
    def test_bad_structured_output(self, harness: Harness, fields: dict[str, Any], param: str) -> None:
        self.supports(harness, "structured_outputs", "response_format", "ignore_eos")
        answer = self.ask(harness, self.prompts[0], **fields)
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["param"] == param
        assert self.ask(harness, self.prompts[0], temperature=0, max_tokens=4).status == 200
