"""The public checkpoints that `infinitetalk` runs on: where each is published, its files, its licence, how to use it.

Sizes and checksums stand here only where they are publicly recorded; for the other files they are taken from the source
at the first pull and recorded beside the files (trust on first use), see ``weights``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_store.errors import InfiniteTalkError

LICENCE_UNKNOWN = "see the repository's page"


@dataclass(frozen=True)
class WeightFile:
    """One file: its path in the repository, and bytes and SHA-256 where they are publicly recorded."""

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Component:
    """One part of the model.

    Args:
        name: what users call it.
        role: what it does, in a few words.
        repository: ``owner/name`` on the Hugging Face hub; also the folder that its files lie in, in caches and mirrors.
        files: what is fetched.
        licence: SPDX name as its publisher states it.
        about: size in gigabytes, approximate, for planning; None where nobody has said it.
        revision: of the repository.
    """

    name: str
    role: str
    repository: str
    files: tuple[WeightFile, ...]
    licence: str
    about: float | None = None
    revision: str = "main"


@dataclass(frozen=True)
class Variant:
    """A way to run the transformer: which LoRA is merged, and the sampling that it was made for.

    Args:
        name: what users call it.
        steps: denoising steps a chunk.
        shift: of the time steps, by resolution class: ``480`` and ``720``.
        text_scale, audio_scale: guidance.
        lora: component whose file is merged into the weights, with strength 1.
    """

    name: str
    steps: int
    shift: Mapping[str, float]
    text_scale: float
    audio_scale: float
    lora: str | None = None


_WAN = "Wan-AI/Wan2.1-I2V-14B-480P"
_INFINITETALK = "MeiGen-AI/InfiniteTalk"


def _quantised(people: str, form: str) -> Component:
    stem = f"quant_models/infinitetalk_{people}_{form}"
    return Component(
        f"transformer-{people}-{form}",
        f"base and adapter in one, {form} weights, {people} speaker" + ("s" if people == "multi" else ""),
        _INFINITETALK,
        (WeightFile(f"{stem}.safetensors"), WeightFile(f"{stem}.json")),
        "Apache-2.0",
        19,
    )


_COMPONENTS = (
    Component(
        "base",
        "video transformer, image to video, 16.4 B parameters",
        _WAN,
        (WeightFile("config.json"), *(WeightFile(f"diffusion_pytorch_model-{i:05}-of-00007.safetensors") for i in range(1, 8))),
        "Apache-2.0",
        65.6,
    ),
    Component(
        "adapter-single",
        "audio adapter, one speaker, 2.5 B parameters",
        _INFINITETALK,
        (WeightFile("single/infinitetalk.safetensors"),),
        "Apache-2.0",
    ),
    Component(
        "adapter-multi",
        "audio adapter, several speakers, 2.5 B parameters",
        _INFINITETALK,
        (WeightFile("multi/infinitetalk.safetensors"),),
        "Apache-2.0",
    ),
    *(_quantised(people, form) for people in ("single", "multi") for form in ("fp8", "int8")),
    Component(
        "text-encoder",
        "UMT5-XXL encoder and its tokenizer",
        _WAN,
        (
            WeightFile(
                "models_t5_umt5-xxl-enc-bf16.pth",
                11_361_920_418,
                "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
            ),
            WeightFile("google/umt5-xxl/tokenizer.json"),
        ),
        "Apache-2.0",
        11.4,
    ),
    Component(
        "image-encoder",
        "OpenCLIP XLM-RoBERTa ViT-H/14",
        _WAN,
        (
            WeightFile(
                "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
                4_772_359_047,
                "628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
            ),
        ),
        "Apache-2.0",
        4.8,
    ),
    Component(
        "vae",
        "video autoencoder",
        _WAN,
        (WeightFile("Wan2.1_VAE.pth", 507_609_880, "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981"),),
        "Apache-2.0",
        0.5,
    ),
    Component(
        "speech-encoder",
        "wav2vec 2.0 base, Chinese",
        "TencentGameMate/chinese-wav2vec2-base",
        (WeightFile("model.safetensors"),),
        LICENCE_UNKNOWN,
        0.4,
        "refs/pr/1",
    ),
    Component(
        "lora-8-step",
        "FusionX, for 8 steps",
        "vrgamedevgirl84/Wan14BT2VFusioniX",
        (WeightFile("FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors"),),
        LICENCE_UNKNOWN,
    ),
    Component(
        "lora-4-step",
        "LightX2V step and guidance distillation, for 4 steps",
        "Kijai/WanVideo_comfy",
        (WeightFile("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"),),
        LICENCE_UNKNOWN,
    ),
)

COMPONENTS: Mapping[str, Component] = {component.name: component for component in _COMPONENTS}
"""Every component by name."""

VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("base", 40, {"480": 7.0, "720": 11.0}, 5.0, 4.0),
        Variant("8-step", 8, {"480": 2.0, "720": 2.0}, 1.0, 2.0, "lora-8-step"),
        Variant("4-step", 4, {"480": 2.0, "720": 2.0}, 1.0, 2.0, "lora-4-step"),
    )
}
"""Every variant by name."""

ENCODERS = ("text-encoder", "image-encoder", "vae", "speech-encoder")
"""What every variant needs besides a transformer."""


def component(name: str) -> Component:
    """A component by name; ``component_unknown`` when there is none of that name."""
    try:
        return COMPONENTS[name]
    except KeyError:
        raise InfiniteTalkError(
            "component_unknown", f"There is no component {name!r}: choose from {', '.join(COMPONENTS)}.", param="component"
        ) from None


def variant(name: str) -> Variant:
    """A variant by name; ``variant_unknown`` when there is none of that name."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise InfiniteTalkError(
            "variant_unknown", f"There is no variant {name!r}: choose from {', '.join(VARIANTS)}.", param="variant"
        ) from None


def needed(variant_name: str = "base", *, people: str = "single", quantised: str | None = None) -> tuple[Component, ...]:
    """The components that a variant runs on.

    Args:
        variant_name: a key of :data:`VARIANTS`.
        people: ``single`` or ``multi`` speakers.
        quantised: ``fp8`` or ``int8`` for the publishers' 8-bit transformer instead of base and adapter.

    Raises:
        InfiniteTalkError: ``variant_unknown``, ``component_unknown``.
    """
    transformer = ["base", f"adapter-{people}"] if quantised is None else [f"transformer-{people}-{quantised}"]
    lora = variant(variant_name).lora
    return tuple(component(name) for name in (*transformer, *([] if lora is None else [lora]), *ENCODERS))
