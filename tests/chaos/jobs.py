"""Jobs of ten chunks whose outputs are known, and the check that chaos has left no trace in them."""

from __future__ import annotations

from dataclasses import dataclass, field

from servers import Client, Deployment, eventually

from service.job import job_folder
from service.storage import open_store
from tests.chaos.proxy import FaultyProxy

CHUNKS, SEEDS = 10, 2
PACE = {"frame_seconds": 0.01}


@dataclass
class Battlefield:
    """A deployment, a client of it, the proxy before its store, and outputs by seed that were made in peace."""

    deployment: Deployment
    client: Client
    proxy: FaultyProxy
    undisturbed: dict[int, bytes] = field(default_factory=dict)

    def peace(self) -> None:
        """Make what later outputs are compared with, once."""
        self.proxy.calm()
        if not self.undisturbed:
            self.deployment.crew(1)
            ids = {seed: self.client.make(seed=seed) for seed in range(SEEDS)}
            self.undisturbed = {seed: self.client.content(self.client.wait(video)["id"]) for seed, video in ids.items()}

    def submit(self, count: int) -> list[str]:
        """So many jobs, with the seeds in turn."""
        return [self.client.make(seed=number % SEEDS, options=PACE) for number in range(count)]

    def made(self, ids: list[str]) -> int:
        """Chunks that count, of all those jobs."""
        return sum(self.client.get(video_id)["chunks_done"] for video_id in ids)

    def wait_for_progress(self, ids: list[str], chunks: int, what: str) -> None:
        """Until so many more chunks count than now."""
        before = self.made(ids)
        eventually(lambda: self.made(ids) >= min(before + chunks, CHUNKS * len(ids)), what)

    def require_unharmed(self, ids: list[str], seconds: float = 120.0) -> None:
        """Every job completes, with exactly one output, which is to the byte that of an undisturbed run."""
        store = open_store(self.deployment.settings())
        for number, video_id in enumerate(ids):
            self.client.wait(video_id, seconds=seconds)
            assert self.client.content(video_id) == self.undisturbed[number % SEEDS], f"job {number}"
            folder = job_folder("default", video_id)
            assert len(list(store.entries(f"{folder}output/"))) == 1
            assert len(list(store.entries(f"{folder}chunks/"))) == CHUNKS
