"""A request's options, checked by name and value, as settings of the engine. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model_store.catalogue import VARIANTS, Variant
from model_store.errors import InfiniteTalkError

TINY = "tiny-random"
"""A few thousand random weights that run on any CPU: the whole path of the engine, and noise for a picture."""

DEFAULT_VARIANT_VARIABLE = "INFINITETALK_VARIANT"
"""Environment variable that names the variant of requests that name none, and of :meth:`Engine.load`."""

MEMORY_VARIABLE = "INFINITETALK_MEMORY"
"""Environment variable that chooses how weights are kept, see ``memory.MODES``; by free memory unless set."""

GPUS_VARIABLE = "INFINITETALK_GPUS"
"""Environment variable that says how many GPUs compute a job together; all that are visible unless set."""

_DEFAULT_VARIANT = "4-step"
_TINY_VARIANT = Variant(TINY, 2, {"tiny": 2.0}, 1.0, 2.0)

DEFAULT_PROMPT = "A person is talking to the camera, with natural facial expressions, head movements and gestures."
DEFAULT_NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, overall gray, worst "
    "quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly drawn faces, "
    "deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three legs, many people in the "
    "background, walking backwards"
)
"""What the base model's authors steer away from."""


@dataclass(frozen=True)
class Settings:
    """How a request is performed.

    Args:
        variant: which weights, and the sampling made for them.
        steps: denoising steps a take.
        shift: of the time steps; None takes the variant's for the size.
        text_guidance, audio_guidance: scales of guidance; 1 is none, and spares a forward.
        negative_prompt: what to steer away from, where there is text guidance.
        apg: adaptive projected guidance.
        teacache: threshold of skipping steps, 0 skips none.
        eight_bit_attention: tokens attend to one another in 8 bits.
        attention_keep: share of the blocks of tokens that each sees after the first quarter of the steps; 1 sees all.
    """

    variant: Variant
    steps: int
    shift: float | None
    text_guidance: float
    audio_guidance: float
    negative_prompt: str
    apg: bool
    teacache: float
    eight_bit_attention: bool
    attention_keep: float

    @property
    def tiny(self) -> bool:
        """Whether the weights are random."""
        return self.variant.name == TINY


_Check = Callable[[object], bool]


def _between(low: float, high: float) -> _Check:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


_KNOWN: Mapping[str, tuple[str, _Check]] = {
    "variant": (f"one of {', '.join([*VARIANTS, TINY])}", lambda value: value in {*VARIANTS, TINY}),
    "steps": (
        "a whole number from 1 to 100",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100,
    ),
    "shift": ("a number from 0.1 to 30", _between(0.1, 30)),
    "text_guidance": ("a number from 1 (none) to 20", _between(1, 20)),
    "audio_guidance": ("a number from 1 (none) to 20", _between(1, 20)),
    "negative_prompt": ("a text of at most 4000 characters", lambda value: isinstance(value, str) and len(value) <= 4000),
    "apg": ("true or false", lambda value: isinstance(value, bool)),
    "teacache": ("a number from 0 (off) to 1", _between(0, 1)),
    "eight_bit_attention": ("true or false", lambda value: isinstance(value, bool)),
    "attention_keep": ("a number from 0.1 to 1 (all)", _between(0.1, 1)),
}
"""Option name -> what it may be, and whether a value is that."""


def default_variant() -> str:
    """The variant of requests that name none; ``variant_unknown`` when the environment names one that there is not."""
    name = os.environ.get(DEFAULT_VARIANT_VARIABLE) or _DEFAULT_VARIANT
    if name not in {*VARIANTS, TINY}:
        raise InfiniteTalkError(
            "variant_unknown",
            f"{DEFAULT_VARIANT_VARIABLE} is {name!r}: set it to one of {', '.join([*VARIANTS, TINY])}.",
        )
    return name


def find_variant(name: str) -> Variant:
    """A variant by a name that was checked."""
    return _TINY_VARIANT if name == TINY else VARIANTS[name]


def read_options(options: Mapping[str, str | int | float | bool], expressiveness: float) -> Settings:
    """The settings that a request's options ask for; what is not given is the variant's own.

    Args:
        options: by name.
        expressiveness: 0..2 of the request. Speech moves face and body through audio guidance, so where
            ``audio_guidance`` is not given its excess over 1 is multiplied by (1 + expressiveness) / 2.

    Raises:
        InfiniteTalkError: ``option_unknown``, ``option_invalid``, ``variant_unknown``, with ``param="options"``.
    """
    for name, value in options.items():
        if name not in _KNOWN:
            raise InfiniteTalkError(
                "option_unknown",
                f"The infinitetalk engine has no option {name!r}: choose from {', '.join(_KNOWN)}.",
                param="options",
            )
        meaning, check = _KNOWN[name]
        if not check(value) or (isinstance(value, float) and not math.isfinite(value)):
            code = "variant_unknown" if name == "variant" else "option_invalid"
            raise InfiniteTalkError(code, f"The option {name} is {value!r}: choose {meaning}.", param="options")
    variant = find_variant(str(options.get("variant") or default_variant()))
    expressive = 1 + (variant.audio_scale - 1) * (1 + expressiveness) / 2
    return Settings(
        variant=variant,
        steps=int(options.get("steps", variant.steps)),
        shift=float(options["shift"]) if "shift" in options else None,
        text_guidance=float(options.get("text_guidance", variant.text_scale)),
        audio_guidance=float(options.get("audio_guidance", expressive)),
        negative_prompt=str(options.get("negative_prompt", DEFAULT_NEGATIVE_PROMPT)),
        apg=bool(options.get("apg", False)),
        teacache=float(options.get("teacache", 0.0)),
        eight_bit_attention=bool(options.get("eight_bit_attention", False)),
        attention_keep=float(options.get("attention_keep", 1.0)),
    )
