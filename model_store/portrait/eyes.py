"""Blinks and glances: a lid with its own skin, crease and lashes closes over an eye that can look about."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture
from model_store.portrait.face import Face
from model_store.portrait.geometry import blurred, smoothstep
from model_store.portrait.matte import Plane, fill

# Lid contours from the viewer's left corner to the right one.
_RIGHT_EYE = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (33, 7, 163, 144, 145, 153, 154, 155, 133))
_LEFT_EYE = ((362, 398, 384, 385, 386, 387, 388, 466, 263), (362, 382, 381, 380, 374, 373, 390, 249, 263))

GLANCE = 0.085
"""Travel of the iris at full gaze, in eye widths: beyond this the sclera would have to be invented."""


class Eye:
    """One eye, painted into its own small box of the frame."""

    def __init__(self, image: Picture, face: Face, upper: tuple[int, ...], lower: tuple[int, ...], blur: float) -> None:
        points = face.points[:, :2]
        self._blur = blur
        corner, other = points[upper[0]], points[upper[-1]]
        self._width = width = float(np.linalg.norm(other - corner))
        right = (other - corner) / width
        down = np.array([-right[1], right[0]], np.float32)
        centre = (corner + other) / 2
        reach = 0.95 * width
        height, columns = image.shape[:2]
        left, top = (max(0, int(v)) for v in centre - reach)
        stop_x, stop_y = min(columns, int(centre[0] + reach) + 1), min(height, int(centre[1] + reach) + 1)
        self.box = (left, top, stop_x, stop_y)
        x, y = np.meshgrid(np.arange(left, stop_x, dtype=np.float32), np.arange(top, stop_y, dtype=np.float32))
        offset = np.stack([x, y], -1) - centre
        across, self._level = (offset @ right / width).astype(np.float32), (offset @ down / width).astype(np.float32)

        def contour(indices: tuple[int, ...]) -> Plane:
            local = points[list(indices)] - centre
            a, b = local @ right / width, local @ down / width
            # A parabola through noisy lids is what lids are; landmarks one by one would give a jagged edge.
            shape = np.polynomial.Polynomial.fit(a, b, 4, w=np.array([3, 1, 1, 1, 1, 1, 1, 1, 3]))
            return np.asarray(shape(np.clip(across, -0.5, 0.5)), np.float32)

        self._upper, self._lower = contour(upper), contour(lower)
        self._lower = np.maximum(self._lower, self._upper)
        self._across = across
        self._open = float(np.max(np.where(np.abs(across) < 0.4, self._lower - self._upper, 0)))
        self._inside = smoothstep(-0.02, 0.02, self._level - self._upper) * smoothstep(-0.02, 0.02, self._lower - self._level)
        self._inside *= 1 - smoothstep(0.46, 0.52, np.abs(across))
        self._right, self._down = right.astype(np.float32) * width, down.astype(np.float32) * width
        self._paint_lid(image)
        local_x, local_y = np.meshgrid(np.arange(stop_x - left, dtype=np.float32), np.arange(stop_y - top, dtype=np.float32))
        self._pixels = np.stack([local_x, local_y], -1)

    def _paint_lid(self, image: Picture) -> None:
        """Skin for the closed lid: the eye and its lashes erased, the crease drawn, the photo's grain kept."""
        left, top, right, bottom = self.box
        patch = image[top:bottom, left:right].astype(np.float32)
        above = np.clip(self._upper - self._level, 0, None)
        below = np.clip(self._level - self._lower, 0, None)
        within = (np.abs(self._across) < 0.62) & (above < 0.2) & (below < 0.1)
        skin = fill(patch, ~within)
        skin = cv2.GaussianBlur(skin, (0, 0), max(0.8, 0.035 * self._width))
        # Lashes and the socket's shadow surround the eye: a lid, which bulges into the light, is as bright as the skin beyond.
        beyond = (np.abs(self._across) < 0.5) & (((above > 0.2) & (above < 0.45)) | ((below > 0.12) & (below < 0.4)))
        if beyond.any():
            light = np.percentile(patch[beyond], 65, axis=0) - np.median(skin[within], axis=0)
            skin = np.clip(skin + 0.8 * np.maximum(light, 0), 0, 255)
        around = (above > 0.2) & (above < 0.5) & (np.abs(self._across) < 0.6)
        grain = float(np.std((patch - blurred(patch, 1.5))[around])) if around.any() else 1.0
        noise = blurred(np.random.default_rng(0).normal(0, 1, patch.shape[:2]).astype(np.float32), 0.5 * self._blur)
        noise *= min(grain, 4.0) / max(float(noise.std()), 1e-6)
        crease = np.exp(-(((self._level - (self._upper - 0.045)) / 0.03) ** 2)) * (
            1 - smoothstep(0.4, 0.56, np.abs(self._across))
        )
        bulge = np.exp(-(((self._level - (self._upper + self._lower) / 2) / 0.16) ** 2)) * (1 - (1.6 * self._across) ** 2)
        shade = 1 - 0.07 * crease + 0.05 * np.clip(bulge, 0, 1)
        self._skin = (skin * shade[..., None] + 0.7 * noise[..., None]).astype(np.float32)
        lashes = patch[(np.abs(self._level - self._upper) < 0.05) & (np.abs(self._across) < 0.45)]
        dark = lashes[np.argsort(lashes.sum(1))[: max(1, len(lashes) // 6)]] if len(lashes) else np.full((1, 3), 40.0)
        self._lash = np.minimum(dark.mean(0), 0.55 * skin.mean((0, 1))).astype(np.float32)

    def paint(self, face: NDArray[np.uint8], origin: tuple[int, int], blink: float, gaze_x: float, gaze_y: float) -> None:
        """Draw the eye in place.

        Args:
            face: uint8 ``[h, w, 3]``, a part of the frame that holds the eye as photographed.
            origin: the frame's pixel at its left top.
            blink: 0 open .. 1 shut.
            gaze_x, gaze_y: -1..1 of the largest glance.
        """
        if blink < 0.01 and abs(gaze_x) < 0.02 and abs(gaze_y) < 0.02:
            return
        left, top, right, bottom = self.box
        view = face[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]]
        patch = view.astype(np.float32)
        if blink < 0.97:
            travel = GLANCE * (gaze_x * self._right + 0.6 * gaze_y * self._down)
            # The whole visible ball turns; towards the corners it is held, so that they keep their shape.
            hold = self._inside * (1 - smoothstep(0.2, 0.5, np.abs(self._across)))
            look = self._pixels - hold[..., None] * travel
            patch = cv2.remap(patch, look, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if blink >= 0.01:
            # The upper lid travels most of the way, the lower one rises to meet it.
            edge = self._upper + (self._lower - self._upper) * blink * 0.94
            soft = max(0.02, 0.8 / self._width)
            sides = 1 - smoothstep(0.5, 0.58, np.abs(self._across))
            cover = smoothstep(-soft, soft, edge - self._level) * smoothstep(-0.17, -0.08, self._level - self._upper) * sides
            cover *= min(1.0, blink * 5)
            patch = patch * (1 - cover[..., None]) + self._skin * cover[..., None]
            thickness = 0.028 + 0.012 * blink
            lash = (
                np.exp(-(((self._level - edge) / thickness) ** 2))
                * sides
                * (1 - 0.6 * smoothstep(0.3, 0.5, np.abs(self._across)))
            )
            lash = (0.8 * min(1.0, blink * 4) * lash)[..., None]
            patch = patch * (1 - lash) + self._lash * lash
        np.copyto(view, np.clip(patch + 0.5, 0, 255).astype(np.uint8))


def eyes(image: Picture, face: Face, blur: float) -> list[Eye]:
    """Both eyes of ``face``, those that the turn hides left out; ``blur`` is the softness of edges in pixels."""
    found = []
    for upper, lower in (_RIGHT_EYE, _LEFT_EYE):
        width = float(np.linalg.norm(face.points[upper[0], :2] - face.points[upper[-1], :2]))
        if width > 0.07 * face.width:
            found.append(Eye(image, face, upper, lower, blur))
    return found
