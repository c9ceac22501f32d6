"""Downloads without a launch: gateway → supervisor, which asks its workers with the same commands, but for the first (`FetchModel`)."""

from __future__ import annotations

from msgspec import Struct

from xi_core.api.pulls import PullOrder, PullStatus
from xi_core.models.family import ModelSpec


class PullModel(Struct, tag="pull_model", kw_only=True):
    """Begin a download on the workers that the order names."""

    order: PullOrder


class GetPull(Struct, tag="get_pull", kw_only=True):
    """How far a download is, on every worker or on the one that is asked."""

    pull_id: str


class StopPull(Struct, tag="stop_pull", kw_only=True):
    """End a download. What came is kept."""

    pull_id: str


class FetchModel(Struct, tag="fetch_model", kw_only=True):
    """Supervisor → worker: begin a download. `code`: the order wants the repository's Python code too."""

    pull_id: str
    model: ModelSpec
    code: bool = False


ANSWERS: dict[type[Struct], type[Struct]] = {PullModel: PullStatus, GetPull: PullStatus, StopPull: PullStatus}
"""Commands, each with the type of its answer."""

OF_SUPERVISORS: dict[type[Struct], type[Struct]] = {FetchModel: PullStatus}
"""Those that only a supervisor sends."""
