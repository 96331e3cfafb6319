"""Workers killed with -9 at random moments."""

from __future__ import annotations

import random
import time

import pytest

from tests.chaos.jobs import Battlefield


@pytest.mark.parametrize(
    ("jobs", "kills", "workers"), [(6, 6, 2), pytest.param(20, 30, 3, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_workers_killed_at_random(field: Battlefield, jobs: int, kills: int, workers: int) -> None:
    field.peace()
    crew = field.deployment.crew(workers)
    chance = random.Random(7)
    ids = field.submit(jobs)
    for kill in range(kills):
        # Each after further progress, for three kills at the same chunk would rightly fail a job.
        field.wait_for_progress(ids, 2 * workers, f"progress after kill {kill}")
        time.sleep(chance.uniform(0, 0.3))
        crew.pop(chance.randrange(workers)).kill()
        crew = field.deployment.crew(workers)
    field.require_unharmed(ids)
