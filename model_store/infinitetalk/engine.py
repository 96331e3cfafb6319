"""The production engine behind the contract: what a request asks, staged for the streaming loop. Imports torch when it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from model_store.engine import (
    FPS,
    SAMPLES_PER_FRAME,
    Checkpoint,
    Chunk,
    Engine,
    FrameSource,
    OnProgress,
    PerformanceRequest,
    Picture,
    Plan,
    Progress,
    Speech,
    no_progress,
)
from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.options import DEFAULT_PROMPT, TINY, Settings, default_variant, read_options
from model_store.infinitetalk.sizes import closest_size, give_back, look, resolution_class, window
from model_store.infinitetalk.takes import OVERLAP_FRAMES, TAKE_FRAMES

if TYPE_CHECKING:
    from model_store.infinitetalk.parts import Parts
    from model_store.infinitetalk.sampler import Sampling

_SAME_SHAPE = 0.01


class InfiniteTalkEngine(Engine):
    """See the module. Options: ``variant``, ``steps``, ``shift``, ``text_guidance``, ``audio_guidance``, ``negative_prompt``,
    ``apg``, ``teacache``, ``eight_bit_attention``, ``attention_keep``; :class:`~model_store.infinitetalk.options.Settings`
    explains them."""

    name: ClassVar[str] = "infinitetalk"
    version: ClassVar[int] = 1
    working_memory: ClassVar[int] = 96 << 30  # weights that `load` left out, and those that wait on the host

    def __init__(self) -> None:
        self._parts: Parts | None = None

    def diagnose(self) -> str:
        variant = default_variant()
        module = _parts_module()
        if variant == TINY:
            return f"version {self.version}, variant {TINY}: random weights, its videos are noise"
        module.require_gpu()
        return f"version {self.version}, variant {variant}"

    def load(self, on_progress: OnProgress = no_progress, options: Mapping[str, str | int | float | bool] | None = None) -> None:
        self._ready(read_options(options or {}, 1.0).variant.name, 0, on_progress)

    def plan(self, request: PerformanceRequest) -> Plan:
        read_options(request.options, request.expressiveness)
        return Plan(request.width, request.height, request.frames, TAKE_FRAMES - OVERLAP_FRAMES, TAKE_FRAMES)

    def stream(
        self,
        request: PerformanceRequest,
        checkpoint: Checkpoint | None = None,
        on_progress: OnProgress = no_progress,
    ) -> Iterator[Chunk]:
        settings = read_options(request.options, request.expressiveness)
        if checkpoint is not None:
            self.require_own(checkpoint)
        if request.speech.samples < SAMPLES_PER_FRAME:
            raise InfiniteTalkError(
                "audio_too_short", "The speech is shorter than one frame, 40 ms: send a longer recording.", param="audio"
            )
        plan = self.plan(request)
        first = checkpoint.next_chunk if checkpoint else 0
        if first >= plan.chunks:
            return
        parts = self._ready(settings.variant.name, first, on_progress)
        yield from self._perform(request, settings, plan, parts, checkpoint, on_progress)

    def close(self) -> None:
        if self._parts is not None:
            self._parts.close()
            self._parts = None
            _parts_module().release()

    def _ready(self, variant: str, chunk: int, on_progress: OnProgress) -> Parts:
        if self._parts is None or self._parts.variant != variant:
            self.close()
            module = _parts_module()
            self._parts = module.load_parts(variant, lambda done, total: on_progress(Progress("load", chunk, done, total)))
        return self._parts

    def _perform(
        self,
        request: PerformanceRequest,
        settings: Settings,
        plan: Plan,
        parts: Parts,
        checkpoint: Checkpoint | None,
        on_progress: OnProgress,
    ) -> Iterator[Chunk]:
        from model_store.infinitetalk.state import state_from_bytes, state_to_bytes  # noqa: PLC0415 - needs torch
        from model_store.infinitetalk.stream import Loop, Script, State  # noqa: PLC0415

        variant = settings.variant.name
        resolution = "tiny" if settings.tiny else resolution_class(plan.width, plan.height)
        size = closest_size(plan.width, plan.height, resolution)
        first = checkpoint.next_chunk if checkpoint else 0
        state = state_from_bytes(checkpoint.state, variant, size) if checkpoint else State()

        on_progress(Progress("prepare", first, 0, 2))
        picture = _pictures(request.reference)
        earliest = picture(0)
        centre = _centre(earliest, plan)
        through = window((earliest.shape[1], earliest.shape[0]), (plan.width, plan.height), size, centre)
        on_progress(Progress("prepare", first, 1, 2))
        text, negative = parts.words(request.prompt.strip() or DEFAULT_PROMPT), parts.words(settings.negative_prompt)
        on_progress(Progress("prepare", first, 2, 2))

        chunk = first

        def hearing() -> None:
            on_progress(Progress("listen", chunk, 0, 1))

        def working(index: int, done: int, total: int) -> None:
            nonlocal chunk
            chunk = index
            on_progress(Progress("perform", index, done, total))

        script = Script(
            text=text,
            negative=negative,
            speech=parts.speech.listen(_Heard(request.speech, hearing)),
            picture=lambda frame: look(picture(frame), through, size),
            changes=isinstance(request.reference, FrameSource),
            seed=request.seed,
        )
        loop = Loop(parts.models, script, plan, _sampling(settings, resolution, parts))
        work = loop.run(first, state, working)
        for index, (frames, following) in enumerate(work, start=first):
            whole = give_back(frames, through, plan.width, plan.height)
            saved = Checkpoint(self.name, self.version, index + 1, state_to_bytes(following, variant))
            yield Chunk(index, plan.span(index)[0], whole, saved)


@dataclass(frozen=True)
class _Heard:
    """Speech that says whenever it is read, so that listening to hours of it can be stopped."""

    speech: Speech
    on_read: Callable[[], None]

    @property
    def samples(self) -> int:
        return self.speech.samples

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        self.on_read()
        return self.speech.read(start, stop)


def _pictures(reference: Picture | FrameSource) -> Callable[[int], Picture]:
    """The reference at a frame number of the output: the photo, or what the source video shows at that time."""
    if isinstance(reference, FrameSource):
        source = reference
        return lambda frame: source.frame_at(frame / FPS)
    photo = reference
    return lambda _: photo


def _centre(picture: Picture, plan: Plan) -> tuple[float, float]:
    """What the output is cropped around, in fractions of the picture: the face where there is something to crop."""
    height, width = picture.shape[:2]
    middle = (0.5, 0.5)
    if abs(width / height * plan.height / plan.width - 1) < _SAME_SHAPE:
        return middle
    try:
        from model_store.portrait.face import find_face  # noqa: PLC0415 - its parts need not be on a bare GPU machine

        points = find_face(picture).points[:, :2]
    except (ImportError, InfiniteTalkError):
        return middle
    x, y = (points.min(0) + points.max(0)) / 2
    return float(x) / width, float(y) / height


def _sampling(settings: Settings, resolution: str, parts: Parts) -> Sampling:
    from model_store.infinitetalk.attention import Attention  # noqa: PLC0415 - needs torch
    from model_store.infinitetalk.guidance import Guidance  # noqa: PLC0415
    from model_store.infinitetalk.sampler import Sampling, timesteps  # noqa: PLC0415
    from model_store.infinitetalk.step_skipping import CHANGE, skipped_steps  # noqa: PLC0415

    shift = settings.variant.shift[resolution] if settings.shift is None else settings.shift
    guidance = Guidance(settings.text_guidance, settings.audio_guidance, settings.apg)
    times = timesteps(settings.steps, shift)[:-1]
    fitted = resolution if resolution in CHANGE else "480"
    skipped = skipped_steps(times, parts.models.transformer.time_modulation, fitted, settings.teacache)
    return Sampling(settings.steps, shift, guidance, skipped, Attention(settings.eight_bit_attention, settings.attention_keep))


def _parts_module() -> ModuleType:
    try:
        return import_module("model_store.infinitetalk.parts")
    except ImportError as error:
        raise InfiniteTalkError(
            "engine_unavailable",
            f"The infinitetalk engine needs {error.name or 'packages that are not installed'}: pip install 'infinite-talk[gpu]'.",
        ) from error
