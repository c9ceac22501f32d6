"""What a model's files recommend for sampling, where its server is a child."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xi_core.testing.harness import Harness, plan_for

ENGINE = "xi_core.testing.stub_engine:StubServerEngine"


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [({"do_sample": True, "temperature": 0.6, "top_p": 0, "top_k": 20}, {"temperature": 0.6, "top_k": 20}), ({"temperature": 0.6}, {})],
)
def test_it_counts_where_it_is_within_range(tmp_path: Path, generation: dict[str, float], sampling: dict[str, float]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    with Harness(plan_for(ENGINE, str(tmp_path), "fake")) as harness:
        assert harness.model.sampling == sampling
