"""The judge's eyes: dlib's face detector, 68 landmarks and 128-D face descriptor, none of which any engine uses.

The 68-point model was trained on iBUG 300-W, whose licence excludes commercial use: it is for measuring and tests only and is
no part of the product. It comes with the extra ``quality``.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture
from model_store.errors import InfiniteTalkError

Points = NDArray[np.float64]
"""iBUG 68 landmarks ``[68, 2]`` in pixels (x, y)."""

Matrix = NDArray[np.float64]
"""An affine map of the picture ``[2, 3]``."""

MISSING_EXTRA = "Measuring needs the packages of the extra 'quality': pip install 'infinite-talk[quality]'."

RIGID = (27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45)
"""Landmarks that speech does not move: nose and eye corners."""

_FIVE = (45, 42, 36, 39, 33)
"""The points of dlib's five-point model, in its order."""

# Where they lie in dlib's own detection box (centre 0, width 1) on an upright face: means over 84 detections of three frontal
# and three-quarter faces and their mirror images.
_RIGID_IN_BOX = np.array(
    [
        *[(0.0, -0.235), (0.0, -0.139), (0.0, -0.044), (0.0, 0.052)],
        *[(-0.093, 0.094), (0.0, 0.13), (0.093, 0.094)],
        *[(-0.305, -0.239), (-0.124, -0.22), (0.124, -0.22), (0.305, -0.239)],
    ]
)

_CHIP = 320
_BOX = 190
_BOX_CENTRE = (160.0, 150.0)

# The regressor starts from the box and keeps a trace of where it lay (and rounds to whole pixels): the mean over slightly
# different boxes takes that noise out of every single frame, without looking at its neighbours. Pixels: shift x, shift y, growth.
_BOXES = ((0, 0, 0), (-5, 3, 4), (5, -3, 4), (3, 5, -6), (-3, -5, -6), (6, 2, 9), (-6, -2, 9))

_CHECK_EVERY = 12
_SEARCH_EVERY = 5
_SEARCH_SIDE = 560
_SURE_SHARE = 0.5
"""Share of the best detection's score that another needs to count: folds of clothes are taken for faces, at a tenth of it."""
_DETECT_ABOVE = -0.2
"""Detector score on a frame in which a face is expected: lower than its default of 0, since it only confirms."""


class FaceReader:
    """Finds the largest face in a picture, and follows it through a video.

    Raises:
        InfiniteTalkError: ``quality_extra_missing``.
    """

    def __init__(self) -> None:
        self._dlib, self._detector, self._predictor, self._descriptor = _networks()
        self._last: Points | None = None
        self._frame = 0

    def find(self, picture: Picture) -> Points | None:
        """Landmarks of the largest face of one picture, or None."""
        short = min(picture.shape[:2])
        for scale in (min(1.0, _SEARCH_SIDE / short), max(1.0, 2 * _SEARCH_SIDE / short)):
            view = _resized(picture, scale)
            boxes, scores, _ = self._detector.run(view, 0, 0.0)
            if len(boxes):
                sure = [box for box, score in zip(boxes, scores, strict=True) if score >= _SURE_SHARE * max(scores)]
                box = max(sure, key=lambda each: each.area())
                size = box.width() / scale
                centre = np.array([box.center().x, box.center().y]) / scale
                # Two steps: the detector's box knows neither roll nor size exactly.
                points = centre + _RIGID_IN_BOX * size
                points = self._landmarks(picture, points)
                return self._landmarks(picture, points[list(RIGID)])
        return None

    def follow(self, frame: Picture) -> Points | None:
        """Landmarks of the next frame of a video, or None while no face is seen.

        The previous frame only says where to look; every frame is read on its own and nothing is smoothed. The detector
        confirms the face every twelfth frame and searches anew when it is lost.
        """
        number, self._frame = self._frame, self._frame + 1
        if self._last is not None:
            if number % _CHECK_EVERY or self._confirmed(frame, self._last):
                self._last = self._landmarks(frame, self._last[list(RIGID)])
            else:
                self._last = self.find(frame)
        elif number % _SEARCH_EVERY == 0:
            self._last = self.find(frame)
        return self._last

    def descriptor(self, picture: Picture, points: Points) -> NDArray[np.float64]:
        """dlib's face descriptor ``[128]``; two pictures of one person lie less than 0.6 apart.

        The face is cut out by the corners of the eyes and the base of the nose (the five points of dlib's smaller model), so that
        an open mouth does not tilt or scale it.
        """
        box = self._dlib.rectangle(0, 0, picture.shape[1], picture.shape[0])
        shape = self._dlib.full_object_detection(box, [self._dlib.point(round(x), round(y)) for x, y in points[list(_FIVE)]])
        return np.asarray(self._descriptor.compute_face_descriptor(self._dlib.get_face_chip(picture, shape, 150, 0.25)))

    def _confirmed(self, frame: Picture, last: Points) -> bool:
        chip = cv2.warpAffine(frame, _to_chip(last[list(RIGID)]), (_CHIP, _CHIP), flags=cv2.INTER_LINEAR)
        boxes, _, _ = self._detector.run(chip, 0, _DETECT_ABOVE)
        return any(
            abs(box.center().x - _BOX_CENTRE[0]) < _BOX / 3
            and abs(box.center().y - _BOX_CENTRE[1]) < _BOX / 3
            and _BOX / 1.6 < box.width() < _BOX * 1.6
            for box in boxes
        )

    def _landmarks(self, picture: Picture, rigid: Points) -> Points:
        """The mean of seven readings in an upright crop of fixed size, so that small and tilted faces are read alike."""
        matrix = _to_chip(rigid)
        chip = cv2.warpAffine(picture, matrix, (_CHIP, _CHIP), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        total = np.zeros((68, 2))
        for dx, dy, growth in _BOXES:
            side = _BOX + growth
            left, top = round(_BOX_CENTRE[0] + dx - side / 2), round(_BOX_CENTRE[1] + dy - side / 2)
            shape = self._predictor(chip, self._dlib.rectangle(left, top, left + side - 1, top + side - 1))
            total += np.array([(part.x, part.y) for part in shape.parts()])
        mean = total / len(_BOXES)
        inverse = cv2.invertAffineTransform(matrix)
        return mean @ inverse[:, :2].T + inverse[:, 2]


def _to_chip(rigid: Points) -> Matrix:
    """The similarity that brings :data:`RIGID` landmarks (as ``[11, 2]``) to their places in the upright crop (least squares)."""
    target = _RIGID_IN_BOX * _BOX + np.array(_BOX_CENTRE)
    source = rigid - rigid.mean(0)
    goal = target - target.mean(0)
    z, w = source @ np.array([1, 1j]), goal @ np.array([1, 1j])
    turn = np.vdot(z, w) / np.vdot(z, z).real
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([linear, target.mean(0) - linear @ rigid.mean(0)])


def _resized(picture: Picture, scale: float) -> Picture:
    if scale == 1.0:
        return np.ascontiguousarray(picture)
    filtering = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=filtering), np.uint8)


@cache
def _networks() -> tuple[Any, Any, Any, Any]:
    """dlib, its face detector, landmark predictor and face descriptor: loaded once, in a second.

    The package that holds the model files is not imported: it asks for ``pkg_resources``, which new environments lack.
    """
    spec = find_spec("face_recognition_models")
    try:
        import dlib  # noqa: PLC0415 - only who measures needs it
    except ImportError as error:
        raise InfiniteTalkError("quality_extra_missing", MISSING_EXTRA) from error
    if spec is None or spec.origin is None:
        raise InfiniteTalkError("quality_extra_missing", MISSING_EXTRA)
    models = Path(spec.origin).parent / "models"
    predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    descriptor = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    return dlib, dlib.get_frontal_face_detector(), predictor, descriptor
