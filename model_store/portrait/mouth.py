"""Paints what an opening mouth reveals: cavity, tongue and teeth, lit and coloured like the photo."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture
from model_store.portrait.channels import Channels
from model_store.portrait.controls import GAP_OF_JAW, FaceControls, Targets
from model_store.portrait.geometry import Box, blurred, coverage, smoothstep
from model_store.portrait.matte import Plane
from model_store.portrait.spline import Points

Colour = NDArray[np.floating]
"""RGB in 0..255, ``[3]`` or ``[H, W, 3]``."""

# Visible widths of the teeth from the middle outwards, in face widths (mean adult incisors, canine, premolars; the back
# ones foreshortened), upper and lower.
UPPER_TEETH = (0.064, 0.050, 0.046, 0.034, 0.027, 0.02)
LOWER_TEETH = (0.040, 0.043, 0.047, 0.036, 0.028, 0.02)

_LIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)


class Mouth:
    """The mouth of one face, painted into a box of the frame.

    Args:
        image: the frame-sized picture.
        controls: of the same face.
        box: the pixels that the mouth can reach.
        blur: softness of the image's edges, in pixels.
    """

    def __init__(self, image: Picture, controls: FaceControls, box: Box, blur: float) -> None:
        left, top, right, bottom = self._box = box
        self._controls = controls
        self._blur = blur
        self._unit = unit = controls.unit
        x, y = np.meshgrid(np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32))
        offset = np.stack([x, y], -1) - controls.centre
        self._along = controls.along(offset @ controls.right)
        rest_t, rest_b = controls.rest_line
        self._level = (offset @ controls.down - np.interp(self._along, rest_t, rest_b)).astype(np.float32) / unit
        self._image = image[top:bottom, left:right].astype(np.float32)
        self._sample_colours(image)
        own = self._own_teeth()
        # The photo's own teeth stand in its light already.
        self._teeth_in_shade = 0.84 if own.any() else 0.58
        # The painted teeth end where the photo's own do, else a little below the line of the closed lips.
        bared = float((controls.photo_inner_lower[5] - controls.centre) @ controls.down - rest_b[5]) / unit
        if own.any():
            upper_rgb, upper_alpha = self._teeth(UPPER_TEETH, edge=max(0.014, bared), arc=-0.022, up=True, detail=0.1)
        else:
            upper_rgb, upper_alpha = self._teeth(UPPER_TEETH, edge=0.014, arc=-0.022, up=True)
        self._upper = self._with_own_teeth(upper_rgb, upper_alpha, own)
        self._lower = self._teeth(LOWER_TEETH, edge=0.012, arc=-0.012, up=False)

    def _sample_colours(self, image: Picture) -> None:
        """Colours of this face in this light: lips, skin, and from them what lies in the mouth's shade."""
        points = self._controls
        lower = points.lip_region(upper=False)
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(lower).astype(np.int32)], 1)
        lips = image[mask > 0].astype(np.float32)
        self._lips: Colour = np.median(lips, axis=0) if len(lips) else np.array([150, 90, 85], np.float32)
        skin = np.concatenate([self._patch(image, p) for p in points.cheek_points])
        self._skin: Colour = np.median(skin, axis=0).astype(np.float32)
        # One side of the face is often brighter: the teeth must be so too.
        sides = [float(np.median(self._patch(image, p) @ _LIGHTNESS)) for p in points.cheek_points]
        ratio = np.clip((sides[1] - sides[0]) / max(sides[0] + sides[1], 1.0), -0.35, 0.35)
        self._light = (1 + ratio * np.clip(self._along, -1.2, 1.2)).astype(np.float32)
        brightness = float(self._skin @ _LIGHTNESS)
        # Enamel takes on the colour of the light, which the skin shows together with its own: half of its tint is kept.
        tint = (self._skin / max(brightness, 1.0)) ** 0.5
        self._tooth: Colour = np.clip(brightness * 1.06 * tint, 0, 232).astype(np.float32)
        self._cavity: Colour = (np.array([0.36, 0.25, 0.25], np.float32) * self._lips).astype(np.float32)
        self._tongue: Colour = (0.86 * self._lips * np.array([1.0, 0.84, 0.88], np.float32)).astype(np.float32)
        self._seam: Colour = (0.34 * self._lips).astype(np.float32)

    def _patch(self, image: Picture, point: Points) -> NDArray[np.floating]:
        radius = max(2, round(0.03 * self._unit))
        x, y = np.clip(np.round(point).astype(int), 0, [image.shape[1] - 1, image.shape[0] - 1])
        patch = image[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        return patch.reshape(-1, 3).astype(np.float32)

    def _teeth(
        self, widths: tuple[float, ...], *, edge: float, arc: float, up: bool, detail: float = 1.0
    ) -> tuple[Colour, Plane]:
        """A row of teeth: colour ``[h, w, 3]`` and coverage ``[h, w]``; ``edge`` is where it ends below the rest
        line, ``arc`` how much lower its sides end, ``detail`` how much single teeth stand out."""
        place = np.abs(self._along) * np.float32(0.19)
        ends = np.cumsum(widths, dtype=np.float32)
        index = np.searchsorted(ends, place.ravel()).reshape(place.shape).clip(0, len(widths) - 1)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.float32)
        size = np.asarray(widths, np.float32)[index]
        within = (place - starts[index]) / size  # 0..1 across one tooth
        detail *= min(1.0, self._unit / 260)  # small faces have no pixels for the gaps between teeth
        rounded = np.abs(2 * within - 1) ** 4 * 0.008 * detail
        # Every second front tooth ends a little higher, as laterals do.
        lateral = np.where(index == 1, 0.006 * detail, 0.0)
        boundary = edge + arc * (place / 0.19) ** 2
        distance = boundary - rounded - lateral - self._level if up else self._level - boundary - rounded
        soft = max(0.004, 0.7 / self._unit)
        covered = smoothstep(-soft, soft, distance) * (1 - smoothstep(ends[-2], ends[-1], place))
        shade = (1 - 0.5 * np.clip(place / 0.2, 0, 1) ** 2) * (1 - 0.2 * np.exp(-((((within - 0.5) ** 2 - 0.25) / 0.06) ** 2)))
        shade *= 0.82 + 0.18 * smoothstep(0.0, 0.03, distance)
        if not up:
            shade *= 0.72
        return (self._tooth * (shade * self._light)[..., None]).astype(np.float32), covered.astype(np.float32)

    def _own_teeth(self) -> Plane:
        """Coverage 0..1 of the teeth that the photo shows; all 0 where it shows none."""
        opening = coverage(np.concatenate([self._controls.photo_inner_upper, self._controls.photo_inner_lower[::-1]]), self._box)
        inner = cv2.erode(opening, np.ones((3, 3), np.uint8)) > 0.9
        bright = self._image @ _LIGHTNESS > 0.62 * float(self._skin @ _LIGHTNESS)
        pale = self._image[..., 0] - self._image[..., 2] < 0.75 * float(self._lips[0] - self._lips[2]) + 12
        tooth = inner & bright & pale
        if inner.sum() < 0.0006 * self._unit**2 or tooth.sum() < 0.25 * inner.sum():
            return np.zeros_like(opening)
        soft = cv2.GaussianBlur(tooth.astype(np.float32), (0, 0), max(0.6, 0.004 * self._unit))
        return np.minimum(1.0, soft * 1.2) * opening

    def _with_own_teeth(self, rgb: Colour, covered: Plane, own: Plane) -> tuple[Colour, Plane]:
        """Lay the photo's own teeth over the painted ones, which take on their colour."""
        if not own.any():
            return rgb, covered
        colour = np.median(self._image[own > 0.5], axis=0)
        painted = np.minimum(rgb * (colour / np.maximum(self._tooth, 1)), 1.1 * colour)
        share = own[..., None]
        return (share * self._image + (1 - share) * painted).astype(np.float32), np.maximum(covered, own)

    def paint(self, skin: Picture, targets: Targets, dials: Channels, frame: int) -> None:
        """Lay the mouth's interior and the lips' own shadows over the warped skin, in place.

        Args:
            skin: uint8 ``[h, w, 3]`` of the box, lips already where they go.
            targets: where the lips are.
            dials, frame: the performance.
        """
        unit = self._unit
        upper, lower = _smooth(targets.inner_upper), _smooth(targets.inner_lower)
        widest = float(((lower - upper) @ self._controls.down).max()) / unit
        # Only the opening and what its shadow reaches is touched.
        left, top, right, bottom = self._box
        around = np.concatenate([upper, lower])
        reach = 0.045 * unit + 3
        low = np.clip(np.floor(around.min(0) - reach), (left, top), (right, bottom)).astype(int)
        high = np.clip(np.ceil(around.max(0) + reach), (left, top), (right, bottom)).astype(int)
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        part = (slice(box[1] - top, box[3] - top), slice(box[0] - left, box[2] - left))
        near = skin[part].astype(np.float32)

        mask = np.zeros(near.shape[:2], np.float32)
        if widest > 0.001:
            # The edge of a lip is as soft as the photo is.
            mask = blurred(coverage(np.concatenate([upper, lower[::-1]]), box), 0.35 * self._blur)
        # Lips roll inwards: they darken towards the opening, and meet in a soft dark line when they close.
        seam = (upper + lower) / 2
        normal = self._controls.down * np.float32(0.5 * max(0.008 * unit, 0.8))
        line = blurred(coverage(np.concatenate([seam - normal, (seam + normal)[::-1]]), box), 0.4 * self._blur)
        closed = 1 - min(1.0, max(widest, 0.0) / 0.03)
        shadow = blurred(np.maximum(mask, 0.4 * line), max(0.6, 0.011 * unit))
        near *= (1 - 0.36 * shadow)[..., None]
        seam_alpha = (0.7 * closed * line)[..., None]
        near += (self._seam - near) * seam_alpha
        if widest > 0.001:
            near += (self._interior(dials, frame, mask, part) - near) * mask[..., None]
        skin[part] = np.clip(near + 0.5, 0, 255).astype(np.uint8)

    def _interior(self, dials: Channels, frame: int, mask: Plane, part: tuple[slice, slice]) -> Colour:
        """What lies behind the lips in ``part`` of the box, front to back shaded by the opening ``mask``."""
        unit = self._unit
        jaw, tongue = float(dials.jaw[frame]), float(dials.tongue[frame])
        drop = GAP_OF_JAW * 0.84 * jaw
        light = self._light[part][..., None]
        level, along = self._level[part], self._along[part]
        deep = smoothstep(0.0, max(0.02, drop), level)[..., None]
        colour = self._cavity * light * (0.55 + 0.75 * deep)

        lower_rgb, lower_alpha = self._lower
        shift = drop * unit * self._controls.down
        move = np.array([[1, 0, shift[0] - part[1].start], [0, 1, shift[1] - part[0].start]], np.float32)
        size = (mask.shape[1], mask.shape[0])
        rgb = cv2.warpAffine(lower_rgb, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        covered = cv2.warpAffine(lower_alpha, move, size, flags=cv2.INTER_LINEAR)[..., None]
        colour += (rgb - colour) * covered

        top = drop * (0.55 - 0.5 * tongue) + 0.01
        below = level - (top + 0.35 * (along * 0.19) ** 2 / 0.08)
        body = smoothstep(-0.012, 0.02, below) * (1 - smoothstep(0.5, 0.85, np.abs(along)))
        groove = 1 - 0.14 * np.exp(-((along / 0.08) ** 2))
        lit = (0.6 + 0.45 * smoothstep(0.0, 0.05, below)) * groove
        colour += (self._tongue * light * lit[..., None] - colour) * body[..., None]
        # The lips shade what lies behind them, the upper one most; the teeth stand in front and are shaded least.
        sky = blurred(mask, max(0.8, 0.02 * unit))
        below_lip = blurred(np.roll(mask, round(0.016 * unit), axis=0), max(0.8, 0.01 * unit))
        colour *= (0.42 + 0.3 * sky + 0.28 * below_lip)[..., None]
        upper_rgb, upper_alpha = self._upper[0][part], self._upper[1][part][..., None]
        lit_teeth = self._teeth_in_shade + (1 - self._teeth_in_shade) * (0.52 * sky + 0.48 * below_lip)
        colour += (upper_rgb * lit_teeth[..., None] - colour) * upper_alpha
        return colour


def _smooth(line: Points) -> Points:
    """A contour through the given points at four times their density (Catmull-Rom)."""
    padded = np.concatenate([2 * line[:1] - line[1:2], line, 2 * line[-1:] - line[-2:-1]])
    p0, p1, p2, p3 = (padded[k : len(padded) - 3 + k, None] for k in range(4))
    t = np.linspace(0, 1, 4, endpoint=False, dtype=np.float32)[:, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    return np.concatenate([curve.reshape(-1, 2), line[-1:]]).astype(np.float32)
