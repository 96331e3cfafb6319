"""Several processes, one a GPU, that compute the forwards of one job together: this one leads, the others follow.

The leader is the engine's process. It alone sees requests, pictures and speech; followers hold the transformer, are told by a
pipe what comes next, and get tensors by broadcast. Whoever dies takes the others along: a follower ends when its pipe does, and
the leader ends when a follower has, for a half-done exchange cannot be taken back. The job goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.attention import Attention
from model_store.infinitetalk.division import Division, divide
from model_store.infinitetalk.forwards import LocalForwards, Told
from model_store.infinitetalk.guidance import Branch
from model_store.infinitetalk.memory import Choice
from model_store.infinitetalk.parallel import SequenceShare
from model_store.infinitetalk.transformer import PATCH, InfiniteTalkTransformer

LOAD_SECONDS = 3600.0
"""How long a follower may take to load the weights."""

EXCHANGE_SECONDS = 300.0
"""How long an exchange may take before the processes are given up; a forward takes seconds."""

GRACE_SECONDS = 10.0
"""How long an orderly end may take: the leader's, after a follower has died, and the followers', when they are to part."""

_POLL_SECONDS = 0.5
_NAMES = tuple(field.name for field in fields(Told))

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TakeOrder:
    """A take begins: shapes and dtypes of what is new in :class:`Told`, in its order."""

    new: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    keeps: bool

    def follow(self, member: Member) -> None:
        """A follower's part in it."""
        member.begin(self)


@dataclass(frozen=True)
class RoundOrder:
    """Forwards that run at a time, one a group; the latent comes by broadcast."""

    shape: tuple[int, ...]
    time: float
    branches: tuple[Branch, ...]
    skip: bool
    how: Attention
    division: Division

    def follow(self, member: Member) -> None:
        """A follower's part in it."""
        member.compute(self)


@dataclass(frozen=True)
class LeaveOrder:
    """The work is over. All part at once: NCCL's parting is an exchange, too."""

    def follow(self, member: Member) -> None:
        """A follower's part in it."""
        member.leave()
        raise SystemExit(0)


class Member:
    """A process's part in the common work, once all have met.

    Args:
        transformer: this process's, like all others'.
        device: where it is.
        rank: 0 leads.
        processes: how many there are.
        meeting: a file that all can reach and that is not there yet.
    """

    def __init__(
        self, transformer: InfiniteTalkTransformer, device: torch.device, rank: int, processes: int, meeting: Path
    ) -> None:
        self.forwards = LocalForwards(transformer)
        self._transformer, self._device, self._rank = transformer, device, rank
        self._told: dict[str, Tensor] = {}
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=meeting.as_uri(),
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=EXCHANGE_SECONDS),
            device_id=device if device.type == "cuda" else None,
        )
        # Every process makes every group, in the same order, whether it is in it or not.
        self._shares: dict[int, SequenceShare] = {}
        for share in range(2, processes + 1):
            if transformer.config.num_heads % share:
                continue  # nothing is ever divided so
            for first in range(0, processes - share + 1, share):
                members = range(first, first + share)
                group = dist.new_group(list(members))
                if rank in members:
                    self._shares[share] = SequenceShare(group)

    def begin(self, take: TakeOrder, told: Mapping[str, Tensor] | None = None) -> None:
        """Begin a take; ``told`` holds what is new, where this is the leader."""
        for name, (shape, dtype) in take.new.items():
            value = (
                torch.empty(shape, dtype=dtype, device=self._device) if told is None else told[name].to(self._device).contiguous()
            )
            dist.broadcast(value, src=0)
            self._told[name] = value
        self.forwards.begin(Told(**self._told), take.keeps)

    def compute(self, work: RoundOrder, latent: Tensor | None = None) -> dict[Branch, Tensor]:
        """Take part in a round; all its predictions, ``latent`` given where this is the leader."""
        given = torch.empty(work.shape, device=self._device) if latent is None else latent.to(self._device).contiguous()
        dist.broadcast(given, src=0)
        group = work.division.group_of(self._rank)
        found: dict[Branch, Tensor] = {}
        if group is not None and group < len(work.branches):
            self._transformer.share = self._shares.get(work.division.share)
            branch = work.branches[group]
            found[branch] = self.forwards.forward(given, work.time, branch, work.skip, work.how)
        for group, branch in enumerate(work.branches[1:], start=1):
            prediction = found.get(branch)
            if prediction is None:
                prediction = torch.empty(work.shape, device=self._device)
            dist.broadcast(prediction.contiguous(), src=group * work.division.share)
            found[branch] = prediction
        return found

    @staticmethod
    def leave() -> None:
        """Part from the others."""
        dist.destroy_process_group()


class Crew:
    """The leader's view of all; a ``forwards.Forwards``.

    Args:
        variant: what followers load.
        processes: how many compute, this one included.
        choice: how they keep the weights; None where there is no choice.
        weights: the folder that they load from.
    """

    def __init__(self, variant: str, processes: int, choice: Choice | None, weights: Path) -> None:
        self._processes = processes
        self._folder = tempfile.TemporaryDirectory(prefix="infinitetalk-crew-")
        self._meeting = Path(self._folder.name) / "meeting"
        self._closing = threading.Event()
        self._member: Member | None = None
        self._told: dict[str, Tensor] = {}
        self._heads = 0
        self._pipes: list[Connection] = []
        self._followers: list[subprocess.Popen[bytes]] = []
        for rank in range(1, processes):
            ours, theirs = Pipe()
            command = [sys.executable, "-m", "model_store.infinitetalk.follower", str(theirs.fileno())]
            # A session of their own: an interrupt at the terminal is for the leader, which decides.
            follower = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)
            self._followers.append(follower)
            theirs.close()
            ours.send((variant, rank, processes, self._meeting, choice, weights))
            self._pipes.append(ours)

    def join(self, transformer: InfiniteTalkTransformer, device: torch.device, on_wait: Callable[[], None]) -> None:
        """Wait until all followers have loaded, then meet them.

        Args:
            transformer: the leader's own, loaded meanwhile.
            device: where it is.
            on_wait: called twice a second; may raise to stop.

        Raises:
            InfiniteTalkError: what a follower raised, or ``gpus_not_ready``.
        """
        deadline = time.monotonic() + LOAD_SECONDS
        for pipe in self._pipes:
            while not pipe.poll(_POLL_SECONDS):
                on_wait()
                if time.monotonic() > deadline:
                    raise InfiniteTalkError(
                        "gpus_not_ready",
                        f"A GPU's process has not loaded the weights within {LOAD_SECONDS:.0f} s: look at its log lines, or set "
                        "INFINITETALK_GPUS=1.",
                    )
            try:
                answer = pipe.recv()
            except EOFError:
                raise RuntimeError("a GPU's process has died while it loaded") from None
            if isinstance(answer, InfiniteTalkError):
                raise answer
        self._heads = transformer.config.num_heads
        # Before they meet: a follower that dies then leaves this one waiting for it.
        threading.Thread(target=self._watch, name="crew", daemon=True).start()
        self._member = Member(transformer, device, 0, self._processes, self._meeting)

    def begin(self, told: Told, keeps: bool) -> None:
        """See ``Forwards``."""
        given = {name: getattr(told, name) for name in _NAMES}
        new = {name: value for name, value in given.items() if self._told.get(name) is not value}
        take = TakeOrder({name: (tuple(value.shape), value.dtype) for name, value in new.items()}, keeps)
        self._tell(take)
        self._require_member().begin(take, new)
        self._told = given

    def predict(
        self, latent: Tensor, time: float, branches: Sequence[Branch], skip: bool, how: Attention, before: Callable[[], None]
    ) -> Mapping[Branch, Tensor]:
        """See ``Forwards``."""
        tokens = latent.shape[2] * latent.shape[3] // PATCH**2
        division = divide(self._processes, len(branches), self._heads, tokens)
        found: dict[Branch, Tensor] = {}
        for start in range(0, len(branches), division.groups):
            before()
            work = RoundOrder(tuple(latent.shape), time, tuple(branches[start : start + division.groups]), skip, how, division)
            self._tell(work)
            found |= self._require_member().compute(work, latent)
        return {branch: found[branch].to(latent.device) for branch in branches}

    def close(self) -> None:
        """End the followers, in an orderly way where they still follow."""
        self._closing.set()
        if self._member is not None:
            with suppress(RuntimeError):
                self._tell(LeaveOrder())
            # In a thread: where one of them is stuck in an exchange, NCCL would wait for it.
            parting = threading.Thread(target=self._member.leave, name="parting", daemon=True)
            parting.start()
            parting.join(GRACE_SECONDS)
            if parting.is_alive():
                logger.warning("the GPUs' processes did not part within %.0f s; they are ended", GRACE_SECONDS)
            self._member = None
        for pipe in self._pipes:
            pipe.close()  # at which a follower ends, whatever it does
        deadline = time.monotonic() + GRACE_SECONDS
        for follower in self._followers:
            with suppress(subprocess.TimeoutExpired):
                follower.wait(max(0.0, deadline - time.monotonic()))
            follower.kill()
            follower.wait()
        self._folder.cleanup()

    def _tell(self, order: Any) -> None:
        try:
            for pipe in self._pipes:
                pipe.send(order)
        except OSError:
            raise RuntimeError("a GPU's process has died") from None

    def _require_member(self) -> Member:
        if self._member is None:
            raise RuntimeError("the processes have not met")
        return self._member

    def _watch(self) -> None:
        while all(follower.poll() is None for follower in self._followers):
            if self._closing.wait(_POLL_SECONDS):
                return
        logger.error("a GPU's process has died; this one ends, too")
        if not self._closing.wait(GRACE_SECONDS):
            os._exit(1)
