"""Which way the head turns: the pose of a generic face that explains the landmarks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Tracks = NDArray[np.float64]

POINTS = (27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45)
"""Nose and eye corners only: a jaw that speaks would look like a nodding head."""

# Millimetres, x to the viewer's right, y down, z away from the viewer, origin at the root of the nose. Across the face: dlib's
# own mean places, scaled to an adult's biocular width of 90. In depth: rounded adult means of facial anthropometry (a nose
# protruding 20, the outer eye corners 18 behind its root).
FACE = np.array(
    [
        *[(0, 0, 0), (0, 14, -6), (0, 28, -13), (0, 42, -20)],
        *[(-13.7, 48.5, 0), (0, 54, -6), (13.7, 48.5, 0)],
        *[(-45, -0.5, 18), (-18.3, 2, 9), (18.3, 2, 9), (45, -0.5, 18)],
    ],
    np.float64,
)


def head_pose(tracks: Tracks, width: int, height: int) -> NDArray[np.float64]:
    """Yaw, pitch and roll in degrees ``[T, 3]``: turning to the viewer's right, nodding down, tilting clockwise are positive.

    A pinhole camera is assumed whose focal length is 1.5 times the frame's long side (a portrait lens). The generic face makes
    the absolute angles approximate; changes of them are what counts.

    Args:
        tracks: landmarks ``[T, 68, 2]``, NaN where unseen (the pose is NaN there too).
        width, height: of the frame in pixels.
    """
    focal = 1.5 * max(width, height)
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    angles = np.full((len(tracks), 3), np.nan)
    for number, points in enumerate(np.ascontiguousarray(tracks[:, POINTS])):
        if not np.isfinite(points).all():
            continue
        solved, turn, _ = cv2.solvePnP(FACE, points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        if solved:
            angles[number] = _angles(cv2.Rodrigues(turn)[0])
    return angles


def _angles(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """Angles of R = Rz(roll) Ry(-yaw) Rx(pitch) in camera axes; the face looks along -z."""
    roll = np.arctan2(rotation[1, 0], rotation[0, 0])
    upright = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]]) @ rotation
    forward = -upright[:, 2]
    yaw = np.arctan2(forward[0], -forward[2])
    pitch = np.arcsin(np.clip(forward[1], -1, 1))
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))
