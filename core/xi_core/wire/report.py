"""What a replica tells its worker: one JSON line per report on a pipe. The end of the file means that the replica is dead."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from xi_core.errors import ErrorBody
from xi_core.wire.manifest import Ability, Manifest
from xi_core.wire.sleep import NO_SLEEP


class Stage(Struct, tag="stage"):
    """A step of the launch began or moved: `starting`, `loading`, `warming up`…; `progress` is 0 to 1 where it is known."""

    stage: str
    progress: float | None = None


class Ready(Struct, tag="ready"):
    """The replica has made progress (a probe token) and takes requests at `endpoint`."""

    endpoint: str
    context_length: int
    slots: int
    manifest: Manifest
    sleep: Ability = NO_SLEEP


class Health(Struct, tag="health"):
    """Life sign, several per second, with the progress counter."""

    healthy: bool
    steps: int
    running: int
    waiting: int
    reason: str = ""


class Obeyed(Struct, tag="obeyed"):
    """The order of this number is carried out, or has failed with `error`; the replica sleeps at `level` now (0: it is awake)."""

    number: int
    level: int
    error: ErrorBody | None = None


class Failed(Struct, tag="failed"):
    """The replica can't go on; it exits next."""

    error: ErrorBody


Report = Stage | Ready | Health | Obeyed | Failed

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Report).decode
