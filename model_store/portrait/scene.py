"""The picture made ready to perform: framed at the output's size, its face found, person and background apart."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model_store.engine import Picture
from model_store.errors import InfiniteTalkError
from model_store.portrait.face import Face, find_face
from model_store.portrait.geometry import smoothstep
from model_store.portrait.matte import Layers, Plane, separate


@dataclass(frozen=True)
class Scene:
    """Everything about the picture that does not change from frame to frame.

    Args:
        image: RGB uint8 ``[H, W, 3]`` at the output's size.
        face: its landmarks in the image's pixels.
        layers: matte, person and background.
        blur: size of the photo's own pixels in the image's: above 1 the photo was enlarged, and edges are that soft.
    """

    image: Picture
    face: Face
    layers: Layers
    blur: float


def prepare(picture: Picture, width: int, height: int) -> Scene:
    """Frame ``picture`` and take it apart.

    Raises:
        InfiniteTalkError: ``no_face``, ``face_too_small``, or ``eyes_shut`` where the lids have nothing to open to.
    """
    face = find_face(picture)
    if face.expression["blink"] > 0.75:
        raise InfiniteTalkError(
            "eyes_shut", "The eyes are shut in the picture: use one in which the person looks at the camera.", param="image"
        )
    image, scale, left, top = _frame(picture, face, width, height)
    face = face.moved(scale, -left, -top)
    outline = cv2.convexHull(face.points[:468, :2].astype(np.float32))[:, 0]
    layers = separate(image, max(3.0, face.width * 0.04), _apart(face, width, height), outline)
    return Scene(image, face, layers, max(1.0, scale))


def _apart(face: Face, width: int, height: int) -> Plane:
    """Head and shoulders are cut out of the scene; further down little moves, and a wrong cut would show more than none."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    chin, forehead = face.points[152, :2], face.points[10, :2]
    down = (chin - forehead) / np.linalg.norm(chin - forehead)
    below_chin = ((x - chin[0]) * down[0] + (y - chin[1]) * down[1]) / face.width
    return 1 - smoothstep(0.7, 1.5, below_chin)


def _frame(picture: Picture, face: Face, width: int, height: int) -> tuple[Picture, float, float, float]:
    """Scale to cover the output and crop around the face: the image, the scale, and the crop's left and top offsets."""
    own_height, own_width = picture.shape[:2]
    scale = max(width / own_width, height / own_height)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (max(width, round(own_width * scale)), max(height, round(own_height * scale)))
    scaled = picture if size == (own_width, own_height) else cv2.resize(picture, size, interpolation=method)
    low, high = face.points[:, :2].min(0) * scale, face.points[:, :2].max(0) * scale
    centre = (low + high) / 2
    # Eyes stand a little above the middle of a well framed portrait; hair needs room above the landmarks.
    left = round(float(np.clip(centre[0] - width / 2, 0, size[0] - width)))
    top = round(float(np.clip(centre[1] - 0.45 * height, 0, size[1] - height)))
    return np.ascontiguousarray(scaled[top : top + height, left : left + width]), scale, left, top
