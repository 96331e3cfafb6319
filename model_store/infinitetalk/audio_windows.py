"""Which speech each picture hears: windows around video frames, regrouped for latent frames."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 5
"""Speech vectors a video frame sees: its own and two to either side."""

FRAMES_PER_LATENT = 4
"""Video frames in every latent frame but the first, which holds one."""


def latent_frames(frames: int) -> int:
    """Number of latent frames of ``frames`` video frames: 1 + (frames - 1) / 4; ``ValueError`` where that is not whole."""
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
        raise ValueError(f"{frames} video frames do not fill latent frames: 4n + 1 are needed (81, 77, ... 1)")
    return 1 + (frames - 1) // FRAMES_PER_LATENT


def frame_windows(embedding: Tensor, start: int, frames: int) -> Tensor:
    """The window of every video frame of a chunk: frame f hears f-2 .. f+2.

    Args:
        embedding: speech vectors, 25 a second, ``[L, ...]`` with L >= 1 (``[L, 12, 768]`` from the speech encoder).
        start: the chunk's first frame, counted in the embedding.
        frames: the chunk's number of frames.

    Returns:
        ``[frames, 5, ...]``; what lies before the first vector or beyond the last repeats that one.
    """
    reach = WINDOW // 2
    centres = torch.arange(start, start + frames, device=embedding.device)
    offsets = torch.arange(-reach, reach + 1, device=embedding.device)
    return embedding[(centres.unsqueeze(1) + offsets).clamp(0, embedding.shape[0] - 1)]


def latent_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of video frames regrouped into one row of speech vectors a latent frame.

    A later latent frame covers video frames f0..f3 and hears the first three of f0's window, the centres of f1's and
    f2's, and the last three of f3's: f0-2, f0-1, f0, f1, f2, f3, f3+1, f3+2.

    Args:
        windows: ``[P, F, W, ...]``, F = 4n + 1, W odd.

    Returns:
        first: ``[P, 1, W, ...]``, frame 0's window.
        later: ``[P, n, W + 3, ...]``.
    """
    latent_frames(windows.shape[1])
    centre = windows.shape[2] // 2
    groups = windows[:, 1:].unflatten(1, (-1, FRAMES_PER_LATENT)) if windows.shape[1] > 1 else windows[:, 1:].unsqueeze(2)
    if not groups.shape[1]:
        return windows[:, :1], windows.new_empty(
            windows.shape[0], 0, windows.shape[2] + FRAMES_PER_LATENT - 1, *windows.shape[3:]
        )
    later = torch.cat((groups[:, :, 0, : centre + 1], groups[:, :, 1:-1, centre], groups[:, :, -1, centre:]), dim=2)
    return windows[:, :1], later
