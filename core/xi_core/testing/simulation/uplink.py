"""A simulated worker's link to the supervisor, dialled again and again, and what it still has to tell. As `xi_core.cluster.linking`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from xi_core.cluster import messages as m
from xi_core.cluster.linking import REDIAL_FIRST, REDIAL_MOST, REGISTER_TIMEOUT
from xi_core.errors import XiError
from xi_core.testing.simulation.clock import Clock
from xi_core.testing.simulation.wire import Answer, Asked, Link, Path, Side, Trace

WORKER = 0
"""The worker's side of a link."""


class Machine(Protocol):
    """The worker whose link it is."""

    name: str
    path: Path
    alive: bool
    leaving: bool
    stands_still: bool

    def later(self, delay: float, do: Callable[..., None], *what: Any) -> None:
        """Do something in so many seconds, if this life lasts."""

    def introduction(self, ended: list[m.ReplicaRecord]) -> m.Register:
        """What it registers with; `ended`: replicas of whose end the supervisor doesn't know."""

    def obey(self, link: Link, number: int, command: Any) -> Any:
        """The answer to a command; None: it comes later. Raises `XiError`."""

    def cut_off(self) -> None:
        """The supervisor is away, and knows that it is in."""


class Uplink:
    """The worker's end of one link after the other."""

    def __init__(self, machine: Machine, clock: Clock, random: Random, listener: Callable[[], Side | None], trace: Trace) -> None:
        """`listener` gives the supervisor that listens, if one does."""
        self.registered = False
        self._machine, self._clock, self._random, self._listener, self._trace = machine, clock, random, listener, trace
        self._link: Link | None = None
        self._wait = REDIAL_FIRST
        self._unreported: list[m.ReplicaRecord] = []
        self._told: list[m.ReplicaRecord] = []

    @property
    def stands_still(self) -> bool:
        """Its worker is suspended."""
        return self._machine.stands_still

    def begin(self) -> None:
        """The worker has started."""
        self._unreported, self._told, self._wait = [], [], REDIAL_FIRST
        self._machine.later(0.0, self._dial)

    def notify(self, notice: Any) -> bool:
        """Tell the supervisor, if it is there."""
        return self._link is not None and self._link.send(WORKER, notice)

    def report(self, ended: m.ReplicaRecord) -> None:
        """Tell the supervisor of a replica's end when it is there again."""
        self._unreported.append(ended)

    def changed(self) -> None:
        """The path is cut or heals, or the worker stands still or goes on."""
        if self._link is not None:
            self._link.changed()

    def hang_up(self) -> None:
        """End the link, if there is one."""
        link, self._link, self.registered = self._link, None, False
        if link is not None:
            link.close(WORKER)

    # ---- dialling -------------------------------------------------------------------------------

    def _dial(self) -> None:
        supervisor, machine = self._listener(), self._machine
        if self._link is not None or machine.leaving:
            return
        if supervisor is None or any(machine.path.cut):
            self._again()
            return
        link = self._link = Link(self._clock, self._random, machine.path, self, supervisor)
        self._told, self._unreported = self._unreported, []
        register = machine.introduction(self._told)
        self._trace(f"{machine.name} registers with {[f'{r.plan.incarnation} {r.status.state}' for r in register.replicas]}")
        link.send(WORKER, Asked(0, register))
        machine.later(REGISTER_TIMEOUT, self._not_registered, link)

    def _again(self) -> None:
        self._machine.later(self._wait, self._dial)
        self._wait = min(2 * self._wait, REDIAL_MOST)

    def _not_registered(self, link: Link) -> None:
        if self._link is link and not self.registered:
            self._drop()

    def _drop(self) -> None:
        if not self.registered:
            self._unreported = self._told + self._unreported
        was_in = self.registered
        self.hang_up()
        if was_in:
            self._machine.cut_off()
        self._again()

    # ---- what comes -----------------------------------------------------------------------------

    def lost(self, link: Link) -> None:
        """The supervisor is away."""
        if self._link is link and self._machine.alive:
            self._trace(f"{self._machine.name} loses its link")
            self._drop()

    def receive(self, link: Link, message: Any) -> None:
        """A message of the supervisor's."""
        if self._link is not link or not self._machine.alive:
            return
        if isinstance(message, Answer):
            self._registered(message.body)
            return
        try:
            answer = self._machine.obey(link, message.number, message.command)
        except XiError as error:
            answer = error
        if answer is not None:
            link.send(WORKER, Answer(message.number, answer))

    def _registered(self, body: Any) -> None:
        if isinstance(body, XiError):
            self._trace(f"{self._machine.name} is refused: {body}")
            self._drop()
        else:
            self.registered, self._wait, self._told = True, REDIAL_FIRST, []
