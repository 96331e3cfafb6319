"""The right face is found, and what cannot be animated is refused with its cause."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from model_store.errors import InfiniteTalkError
from model_store.portrait.face import find_face
from model_store.portrait.networks import MODELS

from .pictures import ASTRONAUT, LADY_AGNEW, MONA_LISA, read


def test_vendored_models_are_the_ones_named() -> None:
    lines = (MODELS / "SHA256SUMS").read_text().split("\n")
    for line in filter(None, lines):
        digest, name = line.split()
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("path", "eyes", "yaw"), [(ASTRONAUT, 100, 0), (MONA_LISA, 251, -19), (LADY_AGNEW, 111, 0)])
def test_photos_and_paintings(path: str, eyes: int, yaw: float) -> None:
    face = find_face(read(path))
    assert face.points[[33, 263], 1].mean() == pytest.approx(eyes, abs=12)
    assert face.yaw == pytest.approx(yaw, abs=6)
    assert face.points[1, 2] < face.points[[234, 454], 2].mean(), "the nose is nearer than the ears"
    left, right, lip_top, lip_bottom = face.points[[61, 291, 0, 17], :2]
    assert left[0] < right[0]
    assert lip_top[1] < lip_bottom[1]


def test_expression_of_a_smile() -> None:
    assert find_face(read(ASTRONAUT)).expression["smile"] > 0.6
    assert find_face(read(LADY_AGNEW)).expression["smile"] < 0.2


@pytest.mark.parametrize("angle", [-35, 20])
def test_a_tilted_head(angle: float) -> None:
    picture = read(ASTRONAUT)
    turn = cv2.getRotationMatrix2D((227, 110), -angle, 1.0)
    face = find_face(cv2.warpAffine(picture, turn, (512, 512), borderMode=cv2.BORDER_REFLECT))
    assert np.degrees(face.roll) == pytest.approx(angle + np.degrees(find_face(picture).roll), abs=4)


def test_the_largest_of_several_faces() -> None:
    picture = read(ASTRONAUT)
    small = cv2.resize(picture[0:260, 100:360], (130, 130), interpolation=cv2.INTER_AREA)
    both = np.concatenate([picture, np.full((512, 200, 3), 90, np.uint8)], axis=1)
    both[300:430, 540:670] = small
    assert find_face(both).points[1, 0] < 512
    assert find_face(both).width == pytest.approx(find_face(picture).width, rel=0.05)


def test_a_small_face_in_a_large_picture() -> None:
    wide = np.full((1400, 2200, 3), 120, np.uint8)
    wide[700 : 700 + 512, 1500 : 1500 + 512] = read(ASTRONAUT)
    face = find_face(wide)
    assert 1500 < face.points[1, 0] < 2012


@pytest.mark.parametrize("kind", ["grey", "noise", "upside_down_texture"])
def test_no_face(kind: str) -> None:
    rng = np.random.default_rng(0)
    picture = {
        "grey": np.full((400, 400, 3), 128, np.uint8),
        "noise": rng.integers(0, 255, (400, 400, 3), dtype=np.uint8),
        "upside_down_texture": cv2.resize(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8), (600, 400)),
    }[kind]
    with pytest.raises(InfiniteTalkError) as caught:
        find_face(picture)
    assert caught.value.code == "no_face"
    assert caught.value.param == "image"


def test_a_face_too_small() -> None:
    tiny = cv2.resize(read(ASTRONAUT), (200, 200), interpolation=cv2.INTER_AREA)
    with pytest.raises(InfiniteTalkError) as caught:
        find_face(tiny)
    assert caught.value.code == "face_too_small"
