"""What the transformer is told about the picture: a mask of what is given, and the reference frame as a latent video."""

from __future__ import annotations

import torch
from torch import Tensor

from model_store.infinitetalk.audio_windows import FRAMES_PER_LATENT
from model_store.infinitetalk.vae import VideoAutoencoder


def reference_condition(vae: VideoAutoencoder, reference: Tensor, frames: int) -> Tensor:
    """Mask and picture of one chunk.

    Args:
        vae: encodes the picture.
        reference: the frame that gives identity and scene, ``[3, H, W]`` in -1..1, sides multiples of 16.
        frames: video frames of the chunk, 4n + 1.

    Returns:
        float32 ``[20, T, H/8, W/8]``: 4 mask channels, 1 in latent frame 0 and 0 elsewhere, then the 16 channels of the
        latent of the reference followed by ``frames - 1`` frames of value 0.
    """
    video = reference.new_zeros(reference.shape[0], frames, *reference.shape[1:])
    video[:, 0] = reference
    latent = vae.encode(video)
    mask = latent.new_zeros(FRAMES_PER_LATENT, *latent.shape[1:])
    mask[:, 0] = 1
    return torch.cat((mask, latent))
