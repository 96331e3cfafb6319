"""What 68 landmarks say: opening of the mouth, openness of the eyes, jitter. Landmarks are ``[T, 68, 2]``, NaN where unseen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tracks = NDArray[np.float64]
Curve = NDArray[np.float64]

_INNER_LIP_PAIRS = ((61, 67), (62, 66), (63, 65))
_RIGHT_EYE, _LEFT_EYE = (36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47)
_STABLE = (27, 28, 29, 30, 36, 39, 42, 45)
_JITTER_WINDOW = 9


def eye_distance(tracks: Tracks) -> Curve:
    """Distance between the eyes' centres in pixels, ``[T]``."""
    return np.asarray(np.linalg.norm(_eye_line(tracks), axis=1))


def face_width(tracks: Tracks) -> Curve:
    """Distance between the ends of the jaw line in pixels, ``[T]``."""
    return np.asarray(np.linalg.norm(tracks[:, 16] - tracks[:, 0], axis=1))


def mouth_opening(tracks: Tracks) -> Curve:
    """Gap between the inner lips in eye distances, ``[T]``: the mean of three pairs of points, across the roll-aligned face.

    The distance between the eyes is the unit because the width of the mouth changes with what is said.
    """
    along = _eye_line(tracks)
    length = np.linalg.norm(along, axis=1)
    down = np.stack([-along[:, 1], along[:, 0]], 1) / length[:, None]
    gaps = [np.einsum("td,td->t", tracks[:, lower] - tracks[:, upper], down) for upper, lower in _INNER_LIP_PAIRS]
    return np.asarray(np.mean(gaps, 0) / length)


def eye_openness(tracks: Tracks) -> Curve:
    """Eye-aspect ratio (Soukupová and Čech 2016), mean of both eyes, ``[T]``."""
    return np.asarray((_aspect(tracks[:, _RIGHT_EYE]) + _aspect(tracks[:, _LEFT_EYE])) / 2)


def jitter(tracks: Tracks) -> float:
    """Trembling of points that should move smoothly (nose bridge, eye corners), in percent of the eye distance.

    Slow motion is removed by a quadratic fitted to each point's nine surrounding frames; what remains is judged by the root
    mean square of its second differences. NaN when the face is never seen for nine frames on end.
    """
    points = tracks[:, _STABLE] / np.nanmedian(eye_distance(tracks))
    if len(points) < _JITTER_WINDOW + 2:
        return float("nan")
    half = _JITTER_WINDOW // 2
    time = np.arange(-half, half + 1)
    weights = np.linalg.pinv(np.stack([np.ones_like(time), time, time**2], 1).astype(float))[0]
    windows = np.lib.stride_tricks.sliding_window_view(points, _JITTER_WINDOW, axis=0)
    rest = points[half:-half] - windows @ weights
    bends = np.diff(rest, 2, axis=0)
    seen = bends[np.isfinite(bends).all(axis=(1, 2))]
    return float(100 * np.sqrt(np.mean(np.sum(seen**2, axis=2)))) if len(seen) else float("nan")


def _eye_line(tracks: Tracks) -> NDArray[np.float64]:
    return np.asarray(tracks[:, _LEFT_EYE].mean(1) - tracks[:, _RIGHT_EYE].mean(1))


def _aspect(eye: NDArray[np.float64]) -> Curve:
    height = np.linalg.norm(eye[:, 1] - eye[:, 5], axis=1) + np.linalg.norm(eye[:, 2] - eye[:, 4], axis=1)
    return np.asarray(height / (2 * np.linalg.norm(eye[:, 0] - eye[:, 3], axis=1)))
