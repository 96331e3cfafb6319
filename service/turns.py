"""Whose turn it is: among tenants with waiting jobs, the one that has waited longest since a job of theirs was begun.

The queue delivers jobs in order of arrival. A worker that is given a job out of turn puts it back at the end and takes the next,
so one tenant's hundred jobs do not keep another's one waiting. Putting back changes neither the number of messages nor what may
be lost; after a whole round without a better job, the worker takes what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from service.job import Job
from service.queue import Queue

HELD_SECONDS = 1.0
"""How long a job is put back whose tenant has as many running as it may."""


@dataclass
class Turns:
    """One worker's judgement.

    Args:
        queue: what waits and runs.
        most_running: how many jobs of a tenant may run at a time; 0 for any number.
    """

    queue: Queue
    most_running: Callable[[str], Awaitable[int]]
    _passed: set[str] = field(default_factory=set)

    async def put_back_for(self, job: Job) -> float | None:
        """For how many seconds a claimed job is to be put back; None if it shall begin now."""
        waiting = await self.queue.waiting_tenants(job)
        running = Counter(await self.queue.running_tenants())
        allowed = []
        for tenant in dict.fromkeys([*waiting, job.tenant]):
            most = await self.most_running(tenant)
            if not most or running[tenant] < most:
                allowed.append(tenant)
        if job.tenant not in allowed:
            return HELD_SECONDS
        begun = await self.queue.last_begun(job)
        best = min(begun.get(tenant, 0.0) for tenant in allowed)
        if begun.get(job.tenant, 0.0) > best and job.id not in self._passed:
            self._passed.add(job.id)
            return 0.0
        self._passed.clear()
        return None
