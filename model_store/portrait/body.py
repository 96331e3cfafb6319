"""Moves the whole person: the head turns in depth, the neck follows, the torso sways and breathes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.portrait.channels import Channels
from model_store.portrait.face import Face
from model_store.portrait.geometry import Grid, smoothstep
from model_store.portrait.matte import Plane
from model_store.portrait.spline import interpolate

Field = NDArray[np.floating]
"""A displacement at every node of a grid, ``[rows, columns, 2]`` as (x, y) in pixels."""

STEP = 8
"""Distance between grid nodes, in pixels: the motion is smooth, pixels in between are interpolated."""

FOCAL = 6.0
"""Distance of the camera in face widths: a portrait taken from about a metre."""


class BodyMotion:
    """The motion field of the person for any setting of the head and body dials.

    Args:
        face: in the frame's pixels.
        matte: ``[H, W]`` of the person; decides how far hair reaches and where the body ends.
    """

    def __init__(self, face: Face, matte: Plane) -> None:
        height, width = matte.shape
        self._unit = unit = face.width
        # A face that is turned already has a side that the photo does not show: it turns less.
        self._turn = 1 / (1 + (face.yaw / 20) ** 2)
        self._grid = Grid((0, 0, width, height), STEP)
        self._nodes = self._grid.nodes
        points = face.points
        chin, forehead = points[152, :2], points[10, :2]
        down = (chin - forehead) / np.linalg.norm(chin - forehead)
        right = np.array([-down[1], down[0]]) * np.float32(-1)
        ears = points[[234, 454]].mean(0)
        # The skull turns on the spine: between the ears, a little lower and further back.
        self._pivot = np.array([*(ears[:2] + 0.15 * unit * down), ears[2] + 0.1 * unit], np.float32)
        across = (self._nodes - ears[:2]) @ right / unit
        along = (self._nodes - ears[:2]) @ down / unit
        chin_along = float((chin - ears[:2]) @ down) / unit
        self._depth = self._depth_field(face, across, along)

        # The head moves as one piece down to the jaw line; the neck, and long hair beside it, follow less and less.
        jaw_line = chin_along - (chin_along - 0.25) * smoothstep(0.15, 0.6, np.abs(across))
        rigid = 1 - smoothstep(0.0, 0.75, along - jaw_line)
        beside = 1 - smoothstep(1.3, 2.4, np.abs(across))
        above = 1 - smoothstep(1.8, 3.0, -along)
        self._head_weight = (rigid * beside * above).astype(np.float32)

        # The torso turns about the hips; far from the person, and at them, nothing moves.
        hips = chin_along + 3.2
        person = cv2.GaussianBlur(cv2.dilate(matte, np.ones((3, 3)), iterations=round(0.1 * unit)), (0, 0), 0.12 * unit)
        person = cv2.remap(person, self._nodes, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        near = (1 - smoothstep(1.6, 3.2, np.abs(across))) * person
        self._torso_weight = (np.clip((hips - along) / (hips - chin_along), 0, 1.1) * near).astype(np.float32)
        self._breath_weight = (
            smoothstep(chin_along + 0.1, chin_along + 0.7, along) * (1 - smoothstep(1.2, 3.0, along - chin_along)) * near
        ).astype(np.float32)
        self._torso_pivot = np.array([*(ears[:2] + hips * unit * down)], np.float32)
        self._down = down.astype(np.float32)

    def _depth_field(self, face: Face, across: Plane, along: Plane) -> Plane:
        """Depth of every node in pixels, from the pivot, nearer is negative: the face's own mesh, a skull around it."""
        unit = self._unit
        spread = face.points[:468:4]
        mesh = interpolate(
            spread[:, :2] / unit,
            (spread[:, 2:] - self._pivot[2]) / unit,
            self._nodes.reshape(-1, 2) / np.float32(unit),
            stiffness=1e-3,
        ).reshape(across.shape)
        # Beyond the face, hair and ears lie on a skull whose outline is at the pivot's depth.
        skull = 1 - (across / 0.72) ** 2 - ((along + 0.1) / 0.95) ** 2
        skull_depth = -0.55 * np.sqrt(np.maximum(skull, 0)) + 0.12
        oval = cv2.convexHull(face.points[:468, :2].astype(np.float32))
        inside = np.array(
            [cv2.pointPolygonTest(oval, (float(px), float(py)), True) for px, py in self._nodes.reshape(-1, 2)], np.float32
        ).reshape(across.shape)
        share = smoothstep(-0.18, 0.06, inside / unit)
        depth = share * np.clip(mesh, -1.2, 0.3) + (1 - share) * skull_depth
        return (cv2.GaussianBlur(depth.astype(np.float32), (0, 0), max(0.5, 0.03 * unit / STEP)) * unit).astype(np.float32)

    def forward(self, dials: Channels, frame: int) -> Field:
        """Where each node's matter goes: ``[rows, columns, 2]``."""
        unit = self._unit
        yaw, pitch, roll = (np.radians(float(c[frame])) for c in (dials.yaw, dials.pitch, dials.roll))
        yaw *= self._turn
        rotation = (
            np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
            @ np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
            @ np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
        ).astype(np.float32)
        focal = np.float32(FOCAL * unit)
        flat = self._nodes - self._pivot[:2]
        depth = self._depth[..., None]
        solid = np.concatenate([flat * (focal + depth) / focal, depth], -1) @ rotation.T
        turned = solid[..., :2] * (focal / (focal + solid[..., 2:])) * np.float32(1 + dials.lean[frame])
        shift = np.array([dials.head_x[frame], dials.head_y[frame]], np.float32) * np.float32(unit)
        head = turned - flat + shift

        angle = np.float32(np.radians(float(dials.sway_roll[frame])))
        arm = self._nodes - self._torso_pivot
        torso = np.stack([-arm[..., 1] * angle, arm[..., 0] * angle * np.float32(0.3)], -1)
        torso[..., 0] += np.float32(unit * dials.sway_x[frame])
        breath = -self._down * np.float32(0.035 * unit * dials.breath[frame])
        return (
            head * self._head_weight[..., None]
            + torso * self._torso_weight[..., None]
            + breath * (self._breath_weight + np.float32(0.35) * self._head_weight)[..., None]
        )

    def backward(self, dials: Channels, frame: int) -> Field:
        """A sampling map for ``cv2.remap``: for every output pixel, where in the picture the person is to be looked up."""
        forward = self.forward(dials, frame)
        source = self._nodes
        for _ in range(3):  # fixed point of s = p - D(s); D's slope stays below 0.3, so three rounds leave < 3% of it
            there = cv2.remap(forward, self._grid.index(source), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            source = self._nodes - there
        return self._grid.look(source - self._nodes)
