"""Where every control point of the face goes for a setting of the mouth, brow and cheek dials.

Jaw and lips are separate, as in JALI (Edwards et al., SIGGRAPH 2016). All lengths are fractions of the face's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.portrait.channels import Channels
from model_store.portrait.face import Face
from model_store.portrait.geometry import smoothstep
from model_store.portrait.spline import Points

# Landmarks along the lips, from the viewer's left corner to the right one.
OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)

JAW = (172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397)
CHIN = (18, 83, 313, 200, 199, 175, 202, 422, 204, 424, 210, 430, 169, 394)
CHEEKS = (205, 425, 50, 280, 187, 411, 207, 427, 216, 436, 212, 432, 214, 434, 147, 376)
NOSE = (2, 98, 327, 129, 358, 4, 6)
BROWS = (70, 63, 105, 66, 107, 300, 293, 334, 296, 336)
BROW_INNER = (107, 66, 336, 296)
LOWER_LIDS = (145, 374, 153, 380, 144, 373)
OVAL = (172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397)
FIXED = (33, 133, 263, 362, 159, 386, 10, 109, 338, 67, 297, 54, 284, 127, 356, 234, 454, 132, 361, 168)

GAP_OF_JAW = 0.135
"""Inner-lip gap at ``jaw`` = 1."""

GAP_OF_APART = 0.06
"""Inner-lip gap at ``apart`` = 1 with the jaw shut."""

TUCK_GAP = 0.018
"""What stays open between the lips at F/V, where the edge of the upper teeth shows."""

SMILE_KEPT = 0.85
"""Share of the photo's own smile, teeth included, that stays at rest and in open sounds: without it the person is another."""

SMILE_RELAXED = 0.2
"""Share that stays while the lips close, tuck or round: nobody can say P through a broad smile."""


@dataclass(frozen=True)
class Targets:
    """Control points of one frame, in the frame's pixels.

    Args:
        shared: ``[N, 2]`` points of the face that both lips' skins share, corners included.
        upper, lower: ``[22, 2]`` inner then outer contour of each lip, from the viewer's left to the right.
    """

    shared: Points
    upper: Points
    lower: Points

    @property
    def inner_upper(self) -> Points:
        """``[11, 2]`` the upper lip's edge to the mouth's opening."""
        return self.upper[:11]

    @property
    def inner_lower(self) -> Points:
        """``[11, 2]`` the lower lip's edge to the mouth's opening."""
        return self.lower[:11]


class FaceControls:
    """Turns dials into control points, relative to one photographed face and free of its own expression."""

    def __init__(self, face: Face, blur: float) -> None:
        points = face.points[:, :2]
        self.unit = face.width
        self._inset = 0.005 * self.unit + 0.9 * blur
        self._smile = float(np.clip((face.expression["smile"] - 0.15) / 0.6, 0, 1))
        corner_right, corner_left = points[61], points[291]
        self.right = ((corner_left - corner_right) / np.linalg.norm(corner_left - corner_right)).astype(np.float32)
        self.down = np.array([-self.right[1], self.right[0]], np.float32)
        self.centre = points[[13, 14]].mean(0).astype(np.float32)
        self._half_width = (
            float((self.centre - corner_right) @ self.right),
            float((corner_left - self.centre) @ self.right),
        )
        self._half_width = (max(self._half_width[0], 0.06 * self.unit), max(self._half_width[1], 0.06 * self.unit))
        self._upper = self._lip(points, INNER_UPPER, OUTER_UPPER)
        self._lower = self._lip(points, INNER_LOWER, OUTER_LOWER)
        self._shared_points = self._shared(points)
        self.sources = Targets(self._shared_points, self._seam(self._upper, -1), self._seam(self._lower, 1))
        self._set_weights(points)
        line = self.rest_line[1]
        self._own_gap = float((self._lower[:11, 1] - self._upper[:11, 1]).max()) / self.unit
        self._smile_depth = max(0.0, float(line[5] - (line[0] + line[10]) / 2)) / self.unit

    def _lip(self, points: NDArray[np.floating], inner: tuple[int, ...], outer: tuple[int, ...]) -> NDArray[np.floating]:
        """``[22, 2]`` (along the mouth, across it) of one lip's contours, from the mouth's centre, in pixels."""
        rows = points[[*inner, *outer]] - self.centre
        return np.stack([rows @ self.right, rows @ self.down], 1).astype(np.float32)

    def _place(self, local: NDArray[np.floating]) -> Points:
        return self.centre + local[:, :1] * self.right + local[:, 1:] * self.down

    def _seam(self, lip: NDArray[np.floating], side: int) -> Points:
        """The lip in the photo, its inner edge drawn a little into the flesh, so that no tooth or gap sticks to it."""
        local = lip.copy()
        thickness = np.abs(local[11:, 1] - local[:11, 1])
        local[1:10, 1] += side * np.minimum(self._inset, 0.6 * thickness[1:10])
        return self._place(local)

    def _shared(self, points: NDArray[np.floating]) -> Points:
        named = points[[*JAW, *CHIN, *CHEEKS, *NOSE, *BROWS, *LOWER_LIDS, *FIXED]]
        chin, width = points[152], self.unit
        # The neck is held further down: the skin under the chin folds over a length, not at a line.
        neck = [chin + self.down * (d * width) + self.right * (k * 0.3 * width) for d in (0.5, 0.75) for k in (-2, -1, 0, 1, 2)]
        # Around the face nothing moves: hair and background belong to the head as a whole.
        middle = points[[10, 152]].mean(0)
        around = middle + (points[list(OVAL)] - middle) * 1.35
        return np.concatenate([named, np.array(neck), around]).astype(np.float32)

    def _set_weights(self, points: NDArray[np.floating]) -> None:
        shared = self._shared_points
        local = np.stack([(shared - self.centre) @ self.right, (shared - self.centre) @ self.down], 1)
        chin = float((points[152] - self.centre) @ self.down)
        below = local[:, 1] / chin
        side = np.where(local[:, 0] < 0, self._half_width[0], self._half_width[1])
        lateral = np.abs(local[:, 0]) / side
        # The mandible turns about the ears: full travel at the chin, none at the hinge, the cheeks in between.
        self._jaw_weight = smoothstep(0.0, 0.35, below) * (1 - smoothstep(0.9, 2.6, lateral * (1.25 - 0.35 * below)))
        still = np.zeros(len(shared), np.float32)
        count = {name: len(group) for name, group in (("jaw", JAW), ("chin", CHIN), ("cheeks", CHEEKS), ("nose", NOSE))}
        first = sum(count.values())
        brows = slice(first, first + len(BROWS))
        lids = slice(brows.stop, brows.stop + len(LOWER_LIDS))
        self._jaw_weight[first:] = 0
        self._jaw_weight[count["jaw"] + count["chin"] + count["cheeks"] : first] = 0
        cheeks = slice(count["jaw"] + count["chin"], count["jaw"] + count["chin"] + count["cheeks"])
        self._cheek_weight, self._brow_weight, self._frown_weight, self._lid_weight = (still.copy() for _ in range(4))
        self._cheek_weight[cheeks] = (1 - smoothstep(0.2, 0.8, np.abs(below[cheeks]))) * (
            1 - smoothstep(1.2, 2.4, lateral[cheeks])
        )
        self._brow_weight[brows] = 1
        self._frown_weight[brows] = [1.0 if index in BROW_INNER else 0.3 for index in BROWS]
        self._lid_weight[lids] = 1
        self._outward = np.sign(local[:, 0]).astype(np.float32)

    def targets(self, dials: Channels, frame: int) -> Targets:
        """Where the control points go in frame ``frame`` of ``dials``."""
        jaw, apart, press, tuck, wide, smile = (
            float(c[frame]) for c in (dials.jaw, dials.apart, dials.press, dials.tuck, dials.wide, dials.smile)
        )
        unit = self.unit
        spread, round_ = max(wide, 0.0), max(-wide, 0.0)
        relaxed = max(press, tuck, round_)
        kept = SMILE_KEPT + (SMILE_RELAXED - SMILE_KEPT) * relaxed
        undo = self._smile * (1 - kept)
        open_lips = (1 - press) * (1 - 0.85 * tuck)
        by_jaw, by_lips = GAP_OF_JAW * jaw * open_lips, GAP_OF_APART * apart * open_lips
        raise_upper = 0.16 * by_jaw + 0.5 * by_lips + (TUCK_GAP * 0.6) * tuck * (1 - press)
        drop_lower = 0.84 * by_jaw + 0.5 * by_lips + (TUCK_GAP * 0.4) * tuck * (1 - press)
        drop_chin = GAP_OF_JAW * jaw * (0.84 - 0.55 * press - 0.45 * tuck)
        # A smile that bares the teeth has parted the lips already: speech opens them further, not twice.
        bared = self._smile * kept * (1 - relaxed) * open_lips
        spoken = raise_upper + drop_lower
        own = bared * self._own_gap
        part = float(np.hypot(spoken, own)) / max(spoken + own, 1e-6)

        narrow = (1 - 0.15 * undo) * (1 + 0.09 * spread - 0.23 * round_) * (1 - 0.07 * jaw * open_lips) * (1 + 0.06 * smile)
        corner_drop = 0.9 * undo * self._smile_depth - 0.02 * smile
        thick_upper = (1 + 0.5 * undo) * (1 + 0.16 * round_ - 0.07 * spread) * (1 - 0.1 * press)
        thick_lower = (1 + 0.4 * undo) * (1 + 0.14 * round_ - 0.07 * spread) * (1 - 0.1 * press) * (1 - 0.35 * tuck)
        rest = self.rest_line

        def lip(local: NDArray[np.floating], thickness: float, shift: float, parted: NDArray[np.floating]) -> Points:
            t = self.along(local[:, 0])
            inner_line = np.interp(t, rest[0], rest[1])
            opening = np.maximum(1 - np.abs(t) ** (2.6 - 0.6 * round_), 0) ** 0.62
            edge = np.interp(t, self.along(local[:11, 0]), local[:11, 1])
            beyond = (local[:, 1] - edge) * thickness  # 0 on the inner contour
            moved = local.copy()
            moved[:, 0] *= narrow
            gap = (shift * unit * opening + bared * np.interp(t, rest[0], parted)) * part
            moved[:, 1] = inner_line + beyond + gap + corner_drop * unit * t * t
            return self._place(moved)

        upper = lip(self._upper, thick_upper, -raise_upper, self._upper[:11, 1] - rest[1])
        lower = lip(self._lower, thick_lower, drop_lower, self._lower[:11, 1] - rest[1])
        shared = self._shared_points.copy()
        lift = float(dials.brow[frame])
        brow = 0.04 * lift * self._brow_weight if lift > 0 else 0.022 * lift * self._frown_weight
        vertical = (
            drop_chin * self._jaw_weight
            + (0.02 * undo - 0.03 * smile + 0.01 * spread) * self._cheek_weight
            - brow
            - 0.016 * (float(dials.squint[frame]) + 0.5 * smile) * self._lid_weight
        )
        inward = -0.02 * undo * self._cheek_weight - 0.04 * round_ * self._cheek_weight + 0.015 * smile * self._cheek_weight
        inward += 0.015 * min(lift, 0.0) * self._frown_weight
        shared += vertical[:, None].astype(np.float32) * unit * self.down
        shared += (inward * self._outward)[:, None].astype(np.float32) * unit * self.right
        return Targets(shared, upper, lower)

    def along(self, across: NDArray[np.floating]) -> NDArray[np.floating]:
        """Place along the mouth: -1 at the viewer's left corner, 1 at the right, whatever the head's turn."""
        return np.where(across < 0, across / self._half_width[0], across / self._half_width[1]).astype(np.float32)

    @property
    def rest_line(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """The line along which the closed lips meet: (place along the mouth -1..1, pixels below its centre), ``[11]`` each."""
        upper, lower = self._upper[:11], self._lower[:11]
        # The lower lip does most of the closing over a smile's teeth: so the face keeps most of its likeness (measured).
        share = 0.5 - 0.15 * self._smile
        return self.along(upper[:, 0]), ((1 - share) * upper[:, 1] + share * lower[:, 1]).astype(np.float32)

    @property
    def photo_inner_upper(self) -> Points:
        """``[11, 2]`` the upper lip's inner contour in the photo."""
        return self._place(self._upper[:11])

    @property
    def photo_inner_lower(self) -> Points:
        """``[11, 2]`` the lower lip's inner contour in the photo."""
        return self._place(self._lower[:11])

    def lip_region(self, *, upper: bool) -> Points:
        """``[22, 2]`` outline of one lip in the photo."""
        lip = self._upper if upper else self._lower
        return self._place(np.concatenate([lip[:11], lip[:10:-1]]))

    @property
    def cheek_points(self) -> Points:
        """``[2, 2]`` bare skin on the viewer's left and right cheek in the photo."""
        return self._shared_points[[len(JAW) + len(CHIN), len(JAW) + len(CHIN) + 1]]
