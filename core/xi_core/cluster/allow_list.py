"""What operators ask of a supervisor about who may join: tokens, the list, striking a member off it, other keys. Part of the supervisor."""

from __future__ import annotations

import asyncio
import logging
import time

from xi_core.api.control import MemberRole
from xi_core.api.members import MemberStatus
from xi_core.cluster import messages as m
from xi_core.cluster.admission import Admission
from xi_core.cluster.executor import Executor
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.store import Entry
from xi_core.cluster.threads import in_thread
from xi_core.errors import Conflict, InvalidRequest, NotFound
from xi_core.transport.rpc import Calls

log = logging.getLogger(__name__)


class AllowList:
    """Answers commands about members. `admission` is None where this supervisor takes none."""

    def __init__(self, executor: Executor, lifecycle: Lifecycle) -> None:
        self.admission: Admission | None = None
        self._executor, self._lifecycle = executor, lifecycle
        self._turn = asyncio.Lock()
        """One change at a time."""

    def calls(self) -> Calls:
        """What it answers."""
        return {
            m.NewJoinToken: self._new_join_token,
            m.ListMembers: self._list,
            m.RemoveMember: self._remove,
            m.RotateGatewayKeys: self._rotate,
        }

    def _required(self) -> Admission:
        if self.admission is None:
            raise InvalidRequest("this xi runs by itself and takes no other machines; start it as `xi supervisor`")
        return self.admission

    async def _new_join_token(self, command: m.NewJoinToken) -> m.JoinTokenMade:
        admission = self._required()
        token = await in_thread(lambda: admission.new_token(command.role, command.ttl))
        return m.JoinTokenMade(token, admission.command(token, command.role))

    async def _list(self, command: m.ListMembers) -> m.Members:
        found = await self._required().members()
        return m.Members(
            [MemberStatus(name=one.entry.name, role=one.entry.role, joined=one.joined, linked=linked) for one, linked in found]
        )

    async def _remove(self, command: m.RemoveMember) -> m.MemberRemoved:
        admission = self._required()
        async with self._turn:
            entry = await self._found(admission, command.name, command.role)
            runs = self._runs(entry)
            if runs and not command.force:
                raise Conflict(
                    f"worker {entry.name} runs {', '.join(runs)}; empty it first with `xi drain {entry.name}`, or remove it with --force: "
                    "what it runs is then cut off, and started elsewhere",
                    param="name",
                )
            await admission.strike(entry)
            log.info("%s %s is removed from the cluster", entry.role, entry.name)
            if entry.role == "gateway":
                return m.MemberRemoved(role=entry.role, replicas=await self._rotated(admission))
            runs = self._runs(entry)
            self._executor.do(self._lifecycle.worker_removed(time.monotonic(), entry.name))
            await self._executor.kept()
            return m.MemberRemoved(role=entry.role, replicas=runs)

    async def _rotate(self, command: m.RotateGatewayKeys) -> m.GatewayKeysRotated:
        admission = self._required()
        async with self._turn:
            return m.GatewayKeysRotated(await self._rotated(admission))

    async def _rotated(self, admission: Admission) -> list[str]:
        """Other keys for gateways, which are told. Answers the replicas that open to older ones."""
        running = [replica for launch in self._lifecycle.listed() for replica in launch.live]
        used = {r.head.plan.security.gateways for r in running if r.head is not None and r.head.plan.security is not None}
        if any(not replica.live for launch in self._lifecycle.listed() if not launch.end for replica in launch.replicas):
            used |= {pair.public for pair in admission.older_keys}  # a worker that is away may come back with replicas of any age
        await admission.rotate(used | {admission.gateway_keys.public})  # which replicas that are just starting want to see
        self._executor.tell_gateways(m.GatewayKeys(admission.gateway_keys, admission.older_keys))
        self._executor.gateways_key = admission.gateway_keys.public  # after they were told: no replica wants to see keys that they lack
        log.info("replicas that are started from now on open to other keys of gateways")
        return [replica.replica_id for replica in running]

    def _runs(self, entry: Entry) -> list[str]:
        return [replica.replica_id for replica, _ in self._lifecycle.on(entry.name)] if entry.role == "worker" else []

    @staticmethod
    async def _found(admission: Admission, name: str, role: MemberRole | None) -> Entry:
        members = [kept.entry for kept, _ in await admission.members()]
        found = [entry for entry in members if entry.name == name and role in (None, entry.role)]
        if not found:
            known = ", ".join(f"{entry.role} {entry.name}" for entry in members) or "none"
            raise NotFound(f"no {role or 'member'} '{name[:80]}' is on the list; on it: {known}", param="name")
        if len(found) > 1:
            raise InvalidRequest(f"there are a worker and a gateway named {name}; say which with --role", param="role")
        return found[0]
