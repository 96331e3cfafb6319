"""The engine contract: what the service asks of anything that can perform speech on a picture.

An engine is written in four steps, and nothing else in the product changes:

1. subclass :class:`Engine`, give it a ``name`` and a ``version``;
2. ``plan(request)`` answers from sizes and lengths alone, quickly, how many frames and chunks there will be;
3. ``stream(request, checkpoint, on_progress)`` yields the :class:`Chunk` s in order;
4. name it in ``model_store.registry`` (or, from another distribution, in the entry-point group
   ``infinite_talk.engines``).

The promises every engine keeps, which ``tests/model_store/contract.py`` checks on any engine it is given:

* **Exact resume.** Stopping after chunk *k* and calling ``stream`` again with that chunk's checkpoint, in another process,
  yields byte for byte what an uninterrupted run would have yielded.
* **Determinism.** The same request on the same machine gives the same frames; everything random comes from ``seed``.
* **Flat memory.** What is held does not grow with the length of the speech: speech is read in windows, frames are
  handed on and forgotten.
* **Prompt cancel.** ``on_progress`` is called at least once a second (``portrait``) or once a denoising step
  (``infinitetalk``); whatever it raises leaves ``stream`` at once, unchanged.
* **Errors.** What the input causes is raised as :class:`~model_store.errors.InfiniteTalkError`.
"""

from __future__ import annotations

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InfiniteTalkError

FPS = 25
"""Frames a second of every engine's output."""

SPEECH_RATE = 16_000
"""Sample rate, in Hz, of the speech that engines listen to."""

SAMPLES_PER_FRAME = SPEECH_RATE // FPS

MIN_SIDE, MAX_SIDE = 128, 2160
"""Bounds of an output frame's sides, in pixels."""

Frames = NDArray[np.uint8]
"""RGB frames ``[T, H, W, 3]``."""

Picture = NDArray[np.uint8]
"""One RGB picture ``[H, W, 3]``."""


@runtime_checkable
class Speech(Protocol):
    """16 kHz mono speech that is read in windows, so that an hour of it needs no more memory than a second."""

    @property
    def samples(self) -> int:
        """Length in samples at :data:`SPEECH_RATE`."""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Samples ``start..stop`` as float32 in -1..1, always ``[stop - start]``: what lies outside the speech is zero."""


@runtime_checkable
class FrameSource(Protocol):
    """A source video, read by time, for engines that can dub one."""

    @property
    def seconds(self) -> float:
        """Length of the video."""

    def frame_at(self, seconds: float) -> Picture:
        """The frame shown at that time (the last one beyond the end), upright RGB ``[H, W, 3]``."""


@dataclass(frozen=True)
class ArraySpeech:
    """Speech that already lies in memory (tests, short clips): float32 ``[samples]`` at :data:`SPEECH_RATE`."""

    data: NDArray[np.float32]

    @property
    def samples(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        window = np.zeros(stop - start, np.float32)
        first, last = max(start, 0), min(stop, len(self.data))
        if last > first:
            window[first - start : last - start] = self.data[first:last]
        return window


@dataclass(frozen=True)
class PerformanceRequest:
    """Everything an engine needs to know to perform.

    Args:
        reference: the picture to animate, upright RGB uint8 ``[H, W, 3]``, or a video to dub.
        speech: what is to be spoken; its length is the output's length.
        width, height: the output frame, even, within :data:`MIN_SIDE` .. :data:`MAX_SIDE`. The reference is scaled to
            cover it and cropped around the face where the aspects differ. :func:`frame_size` chooses one.
        seed: everything random follows from it.
        prompt: what the scene is, in words, for engines that read one.
        expressiveness: how much head, brows and body take part: 0 speaks with a still head, 1 is natural, 2 theatrical.
        options: settings of one engine by name (``variant``, ``steps``, ...); an engine refuses names it does not know.
    """

    reference: Picture | FrameSource
    speech: Speech
    width: int
    height: int
    seed: int = 0
    prompt: str = ""
    expressiveness: float = 1.0
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in (self.width, self.height):
            if side % 2 or not MIN_SIDE <= side <= MAX_SIDE:
                raise InfiniteTalkError(
                    "size_invalid",
                    f"The frame size {self.width}x{self.height} cannot be made: use even sides from {MIN_SIDE} to {MAX_SIDE}.",
                    param="size",
                )
        if not 0.0 <= self.expressiveness <= 2.0:
            raise InfiniteTalkError(
                "expressiveness_invalid",
                f"expressiveness is {self.expressiveness:g}: choose a number from 0 (still) to 2 (theatrical).",
                param="expressiveness",
            )
        if not 0 <= self.seed < 2**32:
            raise InfiniteTalkError(
                "seed_invalid", f"seed is {self.seed}: choose a whole number from 0 to {2**32 - 1}.", param="seed"
            )

    @property
    def frames(self) -> int:
        """Number of output frames: the speech's length, rounded up to whole frames."""
        return -(-self.speech.samples // SAMPLES_PER_FRAME)


@dataclass(frozen=True)
class Plan:
    """What a request will become, known before any work: chunk 0 has ``first_chunk_frames``, later ones ``chunk_frames``."""

    width: int
    height: int
    frames: int
    chunk_frames: int
    first_chunk_frames: int

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        rest = max(0, self.frames - self.first_chunk_frames)
        return 1 + -(-rest // self.chunk_frames)

    def span(self, index: int) -> tuple[int, int]:
        """First frame of chunk ``index`` and the frame after its last."""
        start = 0 if index == 0 else self.first_chunk_frames + (index - 1) * self.chunk_frames
        stop = self.first_chunk_frames + index * self.chunk_frames
        return start, min(stop, self.frames)


_CHECKPOINT_MAGIC = b"ITCK1\n"


@dataclass(frozen=True)
class Checkpoint:
    """From where the next chunk can be made: small, self-contained, and safe to keep for another release to read.

    Args:
        engine: name of the engine that wrote it.
        version: that engine's ``version`` at the time; an engine states which versions it still reads.
        next_chunk: index of the chunk that follows.
        state: the engine's own bytes (never a pickle: they may come from a bucket that others can write to).
    """

    engine: str
    version: int
    next_chunk: int
    state: bytes = b""

    def to_bytes(self) -> bytes:
        """A portable encoding: magic, length-prefixed JSON header, state."""
        header = json.dumps({"engine": self.engine, "version": self.version, "next_chunk": self.next_chunk}).encode()
        return _CHECKPOINT_MAGIC + struct.pack("<I", len(header)) + header + self.state

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """The inverse of :meth:`to_bytes`; ``checkpoint_damaged`` when the bytes are anything else."""
        try:
            if not data.startswith(_CHECKPOINT_MAGIC):
                raise ValueError("magic")
            offset = len(_CHECKPOINT_MAGIC)
            (length,) = struct.unpack_from("<I", data, offset)
            offset += 4
            header = json.loads(data[offset : offset + length])
            state = data[offset + length :]
            return cls(str(header["engine"]), int(header["version"]), int(header["next_chunk"]), state)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise InfiniteTalkError(
                "checkpoint_damaged", "The checkpoint cannot be read: start the video again from its first chunk."
            ) from error


@dataclass(frozen=True)
class Chunk:
    """A finished piece of the video.

    Args:
        index: 0, 1, 2, ...
        start: number of its first frame in the whole video.
        frames: uint8 RGB ``[T, H, W, 3]`` at :data:`FPS`; the receiver may keep it, the engine will not touch it again.
        checkpoint: from which chunk ``index + 1`` can be made.
    """

    index: int
    start: int
    frames: Frames
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Progress:
    """Where the work stands: ``done`` of ``total`` units of ``stage`` within chunk ``chunk``.

    Stages are few and the same words everywhere (API, metrics): ``load``, ``prepare``, ``listen``, ``perform``.
    """

    stage: str
    chunk: int
    done: int
    total: int


OnProgress = Callable[[Progress], None]
"""Called often while an engine works; it may raise to stop the work."""


def no_progress(_: Progress) -> None:
    """The listener of those who do not listen."""


class Engine(ABC):
    """Something that can perform speech on a picture; see the module's text for the promises it keeps."""

    name: ClassVar[str]
    """The name users choose it by."""

    version: ClassVar[int]
    """Raised whenever checkpoints of the previous code can no longer be continued exactly."""

    working_memory: ClassVar[int] = 3 << 30
    """Bytes of host memory that one performance may take beyond what ``load`` has taken."""

    def diagnose(self) -> str:
        """What it runs on here, in a few words, found out without loading anything.

        Raises:
            InfiniteTalkError: it cannot run here; the message names the cure.
        """
        return f"version {self.version}"

    def load(self, on_progress: OnProgress = no_progress, options: Mapping[str, str | int | float | bool] | None = None) -> None:
        """Bring weights into memory, so that the first ``stream`` starts at once. May be called again; optional.

        Args:
            on_progress: see :data:`OnProgress`.
            options: of the request that comes first, for engines whose weights depend on them.
        """

    @abstractmethod
    def plan(self, request: PerformanceRequest) -> Plan:
        """Sizes and counts of what ``stream`` will yield; reads no samples and no pixels."""

    @abstractmethod
    def stream(
        self,
        request: PerformanceRequest,
        checkpoint: Checkpoint | None = None,
        on_progress: OnProgress = no_progress,
    ) -> Iterator[Chunk]:
        """Yield the chunks of ``plan(request)``, from ``checkpoint.next_chunk`` on if one is given.

        Args:
            request: what to perform.
            checkpoint: from an earlier chunk of the *same* request.
            on_progress: see :data:`OnProgress`.

        Raises:
            InfiniteTalkError: the input cannot be performed (``no_face``, ...), or the checkpoint is not this engine's
                (``checkpoint_mismatch``).
        """

    def close(self) -> None:
        """Let go of memory and devices; the engine is not used afterwards. Optional."""

    def require_own(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that this engine did not write or can no longer continue."""
        if checkpoint.engine != self.name or checkpoint.version != self.version:
            raise InfiniteTalkError(
                "checkpoint_mismatch",
                f"The checkpoint was made by {checkpoint.engine} version {checkpoint.version}, not by {self.name} version "
                f"{self.version}: finish the video with the release that began it, or start it again.",
            )


RESOLUTIONS: Mapping[str, int] = {"480p": 480, "720p": 720, "1080p": 1080}
"""Names of frame sizes and the length of the frame's short side."""


def frame_size(reference_size: tuple[int, int], resolution: str) -> tuple[int, int]:
    """The output frame for a reference: its own aspect, the short side as ``resolution`` says.

    Args:
        reference_size: width and height of the reference.
        resolution: a key of :data:`RESOLUTIONS`.

    Returns:
        Width and height, both even; the long side is held within :data:`MAX_SIDE` (very long pictures are cropped).
    """
    if resolution not in RESOLUTIONS:
        raise InfiniteTalkError(
            "resolution_invalid", f"There is no resolution {resolution!r}: choose {', '.join(RESOLUTIONS)}.", param="resolution"
        )
    width, height = reference_size
    scale = RESOLUTIONS[resolution] / min(width, height)

    def even(side: float) -> int:
        return min(MAX_SIDE, 2 * round(side / 2))

    return even(width * scale), even(height * scale)
