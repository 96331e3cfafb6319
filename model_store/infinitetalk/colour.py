"""Colours of generated frames held to the reference frame's, so that they do not drift over many chunks.

Every frame's mean and deviation of each channel of CIE L*a*b* become the reference's (Reinhard et al., "Color Transfer
between Images", 2001), at full strength. The corrected frames are what the next chunk continues from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# IEC 61966-2-1 (sRGB) primaries to CIE XYZ, divided by the D65 white point.
_WHITE = (0.950456, 1.0, 1.088754)
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_CUBE_ABOVE = 0.008856
_LINEAR_SLOPE, _LINEAR_OFFSET = 7.787, 16 / 116
_LEAST_DEVIATION = 1e-4  # a flat frame has no deviation to scale


def to_lab(rgb: Tensor) -> Tensor:
    """sRGB in 0..1 to CIE L*a*b* (D65), fp32 ``[3, ...]``, L in 0..100."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    x, y, z = _mix(_matrix(rgb), linear).unbind(0)
    fx, fy, fz = (torch.where(v > _CUBE_ABOVE, v.clamp(min=0) ** (1 / 3), _LINEAR_SLOPE * v + _LINEAR_OFFSET) for v in (x, y, z))
    return torch.stack((116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)))


def from_lab(lab: Tensor) -> Tensor:
    """The inverse of :func:`to_lab`, what lies outside sRGB's gamut clamped to 0..1."""
    lightness, a, b = lab.unbind(0)
    fy = (lightness + 16) / 116
    edge = _CUBE_ABOVE ** (1 / 3)
    xyz = torch.stack(
        [torch.where(f > edge, f**3, (f - _LINEAR_OFFSET) / _LINEAR_SLOPE) for f in (fy + a / 500, fy, fy - b / 200)]
    )
    linear = _mix(torch.linalg.inv(_matrix(lab)), xyz).clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).clamp(0, 1)


@dataclass(frozen=True)
class ColourCorrection:
    """Brings frames to a reference's colours.

    Args:
        mean, deviation: the reference's, of every channel of L*a*b*, each ``[3]``.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def towards(cls, reference: Tensor) -> ColourCorrection:
        """For a reference ``[3, H, W]`` in -1..1."""
        mean, deviation = _statistics(to_lab(reference.unsqueeze(1).float() / 2 + 0.5))
        return cls(mean[:, 0, 0, 0], deviation[:, 0, 0, 0])

    def apply(self, video: Tensor) -> Tensor:
        """Frames ``[3, F, H, W]`` in -1..1, each on its own, in the reference's colours, of the same shape and range."""
        lab = to_lab(video.float() / 2 + 0.5)
        mean, deviation = _statistics(lab)
        target_mean, target = (v.to(lab.device).view(3, 1, 1, 1) for v in (self.mean, self.deviation))
        return from_lab((lab - mean) / deviation.clamp(min=_LEAST_DEVIATION) * target + target_mean) * 2 - 1


def _statistics(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel and frame, each [3, F, 1, 1]."""
    deviation, mean = torch.std_mean(lab, dim=(-2, -1), correction=0, keepdim=True)
    return mean, deviation


def _matrix(like: Tensor) -> Tensor:
    matrix = torch.tensor(_TO_XYZ, device=like.device, dtype=torch.float32)
    return matrix / torch.tensor(_WHITE, device=like.device, dtype=torch.float32).unsqueeze(1)


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    return (matrix @ channels.flatten(1)).view(channels.shape)
