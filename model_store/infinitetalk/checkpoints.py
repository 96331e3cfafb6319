"""The model's parts loaded from the cache of weights, by name; whichever of the two public layouts lies there is read."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model_store.catalogue import Component, component, variant
from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.image_encoder import ImageEncoder, load_image_encoder
from model_store.infinitetalk.loading import OnTensor, load_transformer, read_transformer_config
from model_store.infinitetalk.safetensors_header import damaged
from model_store.infinitetalk.speech_encoder import SpeechEncoder, load_speech_encoder
from model_store.infinitetalk.text_encoder import TextEncoder, load_text_encoder
from model_store.infinitetalk.transformer import InfiniteTalkTransformer
from model_store.infinitetalk.vae import VideoAutoencoder, load_vae
from model_store.weights import WeightCache

_CONVERTED = {"base": "transformer", "text-encoder": "text_encoder", "image-encoder": "image_encoder", "vae": "vae"}
"""Component -> its folder in the ``-Diffusers`` repository."""


class Checkpoints:
    """Loads parts from a cache.

    Args:
        cache: where the weights lie.
        device: where they are placed.
    """

    def __init__(self, cache: WeightCache, device: torch.device | str) -> None:
        self._cache = cache
        self._device = device

    def transformer(
        self,
        variant_name: str = "base",
        *,
        several: bool = False,
        published: str | None = None,
        quantised: str | None = None,
        on_tensor: OnTensor = lambda done, total: None,
    ) -> InfiniteTalkTransformer:
        """The transformer with its adapter, and the variant's LoRA merged, in bf16.

        Args:
            variant_name: ``base``, ``8-step`` or ``4-step``.
            several: the adapter for several speakers instead of one.
            published: ``fp8`` or ``int8`` for the publishers' 8-bit file instead of base and adapter.
            quantised: ``fp8`` or ``int8`` to pack the bf16 weights in 8 bits while loading.
            on_tensor: progress.

        Raises:
            InfiniteTalkError: ``variant_unknown``, ``component_unknown``, ``weights_missing``, or see ``loading.fill``.
        """
        people = "multi" if several else "single"
        lora = variant(variant_name).lora
        loras = [] if lora is None else [(self._cache.files(component(lora))[0], 1.0)]
        if published is not None:
            packed = self._cache.files(component(f"transformer-{people}-{published}"))
            files, config = [path for path in packed if path.suffix == ".safetensors"], None
        else:
            base = self._files("base")
            files = [path for path in base if path.suffix == ".safetensors"] + self._cache.files(component(f"adapter-{people}"))
            config = read_transformer_config(base[0].parent / "config.json")
        return load_transformer(files, config, device=self._device, loras=loras, quantised=quantised, on_tensor=on_tensor)

    def text_encoder(self) -> TextEncoder:
        """The text encoder, in bf16."""
        files = self._files("text-encoder")
        tokenizer = next((path for path in files if path.name == "tokenizer.json"), None)
        return load_text_encoder(
            [path for path in files if path.suffix != ".json"],
            tokenizer or files[0].parents[1] / "tokenizer" / "tokenizer.json",
            device=self._device,
        )

    def image_encoder(self) -> ImageEncoder:
        """The image encoder, in bf16."""
        return load_image_encoder(self._files("image-encoder"), device=self._device)

    def vae(self, room: int) -> VideoAutoencoder:
        """The video autoencoder, in fp32, that may take so many bytes besides its weights."""
        return load_vae(self._files("vae"), device=self._device, room=room)

    def speech_encoder(self) -> SpeechEncoder:
        """The speech encoder, in fp32."""
        return load_speech_encoder(self._cache.files(component("speech-encoder")), device=self._device)

    def _files(self, name: str) -> list[Path]:
        """A component's files as its authors publish them, or as converted where only those are there."""
        part = component(name)
        folder = self._cache.folder / f"{part.repository}-Diffusers" / _CONVERTED[name]
        if self._cache.missing(part) and folder.is_dir():
            return _converted(part, folder)
        return self._cache.files(part)


def _converted(part: Component, folder: Path) -> list[Path]:
    """The weight files in a folder of a ``-Diffusers`` repository, none of those in its index missing."""
    found = sorted(folder.glob("*.safetensors"))
    wanted = {path.name for path in found}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            wanted |= set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise damaged(f"{folder.name}/{index.name}", "it is not an index of weight files") from error
    missing = sorted(wanted - {path.name for path in found})
    if missing or not found:
        raise InfiniteTalkError(
            "weights_missing",
            f"{part.repository}-Diffusers/{folder.name} lacks {missing[0] if missing else 'its weights'}. "
            f"Copy it there, or fetch the authors' files with `infinitetalk models pull {part.name}`.",
        )
    return found
