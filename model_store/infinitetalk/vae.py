"""Video to latents and back: Wan2.1's causal 3-D autoencoder (arXiv:2503.20314), streamed group by group.

The first latent frame holds one video frame, every later one four; sides shrink by 8. The network is causal in time, so
encoding and decoding go group by group with a small memory of the past, in memory that does not grow with length.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from model_store.infinitetalk import names
from model_store.infinitetalk.audio_windows import FRAMES_PER_LATENT, latent_frames
from model_store.infinitetalk.loading import fill
from model_store.infinitetalk.memory import picture_bytes
from model_store.infinitetalk.tensor_files import open_tensor_file

_SHRINK = 8  # of a side


class VideoAutoencoder:
    """The autoencoder with its latents normalised as the transformer wants them.

    Args:
        model: diffusers' module with its weights.
        room: bytes of the GPU that it may take; a picture that takes more is worked on in tiles from the start, so that frames do
            not depend on what else lies in memory. None where there is no such bound.
    """

    def __init__(self, model: AutoencoderKLWan, room: int | None = None) -> None:
        self._room = room
        self._model: Any = model.eval().requires_grad_(False)
        shape = (-1, 1, 1, 1)
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._mean = torch.tensor(model.config.latents_mean, device=self._device).view(shape)
        self._std = torch.tensor(model.config.latents_std, device=self._device).view(shape)

    @torch.no_grad()
    def encode_stream(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latent frames of a video that arrives in groups.

        Args:
            groups: ``[3, 1, H, W]`` first, then ``[3, 4, H, W]`` each, in -1..1.

        Yields:
            One latent frame a group, the distribution's mode, normalised, float32 ``[16, 1, H/8, W/8]``.
        """
        memory = _memory(self._model.encoder)
        for group in groups:
            x = group.to(self._device, self._dtype).unsqueeze(0)
            moments = self._model.quant_conv(self._model.encoder(x, feat_cache=memory, feat_idx=[0]))[0]
            yield (moments.chunk(2)[0].float() - self._mean) / self._std

    def encode(self, video: Tensor) -> Tensor:
        """A whole video; where a whole picture does not fit in the GPU's memory, in tiles as :meth:`encode_tiled`.

        Args:
            video: ``[3, F, H, W]`` in -1..1, F = 4n + 1, sides multiples of 8.

        Returns:
            float32 ``[16, n + 1, H/8, W/8]``.
        """
        latent_frames(video.shape[1])
        if not self._fits(*video.shape[2:]):
            return self.encode_tiled(video)
        groups = [video[:, :1], *video[:, 1:].split(FRAMES_PER_LATENT, dim=1)] if video.shape[1] > 1 else [video]
        try:
            return torch.cat(list(self.encode_stream(groups)), dim=1)
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
        _release()
        return self.encode_tiled(video)

    @torch.no_grad()
    def encode_tiled(self, video: Tensor, tile: int = 256, overlap: int = 64) -> Tensor:
        """As :meth:`encode`, in square tiles of ``tile`` pixels that share ``overlap`` pixels with their neighbours."""
        with self._tiles(tile, overlap):
            moments = self._model.encode(video.to(self._device, self._dtype).unsqueeze(0)).latent_dist.mode()[0]
        return (moments.float() - self._mean) / self._std

    def decode_stream(self, latent: Tensor) -> Iterator[Tensor]:
        """Video frames as soon as they are decoded.

        Where a whole picture does not fit in the GPU's memory, the rest is decoded in overlapping tiles, blended at their
        seams: slower, nearly the same picture, and handed on in one piece.

        Args:
            latent: normalised, ``[16, T, h, w]``.

        Yields:
            float32 in -1..1: ``[3, 1, 8h, 8w]`` first, then ``[3, 4, 8h, 8w]`` for every latent frame.
        """
        memory, index = _memory(self._model.decoder), 0
        if self._fits(_SHRINK * latent.shape[2], _SHRINK * latent.shape[3]):
            for index in range(latent.shape[1]):
                try:
                    group = self._decode_group(latent[:, index : index + 1], memory)
                except RuntimeError as error:
                    if not _lacks_memory(error):
                        raise
                    break
                yield group
            else:
                return
            memory.clear()
            _release()
        done = 0 if index == 0 else 1 + (index - 1) * FRAMES_PER_LATENT
        rest = self.decode_tiled(latent)[:, done:]
        first = 1 if index == 0 else FRAMES_PER_LATENT
        yield rest[:, :first]
        if rest.shape[1] > first:
            yield from rest[:, first:].split(FRAMES_PER_LATENT, dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        """A whole video at once: ``[16, T, h, w]`` -> float32 ``[3, 4 (T - 1) + 1, 8h, 8w]`` in -1..1."""
        return torch.cat(list(self.decode_stream(latent)), dim=1)

    @torch.no_grad()
    def decode_tiled(self, latent: Tensor, tile: int = 256, overlap: int = 64) -> Tensor:
        """As :meth:`decode`, in square tiles of ``tile`` pixels that share ``overlap`` pixels with their neighbours."""
        with self._tiles(tile, overlap):
            video: Tensor = self._model.decode(self._denormalised(latent).unsqueeze(0), return_dict=False)[0]
        return video[0].float()

    def _fits(self, height: int, width: int) -> bool:
        return self._room is None or picture_bytes(height, width) <= self._room

    @contextmanager
    def _tiles(self, tile: int, overlap: int) -> Iterator[None]:
        self._model.enable_tiling(tile, tile, tile - overlap, tile - overlap)
        try:
            yield
        finally:
            self._model.use_tiling = False

    @torch.no_grad()
    def _decode_group(self, latent: Tensor, memory: list[Tensor | None]) -> Tensor:
        x = self._model.post_quant_conv(self._denormalised(latent).unsqueeze(0))
        video: Tensor = self._model.decoder(x, feat_cache=memory, feat_idx=[0])
        return video[0].float().clamp(-1, 1)

    def _denormalised(self, latent: Tensor) -> Tensor:
        return (latent.to(self._device).float() * self._std + self._mean).to(self._dtype)


def _lacks_memory(error: RuntimeError) -> bool:
    """Also where cuDNN tried every plan, had no memory for one, and says only that there is none."""
    return isinstance(error, torch.OutOfMemoryError) or "unable to find an engine" in str(error)


def _release() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    torch.cuda.empty_cache()


def _memory(half: nn.Module) -> list[Tensor | None]:
    """The past of every causal convolution, empty."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in half.modules())


def load_vae(
    files: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    sizes: dict[str, Any] | None = None,
    room: int | None = None,
) -> VideoAutoencoder:
    """The autoencoder with its weights.

    Args:
        files: ``Wan2.1_VAE.pth``, or ``vae/diffusion_pytorch_model.safetensors`` of the ``-Diffusers`` repository.
        dtype: of the weights and the arithmetic; the public model is used in float32.
        device: where the weights are placed.
        sizes: arguments of ``AutoencoderKLWan`` for a model of other sizes than the public one.
        room: see :class:`VideoAutoencoder`.

    Raises:
        InfiniteTalkError: see ``loading.fill``.
    """
    with torch.device("meta"):
        model = AutoencoderKLWan(**(sizes or {}))
    fill(model, [open_tensor_file(path) for path in files], names.vae_tensor, dtype=dtype, device=device)
    return VideoAutoencoder(model, room)
