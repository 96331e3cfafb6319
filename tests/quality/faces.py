"""Landmarks of a schematic face, whose truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.evaluate import pose

EYE_DISTANCE = 80.0
"""Pixels between the eyes' centres of :func:`face`."""


def face(*, gap: float = 0.0, eyes: float = 0.3) -> NDArray[np.float64]:
    """68 landmarks ``[68, 2]``, upright, nose root at (200, 150): inner lips ``gap`` eye distances apart, eye-aspect ``eyes``."""
    points = np.zeros((68, 2))
    points[:17] = np.stack([np.linspace(-90, 90, 17), 20 + 130 * np.sin(np.linspace(0, np.pi, 17))], 1)
    points[27:31] = [(0, 0), (0, 12), (0, 24), (0, 36)]
    points[31:36] = [(-14, 44), (-7, 47), (0, 48), (7, 47), (14, 44)]
    half = EYE_DISTANCE / 2
    for first, centre in ((36, -half), (42, half)):
        up = 30 * eyes / 2
        points[first : first + 6] = [
            (centre - 15, 0),
            (centre - 5, -up),
            (centre + 5, -up),
            (centre + 15, 0),
            (centre + 5, up),
            (centre - 5, up),
        ]
    down = gap * EYE_DISTANCE / 2
    points[48:60] = [(30 * np.cos(a), 80 - (12 + down) * np.sin(a)) for a in np.linspace(np.pi, -np.pi, 12, endpoint=False)]
    points[60:68] = [
        (-22, 80),
        (-8, 80 - down),
        (0, 80 - down),
        (8, 80 - down),
        (22, 80),
        (8, 80 + down),
        (0, 80 + down),
        (-8, 80 + down),
    ]
    return points + np.array([200, 150])


def turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """The same, rolled clockwise about the nose's root."""
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - [200, 150]) @ rotation.T + [200, 150]


def seen_from(yaw: float, pitch: float, roll: float, *, width: int = 640, height: int = 480) -> NDArray[np.float64]:
    """Landmarks whose rigid ones are the projected generic face, turned by the angles (degrees) that `pose` should find."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    world = pose.FACE @ (about_z @ about_y @ about_x).T + np.array([20, -10, 900])
    points = np.zeros((68, 2))
    points[list(pose.POINTS)] = world[:, :2] / world[:, 2:] * 1.5 * max(width, height) + [width / 2, height / 2]
    return points
