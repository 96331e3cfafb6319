"""Finds the face to animate: 478 landmarks with depth, expression, and head pose, from one picture.

The three networks of MediaPipe's Face Landmarker (vendored in ``models/``) run under LiteRT: a single-shot detector
(BlazeFace, https://arxiv.org/abs/1907.05047), the landmark regressor with irises (Attention Mesh,
https://arxiv.org/abs/2006.10962) and the blendshape regressor (https://arxiv.org/abs/2309.05782).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture
from model_store.errors import InfiniteTalkError
from model_store.portrait.networks import run

MIN_FACE = 48
"""Smallest face, in pixels between the outer edges of its cheeks, that carries enough detail to be animated."""

MIN_SCORE = 0.5
"""Detections and landmark fits below this probability are not faces."""

# Subset of the 478 landmarks that the blendshape network reads, in its order.
_BLENDSHAPE_POINTS = [
    *(0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80),
    *(81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153),
    *(154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249),
    *(251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314),
    *(317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382),
    *(384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473),
    *(474, 475, 476, 477),
]

_EXPRESSIONS = {
    "jaw_open": (25,),
    "smile": (44, 45),
    "blink": (9, 10),
    "pucker": (38,),
}
"""Our names for the blendshapes that are used, and their places in the network's 52 outputs."""


@dataclass(frozen=True)
class Face:
    """One face in a picture.

    Args:
        points: ``[478, 3]`` landmarks: x and y in the picture's pixels, z in the same unit, smaller is nearer.
        expression: strength 0..1 of ``jaw_open``, ``smile``, ``blink`` (mean of both sides) and ``pucker``.
        score: the landmark network's own confidence, 0..1.
    """

    points: NDArray[np.floating]
    expression: dict[str, float]
    score: float

    @property
    def width(self) -> float:
        """Length between the outer edges of the cheeks, in pixels (in depth too, so that turned faces measure alike)."""
        return float(np.linalg.norm(self.points[234] - self.points[454]))

    @property
    def roll(self) -> float:
        """In-plane rotation of the eye line, in radians, clockwise for the viewer."""
        right, left = self.points[[33, 133], :2].mean(0), self.points[[263, 362], :2].mean(0)
        return float(np.arctan2(left[1] - right[1], left[0] - right[0]))

    @property
    def yaw(self) -> float:
        """Rotation about the vertical, in degrees, positive when the face looks to the viewer's right."""
        across = self.points[454] - self.points[234]
        return float(np.degrees(np.arctan2(across[2], np.hypot(across[0], across[1]))))

    def moved(self, scale: float, x: float, y: float) -> Face:
        """The same face after the picture was scaled, then shifted by (x, y) pixels."""
        points = self.points * np.float32(scale) + np.array([x, y, 0], np.float32)
        return Face(points, self.expression, self.score)


def find_face(picture: Picture) -> Face:
    """The largest face in ``picture``.

    Raises:
        InfiniteTalkError: ``no_face``, or ``face_too_small`` below :data:`MIN_FACE` pixels.
    """
    # Large pictures are searched at a size where even a small face still has the pixels the networks read.
    scale = min(1.0, 1600 / max(picture.shape[:2]))
    search = picture if scale == 1.0 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = []
    for centre, size, angle in _detect(search):
        face = _fit(search, centre, size, angle)
        if face is not None:
            found.append(face)
    if not found:
        raise InfiniteTalkError(
            "no_face",
            "No face was found in the picture: use one in which the eyes, nose and mouth of a person are clearly visible.",
            param="image",
        )
    face = max(found, key=lambda f: f.width).moved(1 / scale, 0, 0)
    if face.width < MIN_FACE:
        raise InfiniteTalkError(
            "face_too_small",
            f"The largest face is only {face.width:.0f} pixels wide: use a picture in which it has at least {MIN_FACE}, "
            "better 200 or more.",
            param="image",
        )
    return face


@cache
def _anchors() -> NDArray[np.floating]:
    """Centres ``[896, 2]`` of the detector's boxes in 0..1: two a cell at stride 8, six a cell at stride 16."""
    centres = []
    for cells, boxes in ((16, 2), (8, 6)):
        grid = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        y, x = np.meshgrid(grid, grid, indexing="ij")
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), boxes, axis=0))
    return np.concatenate(centres)


def _detect(picture: Picture) -> list[tuple[NDArray[np.floating], float, float]]:
    """Candidate faces as (centre, box size, roll in radians), at several scales, without overlaps."""
    height, width = picture.shape[:2]
    candidates: list[tuple[float, float, float, float, float]] = []
    # The detector reads 128 x 128 pixels: a face that is small in the frame is only seen in a part of it.
    for part in (1.0, 0.55, 0.3):
        side = max(height, width) * part
        if side < 64:
            break
        for y in _offsets(height, side):
            for x in _offsets(width, side):
                candidates += _detect_square(picture, x, y, side)
    candidates.sort(reverse=True)
    kept: list[tuple[NDArray[np.floating], float, float]] = []
    for _score, x, y, size, angle in candidates:
        centre = np.array([x, y], np.float32)
        if all(np.linalg.norm(centre - other) > 0.5 * max(size, extent) for other, extent, _ in kept):
            kept.append((centre, size, angle))
        if len(kept) == 8:
            break
    return kept


def _offsets(length: int, side: float) -> list[float]:
    """Where squares of ``side`` start so that they cover ``length`` with overlaps of at least a third."""
    if side >= length:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side * 0.6))) + 1
    return list(np.linspace(0, length - side, count))


def _detect_square(picture: Picture, x: float, y: float, side: float) -> list[tuple[float, float, float, float, float]]:
    scale = side / 128
    matrix = np.array([[1 / scale, 0, -x / scale], [0, 1 / scale, -y / scale]])
    flags = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    if scale > 2:  # warpAffine samples points: average first, or small faces alias away
        small = cv2.resize(picture, None, fx=2 / scale, fy=2 / scale, interpolation=cv2.INTER_AREA)
        matrix[:, :2] *= scale / 2
        crop = cv2.warpAffine(small, matrix, (128, 128), flags=cv2.INTER_LINEAR)
    else:
        crop = cv2.warpAffine(picture, matrix, (128, 128), flags=flags)
    boxes, logits = run("face_landmarker.task/face_detector.tflite", crop[None].astype(np.float32) / 127.5 - 1)
    scores = 1 / (1 + np.exp(-np.clip(logits[0, :, 0], -50, 50)))
    found = []
    for i in np.flatnonzero(scores > MIN_SCORE):
        centre = _anchors()[i] + boxes[0, i, :2] / 128
        size = float(boxes[0, i, 2:4].max()) / 128
        right_eye, left_eye = (_anchors()[i] + boxes[0, i, k : k + 2] / 128 for k in (4, 6))
        angle = float(np.arctan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0]))
        found.append((float(scores[i]), x + float(centre[0]) * side, y + float(centre[1]) * side, size * side, angle))
    return found


def _fit(picture: Picture, centre: NDArray[np.floating], size: float, angle: float) -> Face | None:
    """Landmarks, refined by looking again at the region they span, and averaged over slightly different crops."""
    points, score = _landmarks(picture, centre, size * 1.5, angle)
    for _ in range(2):
        if score < MIN_SCORE:
            return None
        centre, size, angle = _region(points)
        points, score = _landmarks(picture, centre, size, angle)
    if score < MIN_SCORE:
        return None
    # One crop's landmarks wander by about a pixel in 256; the mean of several is steadier, and lids and lips need it.
    looks = [points]
    for zoom, dx, dy in ((0.95, 0.02, 0.0), (1.05, -0.02, 0.01), (1.0, 0.0, -0.02), (1.1, 0.01, 0.02)):
        shift = np.array([dx, dy], np.float32) * size
        looks.append(_landmarks(picture, centre + shift, size * zoom, angle)[0])
    points = np.mean(looks, axis=0, dtype=np.float32)
    (shapes,) = run("face_landmarker.task/face_blendshapes.tflite", points[None, _BLENDSHAPE_POINTS, :2])
    expression = {name: float(np.mean(shapes[list(places)])) for name, places in _EXPRESSIONS.items()}
    return Face(points, expression, score)


def _region(points: NDArray[np.floating]) -> tuple[NDArray[np.floating], float, float]:
    """The square around landmarks, upright in the face's own frame, with the margin the network was trained with."""
    angle = Face(points, {}, 1.0).roll
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]], np.float32)
    upright = points[:468, :2] @ turn.T
    low, high = upright.min(0), upright.max(0)
    centre = ((low + high) / 2) @ turn
    return centre.astype(np.float32), float((high - low).max()) * 1.5, angle


def _landmarks(picture: Picture, centre: NDArray[np.floating], size: float, angle: float) -> tuple[NDArray[np.floating], float]:
    scale = size / 256
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    place = np.array([[cos, -sin, 0], [sin, cos, 0]], np.float32)
    place[:, 2] = centre - place[:, :2] @ np.array([128, 128], np.float32)
    crop = cv2.warpAffine(picture, place, (256, 256), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    if scale > 2:
        blurred = cv2.GaussianBlur(picture, (0, 0), 0.4 * scale)
        crop = cv2.warpAffine(blurred, place, (256, 256), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    raw, presence, _ = run("face_landmarker.task/face_landmarks_detector.tflite", crop[None].astype(np.float32) / 255)
    local = raw.reshape(478, 3)
    points = np.empty((478, 3), np.float32)
    points[:, :2] = local[:, :2] @ place[:, :2].T + place[:, 2]
    points[:, 2] = local[:, 2] * scale
    score = 1 / (1 + np.exp(-np.clip(float(presence.ravel()[0]), -50, 50)))
    return points, float(score)
