"""Draws one frame of the performance: first the face's expression in the photo's own pose, then the whole person's motion."""

from __future__ import annotations

import cv2
import numpy as np

from model_store.engine import Picture
from model_store.portrait.body import BodyMotion
from model_store.portrait.channels import Channels
from model_store.portrait.eyes import eyes
from model_store.portrait.geometry import Box, coverage, smoothstep
from model_store.portrait.lips import FaceControls, Targets
from model_store.portrait.mouth import Mouth
from model_store.portrait.scene import Scene
from model_store.portrait.spline import Points, backward_warp


class Renderer:
    """Frames of one scene. Each is drawn from the dials alone: no frame depends on another."""

    def __init__(self, scene: Scene) -> None:
        height, width = scene.image.shape[:2]
        layers = scene.layers
        self._controls = controls = FaceControls(scene.face, scene.blur)
        unit = controls.unit
        sources = controls.sources.shared
        self._face = _box(sources.min(0) - 0.25 * unit, sources.max(0) + 0.15 * unit, width, height)
        reach = np.abs(controls.right) * 0.42 * unit + np.abs(controls.down) * 0.42 * unit
        self._mouth_box = _box(controls.centre - reach, controls.centre + reach, width, height)
        self._face_warp = _Warp(self._face, unit)
        self._mouth_warp = _Warp(self._mouth_box, unit)
        self._mouth = Mouth(scene.image, controls, self._mouth_box, scene.blur)
        self._eyes = eyes(scene.image, scene.face, scene.blur)
        self._body = BodyMotion(scene.face, layers.matte)
        self._foreground = np.clip(layers.foreground + 0.5, 0, 255).astype(np.uint8)
        self._background = np.clip(layers.background + 0.5, 0, 255).astype(np.uint8)
        self._matte = np.round(layers.matte * 255).astype(np.uint8)
        self._person = np.dstack([self._foreground, self._matte])

    def draw(self, dials: Channels, frame: int) -> Picture:
        """Frame number ``frame`` of ``dials``, RGB uint8 ``[H, W, 3]``."""
        person = self._express(dials, frame)
        look = self._body.backward(dials, frame)
        moved = cv2.remap(person, look, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        matte = cv2.cvtColor(moved[..., 3], cv2.COLOR_GRAY2RGB)
        rgb = cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)
        front = cv2.multiply(rgb, matte, scale=1 / 255)
        behind = cv2.multiply(self._background, cv2.bitwise_not(matte), scale=1 / 255)
        return cv2.add(front, behind)

    def _express(self, dials: Channels, frame: int) -> Picture:
        """The person with the frame's expression, in the photo's pose: RGBA ``[H, W, 4]``."""
        rgb = self._foreground.copy()
        for eye in self._eyes:
            eye.paint(rgb, float(dials.blink[frame]), float(dials.gaze_x[frame]), float(dials.gaze_y[frame]))
        targets = self._controls.targets(dials, frame)
        sources = self._controls.sources
        left, top, right, bottom = self._face
        upper_look = self._face_warp.look(_join(targets, upper=True), _join(sources, upper=True))
        face = cv2.remap(rgb, upper_look, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        lower_look = self._mouth_warp.look(_join(targets, upper=False), _join(sources, upper=False))
        lower = cv2.remap(rgb, lower_look, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        mouth_left, mouth_top, mouth_right, mouth_bottom = self._mouth_box
        inside = (slice(mouth_top - top, mouth_bottom - top), slice(mouth_left - left, mouth_right - left))
        share = self._below(targets)[..., None]
        skin = face[inside] * (1 - share) + lower * share
        face[inside] = np.clip(self._mouth.paint(skin, targets, dials, frame) + 0.5, 0, 255)
        person = self._person.copy()
        person[top:bottom, left:right, :3] = face
        return person

    def _below(self, targets: Targets) -> np.ndarray:
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
        return coverage(outline, self._mouth_box) * (1 - smoothstep(0.98, 1.25, place))


class _Warp:
    """Sampling maps over one box of the frame, bent by control points, identity at the box's border."""

    def __init__(self, box: Box, unit: float) -> None:
        left, top, right, bottom = box
        self._unit = unit
        self._step = step = max(3.0, unit / 32)
        columns, rows = int((right - left) / step) + 2, int((bottom - top) / step) + 2
        x, y = np.meshgrid(np.arange(columns, dtype=np.float32) * step, np.arange(rows, dtype=np.float32) * step)
        self._nodes = np.stack([x + left, y + top], -1).reshape(-1, 2)
        self._shape = (rows, columns)
        margin = 0.12 * unit
        edge = np.minimum(np.minimum(x, right - left - x), np.minimum(y, bottom - top - y))
        self._window = smoothstep(0, margin, edge)[..., None]
        x, y = np.meshgrid(np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32))
        self._pixels = np.stack([x, y], -1)

    def look(self, targets: Points, sources: Points) -> np.ndarray:
        """Sampling map ``[h, w, 2]`` in frame pixels that takes ``sources`` to ``targets``."""
        moved = backward_warp(targets, sources, self._nodes, unit=self._unit)
        field = moved.reshape(*self._shape, 2) * self._window
        height, width = self._pixels.shape[:2]
        spread = np.array([[self._step, 0, 0], [0, self._step, 0]], np.float32)
        full = cv2.warpAffine(field, spread, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return full + self._pixels


def _join(targets: Targets, *, upper: bool) -> Points:
    return np.concatenate([targets.shared, targets.upper if upper else targets.lower])


def _box(low: Points, high: Points, width: int, height: int) -> Box:
    left, top = np.floor(np.maximum(low, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(high, (width, height))).astype(int)
    return int(left), int(top), int(right), int(bottom)
