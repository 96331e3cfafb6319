"""Draws one frame of the performance: first the face's expression in the photo's own pose, then the whole person's motion."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture
from model_store.portrait.body import BodyMotion
from model_store.portrait.channels import Channels
from model_store.portrait.controls import FaceControls, Targets
from model_store.portrait.eyes import eyes
from model_store.portrait.geometry import Box, Grid, coverage, smoothstep
from model_store.portrait.mouth import Mouth
from model_store.portrait.scene import Scene
from model_store.portrait.spline import Points, backward_warp


class Renderer:
    """Frames of one scene. Each is drawn from the dials alone: no frame depends on another, several may be drawn at once."""

    def __init__(self, scene: Scene) -> None:
        height, width = scene.image.shape[:2]
        layers = scene.layers
        self._controls = controls = FaceControls(scene.face, scene.blur)
        unit = controls.unit
        sources = controls.sources.shared
        self._face = _box(sources.min(0) - 0.25 * unit, sources.max(0) + 0.15 * unit, width, height)
        reach = (np.abs(controls.right) + np.abs(controls.down)) * 0.42 * unit
        self._mouth_box = _box(controls.centre - reach, controls.centre + reach, width, height)
        self._face_warp = _Warp(self._face, unit, 22, self._face[:2])
        self._mouth_warp = _Warp(self._mouth_box, unit, 32, self._face[:2])
        # Beyond the face's box nothing is bent; beyond the mouth's, one skin serves both lips.
        self._inside = self._face_warp.inside(0.12 * unit)
        self._mouth_share = self._mouth_warp.pixels_inside(0.08 * unit)
        # Small lips deserve the sharper filter, seven times as slow; large or enlarged ones have no finer detail to lose.
        self._lip_filter = cv2.INTER_CUBIC if unit < 320 and scene.blur < 1.5 else cv2.INTER_LINEAR
        self._mouth = Mouth(scene.image, controls, self._mouth_box, scene.blur)
        self._eyes = eyes(scene.image, scene.face, scene.blur)
        self._body = BodyMotion(scene.face, layers.matte)
        self._background = np.clip(layers.background + 0.5, 0, 255).astype(np.uint8)
        foreground = np.clip(layers.foreground + 0.5, 0, 255).astype(np.uint8)
        matte = np.round(layers.matte * 255).astype(np.uint8)
        self._person = np.dstack([foreground, matte])
        left, top, right, bottom = self._face
        self._photo_face = self._person[top:bottom, left:right].copy()
        self._cut = _last_cut_row(matte)

    def draw(self, dials: Channels, frame: int) -> Picture:
        """Frame number ``frame`` of ``dials``, RGB uint8 ``[H, W, 3]``."""
        left, top, right, bottom = self._face
        person = self._person.copy()
        person[top:bottom, left:right] = self._express(dials, frame)
        look = self._body.backward(dials, frame)
        moved = cv2.remap(person, look, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        picture = cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)
        # Only head and shoulders are cut out of the scene; below, the picture is one piece.
        cut = self._cut
        if cut == 0:
            return picture
        matte = cv2.cvtColor(cv2.extractChannel(moved[:cut], 3), cv2.COLOR_GRAY2RGB)
        front = cv2.multiply(picture[:cut], matte, scale=1 / 255)
        behind = cv2.multiply(self._background[:cut], cv2.bitwise_not(matte), scale=1 / 255)
        cv2.add(front, behind, dst=picture[:cut])
        return picture

    def _express(self, dials: Channels, frame: int) -> NDArray[np.uint8]:
        """The face's box with the frame's expression, in the photo's pose, RGB and matte uint8 ``[h, w, 4]``."""
        left, top = self._face[:2]
        photo = self._photo_face.copy()
        blink, gaze_x, gaze_y = float(dials.blink[frame]), float(dials.gaze_x[frame]), float(dials.gaze_y[frame])
        for eye in self._eyes:
            eye.paint(photo[..., :3], (left, top), blink, gaze_x, gaze_y)
        targets = self._controls.targets(dials, frame)
        sources = self._controls.sources
        upper_look = self._face_warp.look(_join(targets, upper=True), _join(sources, upper=True), self._inside)
        face = cv2.remap(photo, upper_look, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        lower_look = self._mouth_warp.look(_join(targets, upper=False), _join(sources, upper=False))
        mouth_left, mouth_top, mouth_right, mouth_bottom = self._mouth_box
        inside = (slice(mouth_top - top, mouth_bottom - top), slice(mouth_left - left, mouth_right - left))
        upper, lower = (
            cv2.remap(photo, look, None, self._lip_filter, borderMode=cv2.BORDER_REPLICATE)
            for look in (upper_look[inside], lower_look)
        )
        share = self._below(targets)
        face[inside] = cv2.blendLinear(upper, lower, 1 - share, share)
        self._mouth.paint(face[inside][..., :3], targets, dials, frame)
        return face

    def _below(self, targets: Targets) -> NDArray[np.floating]:
        """Share of the lower lip's skin in every pixel of the mouth's box: 1 below the line between the lips."""
        left, top, right, bottom = self._mouth_box
        line = (targets.inner_upper + targets.inner_lower) / 2
        across, down = self._controls.right, self._controls.down
        far = self._controls.unit
        outline = np.concatenate(
            [
                line[:1] - across * far,
                line,
                line[-1:] + across * far,
                line[-1:] + (across + down) * far,
                line[:1] + (down - across) * far,
            ]
        )
        # Beyond the corners both skins agree, but for what the spline rounds off: they are blended there.
        x = np.arange(left, right, dtype=np.float32)[None] - (line[0, 0] + line[-1, 0]) / 2
        y = np.arange(top, bottom, dtype=np.float32)[:, None] - (line[0, 1] + line[-1, 1]) / 2
        place = np.abs(x * across[0] + y * across[1]) / (0.5 * float(np.linalg.norm(line[-1] - line[0])))
        return coverage(outline, self._mouth_box) * (1 - smoothstep(0.98, 1.25, place)) * self._mouth_share


class _Warp:
    """Sampling maps over one box of the frame, bent by control points."""

    def __init__(self, box: Box, unit: float, density: int, origin: tuple[int, int]) -> None:
        self._unit = unit
        self._grid = Grid(box, max(3, round(unit / density)), origin)

    def look(self, targets: Points, sources: Points, hold: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
        """Sampling map ``[h, w, 2]`` that takes ``sources`` to ``targets``, where ``hold`` is not 0."""
        nodes = self._grid.nodes
        moved = backward_warp(targets, sources, nodes.reshape(-1, 2), unit=self._unit).reshape(nodes.shape)
        return self._grid.look(moved if hold is None else moved * hold)

    def inside(self, margin: float) -> NDArray[np.floating]:
        """0 at the box's border, 1 from ``margin`` pixels inwards, at every node ``[rows, columns, 1]``."""
        return _border(self._grid.nodes, self._grid.box, margin)[..., None]

    def pixels_inside(self, margin: float) -> NDArray[np.floating]:
        """The same at every pixel, ``[h, w]``."""
        return _border(self._grid.pixels, self._grid.box, margin)


def _border(positions: NDArray[np.floating], box: Box, margin: float) -> NDArray[np.floating]:
    left, top, right, bottom = box
    x, y = positions[..., 0], positions[..., 1]
    edge = np.minimum(np.minimum(x - left, right - 1 - x), np.minimum(y - top, bottom - 1 - y))
    return smoothstep(0, margin, edge)


def _join(targets: Targets, *, upper: bool) -> Points:
    return np.concatenate([targets.shared, targets.upper if upper else targets.lower])


def _box(low: Points, high: Points, width: int, height: int) -> Box:
    left, top = np.floor(np.maximum(low, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(high, (width, height))).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _last_cut_row(matte: NDArray[np.uint8]) -> int:
    """First row from which on everything is the person."""
    rows = np.flatnonzero((matte < 255).any(axis=1))
    return int(rows[-1]) + 1 if len(rows) else 0
