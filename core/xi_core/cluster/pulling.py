"""Downloads without a launch, as the supervisor sees them: it finds the model, and has its workers download it (`pulls.py`)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable

import msgspec

from xi_core.api.pulls import PullOrder, PullStatus, WorkerPull
from xi_core.cluster.executor import Executor
from xi_core.cluster.matching import WorkerLink
from xi_core.cluster.messages import FetchModel, GetPull, PullModel, StopPull
from xi_core.cluster.pulls import unknown_pull
from xi_core.errors import NotFound, TransportError, WorkerNotFound, XiError
from xi_core.models.pull_choice import as_launch, only_one
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls


class Pulling:
    """Answers for all workers. It remembers nothing: who takes part in a download, its workers know."""

    def __init__(self, hub: PluginHub, executor: Executor) -> None:
        self._hub, self._executor = hub, executor

    def calls(self) -> Calls:
        """What it answers."""
        return {PullModel: self._pull, GetPull: self._ask, StopPull: self._ask}

    async def _pull(self, command: PullModel) -> PullStatus:
        order = command.order
        spec = as_launch(order, self._hub.families)
        model = only_one(order.model_name, await self._executor.resolver.matching.candidates(spec))
        workers = await self._workers(order)
        fetch = FetchModel(pull_id=secrets.token_hex(4), model=model, code=order.trust_remote_code)
        answers = await asyncio.gather(*(worker.link.call(fetch) for worker in workers.values()), return_exceptions=True)
        status = PullStatus(pull_id=fetch.pull_id, model_name=model.source.id, source=model.source.source)
        for name, answer in zip(workers, answers, strict=True):
            if isinstance(answer, PullStatus):
                status.workers += answer.workers
            elif isinstance(answer, XiError):
                status.workers.append(WorkerPull(worker=name, state="FAILED", error=answer.message))
            else:
                raise answer
        refusals = [answer for answer in answers if isinstance(answer, XiError)]
        if len(refusals) == len(answers):
            raise refusals[0]
        return status

    async def _workers(self, order: PullOrder) -> dict[str, WorkerLink]:
        workers = dict(await self._executor.any_workers())
        if order.worker_ip is None:
            return workers
        names = {name.strip() for name in order.worker_ip.split(",") if name.strip()}
        found = {name: worker for name, worker in workers.items() if names & {name, worker.register.address}}
        unknown = names - {one for name, worker in found.items() for one in (name, worker.register.address)}
        if unknown or not found:
            raise WorkerNotFound(
                f"no worker '{', '.join(sorted(unknown))}' is connected; connected: {', '.join(sorted(workers))}", param="worker_ip"
            )
        return found

    async def _ask(self, command: GetPull | StopPull) -> PullStatus:
        """All workers: who takes part, they know."""
        links = [worker.link for worker in self._executor.workers.values()]
        answers = await asyncio.gather(*(_known(link.call(command)) for link in links))
        found = [answer for answer in answers if answer is not None]
        if not found:
            raise unknown_pull(command.pull_id)
        return msgspec.structs.replace(found[0], workers=[worker for status in found for worker in status.workers])


async def _known(asked: Awaitable[PullStatus]) -> PullStatus | None:
    """The answer of a worker that takes part and is there."""
    try:
        return await asked
    except (NotFound, TransportError):
        return None
