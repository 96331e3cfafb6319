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

_GROUPS = {"jaw": JAW, "chin": CHIN, "cheeks": CHEEKS, "brows": BROWS, "lower_lids": LOWER_LIDS}
"""Landmarks that move, in the order in which they begin the shared control points."""

_ENDS = np.cumsum([len(group) for group in _GROUPS.values()])
_PLACES = {name: slice(end - len(group), end) for (name, group), end in zip(_GROUPS.items(), _ENDS, strict=True)}

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
    """Turns dials into control points, relative to one photographed face and free of its own expression.

    Args:
        face: in the frame's pixels.
        blur: softness of the frame's edges, in pixels.
    """

    def __init__(self, face: Face, blur: float) -> None:
        points = face.points[:, :2]
        self.unit = face.width
        corner_right, corner_left = points[61], points[291]
        self.right = ((corner_left - corner_right) / np.linalg.norm(corner_left - corner_right)).astype(np.float32)
        self.down = np.array([-self.right[1], self.right[0]], np.float32)
        self.centre = points[[13, 14]].mean(0).astype(np.float32)
        least = 0.06 * self.unit
        self._half_width = (
            max(least, float((self.centre - corner_right) @ self.right)),
            max(least, float((corner_left - self.centre) @ self.right)),
        )
        self._upper = self._lip(points, INNER_UPPER, OUTER_UPPER)
        self._lower = self._lip(points, INNER_LOWER, OUTER_LOWER)
        self._smile = float(np.clip((face.expression["smile"] - 0.15) / 0.6, 0, 1))
        line = self.rest_line[1]
        self._smile_depth = max(0.0, float(line[5] - (line[0] + line[10]) / 2)) / self.unit
        self._own_gap = float((self._lower[:11, 1] - self._upper[:11, 1]).max()) / self.unit
        inset = 0.005 * self.unit + 0.9 * blur
        self._shared = self._shared_points(points)
        self._weigh(points)
        self.sources = Targets(self._shared, self._seam(self._upper, -inset), self._seam(self._lower, inset))

    def _lip(self, points: NDArray[np.floating], inner: tuple[int, ...], outer: tuple[int, ...]) -> NDArray[np.floating]:
        """``[22, 2]`` (along the mouth, across it) of one lip's contours, from the mouth's centre, in pixels."""
        return self._local(points[[*inner, *outer]])

    def _local(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        offset = points - self.centre
        return np.stack([offset @ self.right, offset @ self.down], 1).astype(np.float32)

    def _place(self, local: NDArray[np.floating]) -> Points:
        return self.centre + local[:, :1] * self.right + local[:, 1:] * self.down

    def _seam(self, lip: NDArray[np.floating], inset: float) -> Points:
        """The lip in the photo, its inner edge drawn a little into the flesh, so that no tooth or gap sticks to it."""
        local = lip.copy()
        thickness = np.abs(local[11:, 1] - local[:11, 1])
        local[1:10, 1] += np.sign(inset) * np.minimum(abs(inset), 0.6 * thickness[1:10])
        return self._place(local)

    def _shared_points(self, points: NDArray[np.floating]) -> Points:
        chin, width = points[152], self.unit
        # The neck is held further down: the skin under the chin folds over a length, not at a line.
        neck = [chin + self.down * (d * width) + self.right * (k * 0.3 * width) for d in (0.5, 0.75) for k in (-2, -1, 0, 1, 2)]
        # Around the face nothing moves: hair and background belong to the head as a whole.
        middle = points[[10, 152]].mean(0)
        around = middle + (points[list(OVAL)] - middle) * 1.35
        moving = points[[index for group in _GROUPS.values() for index in group]]
        return np.concatenate([moving, points[[*NOSE, *FIXED]], np.array(neck), around]).astype(np.float32)

    def _weigh(self, points: NDArray[np.floating]) -> None:
        """How much every shared point takes part in each motion."""
        local = self._local(self._shared)
        below = local[:, 1] / float((points[152] - self.centre) @ self.down)  # 0 at the mouth, 1 at the chin
        lateral = np.abs(self.along(local[:, 0]))  # 1 at the corners
        # The mandible turns about the ears: full travel at the chin, none at the hinge, the cheeks in between.
        mandible = smoothstep(0.0, 0.35, below) * (1 - smoothstep(0.9, 2.6, lateral * (1.25 - 0.35 * below)))
        cheek = (1 - smoothstep(0.2, 0.8, np.abs(below))) * (1 - smoothstep(1.2, 2.4, lateral))
        self._outward = np.sign(local[:, 0]).astype(np.float32)
        self._jaw_weight, self._cheek_weight, self._brow_weight, self._frown_weight, self._lid_weight = np.zeros(
            (5, len(self._shared)), np.float32
        )
        for name in ("jaw", "chin", "cheeks"):
            self._jaw_weight[_PLACES[name]] = mandible[_PLACES[name]]
        self._cheek_weight[_PLACES["cheeks"]] = cheek[_PLACES["cheeks"]]
        self._brow_weight[_PLACES["brows"]] = 1
        self._frown_weight[_PLACES["brows"]] = [1.0 if index in BROW_INNER else 0.3 for index in BROWS]
        self._lid_weight[_PLACES["lower_lids"]] = 1

    def targets(self, dials: Channels, frame: int) -> Targets:
        """Where the control points go in frame ``frame`` of ``dials``."""
        jaw, apart, press, tuck, wide, smile, brow, squint = (
            float(curve[frame])
            for curve in (dials.jaw, dials.apart, dials.press, dials.tuck, dials.wide, dials.smile, dials.brow, dials.squint)
        )
        spread, rounded = max(wide, 0.0), max(-wide, 0.0)
        relaxed = max(press, tuck, rounded)
        kept = SMILE_KEPT + (SMILE_RELAXED - SMILE_KEPT) * relaxed
        undo = self._smile * (1 - kept)
        free = (1 - press) * (1 - 0.85 * tuck)  # how far the lips may part at all

        by_jaw, by_lips, by_teeth = GAP_OF_JAW * jaw * free, GAP_OF_APART * apart * free, TUCK_GAP * tuck * (1 - press)
        raised = 0.16 * by_jaw + 0.5 * by_lips + 0.6 * by_teeth
        dropped = 0.84 * by_jaw + 0.5 * by_lips + 0.4 * by_teeth
        # A smile that bares the teeth has parted the lips already: speech opens them further, not twice.
        bared = self._smile * kept * (1 - relaxed) * free
        together = float(np.hypot(raised + dropped, bared * self._own_gap)) / max(raised + dropped + bared * self._own_gap, 1e-6)

        narrow = (1 - 0.15 * undo) * (1 + 0.09 * spread - 0.23 * rounded) * (1 - 0.07 * jaw * free) * (1 + 0.06 * smile)
        corners = 0.9 * undo * self._smile_depth - 0.02 * smile
        full = (1 - 0.07 * spread) * (1 - 0.1 * press)
        thick_upper = full * (1 + 0.5 * undo) * (1 + 0.16 * rounded)
        thick_lower = full * (1 + 0.4 * undo) * (1 + 0.14 * rounded) * (1 - 0.35 * tuck)
        rest_place, rest_line = self.rest_line

        def lip(local: NDArray[np.floating], travel: float, thickness: float) -> Points:
            t, contour = self.along(local[:, 0]), self.along(local[:11, 0])
            arch = np.maximum(1 - np.abs(t) ** (2.6 - 0.6 * rounded), 0) ** 0.62
            own = np.interp(t, rest_place, local[:11, 1] - rest_line)
            beyond = (local[:, 1] - np.interp(t, contour, local[:11, 1])) * thickness  # 0 on the inner contour
            across = np.interp(t, rest_place, rest_line) + (travel * self.unit * arch + bared * own) * together + beyond
            moved = np.stack([local[:, 0] * narrow, across + corners * self.unit * t * t], 1)
            return self._place(moved.astype(np.float32))

        drop = GAP_OF_JAW * jaw * (0.84 - 0.55 * press - 0.45 * tuck)
        down = (
            drop * self._jaw_weight
            + (0.02 * undo - 0.03 * smile + 0.01 * spread) * self._cheek_weight
            - (0.04 * max(brow, 0.0) * self._brow_weight + 0.022 * min(brow, 0.0) * self._frown_weight)
            - 0.016 * (squint + 0.5 * smile) * self._lid_weight
        )
        out = (0.015 * smile - 0.02 * undo - 0.04 * rounded) * self._cheek_weight + 0.015 * min(brow, 0.0) * self._frown_weight
        moved = self._shared + np.float32(self.unit) * (down[:, None] * self.down + (out * self._outward)[:, None] * self.right)
        return Targets(moved.astype(np.float32), lip(self._upper, -raised, thick_upper), lip(self._lower, dropped, thick_lower))

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
        return self._shared[_PLACES["cheeks"]][:2]
