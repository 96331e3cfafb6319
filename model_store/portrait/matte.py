"""Separates the person from the scene: a fine matte, clean foreground colours, and the background filled in behind."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture
from model_store.portrait.networks import run

Plane = NDArray[np.floating]
"""One value a pixel, ``[H, W]``."""


_GUIDE_SIDE = 512
"""Longer side at which the matte's edges are fitted; the fit is then applied at full size."""


@dataclass(frozen=True)
class Layers:
    """The picture taken apart, so that ``matte * foreground + (1 - matte) * background`` is the picture again.

    Args:
        matte: ``[H, W]`` in 0..1, 1 on the person.
        foreground: float32 RGB ``[H, W, 3]`` in 0..255, the person's own colours, free of the background's at the edge.
        background: float32 RGB ``[H, W, 3]`` in 0..255, the scene without the person.
    """

    matte: Plane
    foreground: NDArray[np.floating]
    background: NDArray[np.floating]


def separate(picture: Picture, reach: float, apart: Plane, face: NDArray[np.floating]) -> Layers:
    """Take ``picture`` apart.

    Args:
        picture: RGB uint8 ``[H, W, 3]``.
        reach: length, in pixels, over which hair and cloth may blend into the scene.
        face: ``[N, 2]`` outline of the face to be animated; if it is not seen as a person's (drawings), nothing is cut out.
        apart: ``[H, W]`` in 0..1, how much the person is cut out here; where it is 0 the scene stays one with the person.
    """
    image = picture.astype(np.float32)
    seen = _segment(picture)
    inside = np.zeros(seen.shape, np.uint8)
    cv2.fillPoly(inside, [np.round(face).astype(np.int32)], 1)
    if not inside.any() or seen[inside > 0].mean() < 0.7:
        return Layers(np.ones_like(seen), image, image)
    person = np.maximum(_refine(seen, image, reach), cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0))
    # Lenses and sharpening leave a rim beside the outline that belongs to the person: the scene begins beyond it.
    rim = cv2.dilate((person > 0.02).astype(np.uint8), _disc(round(0.45 * reach))) > 0
    background = fill(image, ~rim)
    matte = 1 - (1 - person) * apart
    foreground = _clean_foreground(image, matte, background, reach)
    # Where the person is not cut out, both layers are the picture itself.
    background = apart[..., None] * background + (1 - apart[..., None]) * image
    return Layers(matte.astype(np.float32), foreground, background.astype(np.float32))


def _disc(radius: int) -> NDArray[np.uint8]:
    size = 2 * max(1, radius) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _segment(picture: Picture) -> Plane:
    """Probability of "person" at the picture's size, from MediaPipe's selfie segmentation (256 x 256)."""
    height, width = picture.shape[:2]
    value = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)[None].astype(np.float32) / 255
    (mask,) = run("selfie_segmentation.tflite", value)
    return cv2.resize(mask[0, :, :, 0], (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1).astype(np.float32)


def _refine(mask: Plane, image: NDArray[np.floating], reach: float) -> Plane:
    """Fit the coarse mask to the picture's own edges: a fast guided filter (He & Sun, https://arxiv.org/abs/1505.00996)."""
    height, width = mask.shape
    scale = min(1.0, _GUIDE_SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    guide = cv2.resize(image, small, interpolation=cv2.INTER_AREA) / 255
    coarse = cv2.resize(mask, small, interpolation=cv2.INTER_AREA)
    radius = max(2, round(reach * scale))
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(value: NDArray[np.floating]) -> NDArray[np.floating]:
        return cv2.boxFilter(value, -1, size, borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_mask = mean(guide), mean(coarse)
    covariance = mean(guide * coarse[..., None]) - mean_guide * mean_mask[..., None]
    pairs = np.einsum("hwi,hwj->hwij", guide, guide).reshape(*coarse.shape, 9)
    variance = np.concatenate([mean(pairs[..., k : k + 3]) for k in (0, 3, 6)], axis=-1).reshape(*coarse.shape, 3, 3)
    variance -= np.einsum("hwi,hwj->hwij", mean_guide, mean_guide)
    variance += np.eye(3, dtype=np.float32) * 2e-4
    slope = np.linalg.solve(variance, covariance[..., None])[..., 0].astype(np.float32)
    offset = mean_mask - (slope * mean_guide).sum(-1)
    full = (width, height)
    fine = (cv2.resize(mean(slope), full) * image).sum(-1) / 255 + cv2.resize(mean(offset), full)
    # Where the network is sure it is right; the filter decides only near the outline. Then the faint ends are cut off.
    near = cv2.GaussianBlur(((mask > 0.1) & (mask < 0.9)).astype(np.float32), (0, 0), reach / 2)
    near = np.clip(near * 4, 0, 1)
    matte = near * fine + (1 - near) * (mask > 0.5)
    return np.clip((matte - 0.08) / 0.84, 0, 1).astype(np.float32)


def fill(image: NDArray[np.floating], known: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Smoothly continue the known pixels into the others: push-pull over a pyramid (Gortler et al., 1996, section 3.4).

    Args:
        image: ``[H, W, C]``.
        known: ``[H, W]``, at least one pixel of which should be true (else the mean colour is returned).
    """
    if not known.any():
        return np.broadcast_to(image.mean((0, 1)), image.shape).astype(np.float32).copy()
    weight = known.astype(np.float32)
    return np.where(known[..., None], image, _pull(image * weight[..., None], weight)).astype(np.float32)


def _pull(weighted: NDArray[np.floating], weight: Plane) -> NDArray[np.floating]:
    height, width = weight.shape
    colour = weighted / np.maximum(weight, 1e-6)[..., None]
    if min(height, width) <= 2 or weight.min() > 0.5:
        return colour
    half = ((width + 1) // 2, (height + 1) // 2)
    coarse_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    coarse_weighted = cv2.resize(weighted, half, interpolation=cv2.INTER_AREA)
    # What lies within one coarse pixel of known colours counts as known there: weights saturate quickly.
    gain = np.minimum(1.0, 3 * coarse_weight) / np.maximum(coarse_weight, 1e-6)
    coarse = _pull(coarse_weighted * gain[..., None], coarse_weight * gain)
    above = cv2.GaussianBlur(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), (0, 0), 1.0)
    share = np.minimum(1.0, weight)[..., None]
    return (share * colour + (1 - share) * above).astype(np.float32)


def _clean_foreground(
    image: NDArray[np.floating], matte: Plane, background: NDArray[np.floating], reach: float
) -> NDArray[np.floating]:
    """Colours of the person alone: blur-fusion estimation (Forte, https://arxiv.org/abs/2006.14970), coarse then fine."""
    foreground, behind = image, background
    for radius in (max(2, round(2 * reach)), max(1, round(reach / 4))):
        size = (2 * radius + 1, 2 * radius + 1)
        alpha = matte[..., None]
        mean_alpha = cv2.blur(matte, size)[..., None]
        mean_foreground = cv2.blur(foreground * alpha, size) / (mean_alpha + 1e-5)
        mean_background = cv2.blur(behind * (1 - alpha), size) / (1 - mean_alpha + 1e-5)
        residual = image - alpha * mean_foreground - (1 - alpha) * mean_background
        foreground = np.clip(mean_foreground + alpha * residual, 0, 255)
        behind = mean_background
    foreground = np.where(matte[..., None] > 0.995, image, foreground)
    # An expression may push the outline outwards: the person's colours go on beyond it.
    return fill(foreground, matte > 0.15)
