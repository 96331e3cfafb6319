"""Live playback: playlists made from the chunks that count, growing as they do."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from model_store.engine import FPS
from model_store.errors import InfiniteTalkError
from service.job import Commit, Job, PlanRecord
from service.ledger import Ledger
from service.media.hls import Segment, master_playlist, media_playlist

Track = Literal["video", "sound"]

CACHED_JOBS = 128
_HEADROOM = 1.2


@dataclass(frozen=True)
class Playlists:
    """Playlists of jobs. Methods are blocking and may be called from several threads.

    Args:
        ledger: where the chunks are.
        link_seconds: how long links to fragments work, on stores that have links.
    """

    ledger: Ledger
    link_seconds: int
    _seen: OrderedDict[str, list[Commit]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def master(self, job: Job, query: str) -> str:
        """What a player is given; addresses are relative to ``/v1/videos/{id}/`` and end with ``query``.

        ``stream_not_ready`` before the first chunk.
        """
        plan, commits = self._ready(job)
        bandwidth = max(8 * (commit.fragment_bytes + commit.sound_bytes) * FPS / commit.frames for commit in commits)
        return master_playlist(
            f"stream/video.m3u8{query}",
            f"stream/sound.m3u8{query}",
            video_codec=plan.video_codec,
            sound_codec=plan.sound_codec,
            width=plan.width,
            height=plan.height,
            bandwidth=int(_HEADROOM * bandwidth),
        )

    def media(self, job: Job, track: Track, cancelled: bool, query: str) -> str:
        """One track, with addresses relative to ``/v1/videos/{id}/stream/``, or links into the store."""
        plan, commits = self._ready(job)
        segments = [
            Segment(
                self._link(commit.fragment if track == "video" else commit.sound) or f"{track}/{commit.index}.m4s{query}",
                commit.frames / FPS if track == "video" else commit.sound_seconds,
            )
            for commit in commits
        ]
        init = self._link(plan.video_init if track == "video" else plan.sound_init) or f"{track}/init.mp4{query}"
        return media_playlist(init, segments, longest=plan.longest_seconds, ended=cancelled or len(commits) == plan.chunks)

    def key(self, job: Job, track: Track, index: int | None) -> str:
        """Where a segment lies, or with None the track's beginning; ``stream_not_ready`` if it is not there yet."""
        plan, commits = self._ready(job)
        if index is None:
            return plan.video_init if track == "video" else plan.sound_init
        if index >= len(commits):
            raise _not_ready()
        return commits[index].fragment if track == "video" else commits[index].sound

    def _ready(self, job: Job) -> tuple[PlanRecord, list[Commit]]:
        plan, commits = self.ledger.plan(job.tenant, job.id), self._commits(job)
        if plan is None or not commits:
            raise _not_ready()
        return plan, commits

    def _commits(self, job: Job) -> list[Commit]:
        """All chunks that count; those seen before are not read again, since they never change."""
        with self._lock:
            seen = self._seen.get(job.token, [])
        commits = seen + self.ledger.commits(job.tenant, job.id, start=len(seen))
        with self._lock:
            self._seen[job.token] = commits
            self._seen.move_to_end(job.token)
            while len(self._seen) > CACHED_JOBS:
                self._seen.popitem(last=False)
        return commits

    def _link(self, key: str) -> str | None:
        return self.ledger.store.link(key, self.link_seconds)


def _not_ready() -> InfiniteTalkError:
    return InfiniteTalkError("stream_not_ready", "Nothing of this video can be played yet: ask again in a second.")
