"""What the renderer draws, judged by looking at the pixels and by finding the face again in what was drawn."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.portrait.channels import Channels
from model_store.portrait.face import Face, find_face
from model_store.portrait.matte import fill
from model_store.portrait.render import Renderer
from model_store.portrait.scene import Scene, prepare

from .pictures import ASTRONAUT, LADY_AGNEW, MONA_LISA, read

FACES = (ASTRONAUT, MONA_LISA, LADY_AGNEW)
SIZES = {ASTRONAUT: (512, 512), MONA_LISA: (480, 746), LADY_AGNEW: (600, 704)}


@cache
def scene(path: str) -> Scene:
    return prepare(read(path), *SIZES[path])


@cache
def renderer(path: str) -> Renderer:
    return Renderer(scene(path))


def draw(path: str, **dials: float) -> NDArray[np.uint8]:
    rest = Channels.rest(1)
    return renderer(path).draw(replace(rest, **{name: np.full(1, value, np.float32) for name, value in dials.items()}), 0)


def gap(face: Face) -> float:
    """Inner-lip opening as a share of the face's width."""
    return float(np.linalg.norm(face.points[13, :2] - face.points[14, :2])) / face.width


@pytest.mark.parametrize("path", FACES)
def test_the_mouth_opens_with_the_jaw_and_closes_for_p(path: str) -> None:
    gaps = [gap(find_face(draw(path, jaw=jaw))) for jaw in (0.0, 0.3, 0.6, 1.0)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 0.08
    assert gap(find_face(draw(path, jaw=0.6, press=1.0))) < gaps[1]
    assert gap(find_face(draw(path, jaw=0.0, press=1.0))) < 0.025


@pytest.mark.parametrize("path", FACES)
def test_f_is_nearly_closed_and_shows_teeth(path: str) -> None:
    tucked, apart = gap(find_face(draw(path, jaw=0.5, tuck=1.0))), gap(find_face(draw(path, jaw=0.5)))
    assert tucked < 0.8 * apart


@pytest.mark.parametrize("path", FACES)
def test_rounding_narrows_and_spreading_widens(path: str) -> None:
    def width(**dials: float) -> float:
        face = find_face(draw(path, jaw=0.2, **dials))
        return float(np.linalg.norm(face.points[61, :2] - face.points[291, :2])) / face.width

    assert width(wide=-1.0) < width() < width(wide=1.0)


def test_the_smile_of_the_photo_does_not_stay() -> None:
    """A smiling photo must close its mouth: no teeth between the lips of a P."""
    face = scene(ASTRONAUT).face
    left, right = face.points[[82, 312], 0].astype(int)
    top, bottom = int(face.points[13, 1]) - 2, int(face.points[14, 1]) + 8
    brightest = {
        name: np.sort(picture[top:bottom, left:right].astype(int).min(axis=2).ravel())[-20:].mean()
        for name, picture in (("photo", scene(ASTRONAUT).image), ("closed", draw(ASTRONAUT, press=1.0)))
    }
    assert brightest["closed"] < brightest["photo"] - 15


@pytest.mark.parametrize("path", FACES)
def test_blinking_hides_the_iris_and_nothing_else(path: str) -> None:
    face, opened, shut = scene(path).face, draw(path), draw(path, blink=1.0)
    changed = np.abs(opened.astype(int) - shut).sum(axis=2) > 24
    eyes = np.zeros(changed.shape, bool)
    for corners, iris in (((33, 133), 468), ((263, 362), 473)):
        reach = np.linalg.norm(face.points[corners[0], :2] - face.points[corners[1], :2])
        x, y = face.points[iris, :2].astype(int)
        assert changed[y - 1 : y + 2, x - 1 : x + 2].mean() > 0.5
        yy, xx = np.ogrid[: changed.shape[0], : changed.shape[1]]
        eyes |= np.hypot(xx - x, yy - y) < reach
    assert not changed[~eyes].any()


@pytest.mark.parametrize(("dial", "axis", "sign"), [("yaw", 0, 1), ("pitch", 1, 1)])
def test_the_head_turns_in_depth(dial: str, axis: int, sign: int) -> None:
    """The nose, being nearer, travels further than the ears."""
    rest, turned = find_face(draw(ASTRONAUT)), find_face(draw(ASTRONAUT, **{dial: 8.0}))
    moved = (turned.points - rest.points)[:, axis] * sign
    assert moved[1] > 0.02 * rest.width
    assert moved[1] > moved[[234, 454]].mean() + 0.02 * rest.width


def test_the_far_background_stays_when_the_head_moves() -> None:
    rest, moved = draw(ASTRONAUT), draw(ASTRONAUT, yaw=9.0, pitch=-5.0, roll=3.0, head_x=0.05)
    height, width = rest.shape[:2]
    corner = (slice(0, height // 4), slice(width - width // 5, width))
    assert np.array_equal(rest[corner], moved[corner])
    assert np.abs(rest.astype(int) - moved).max() > 60


def test_shoulders_follow_the_breath() -> None:
    rest, full = draw(ASTRONAUT).astype(int), draw(ASTRONAUT, breath=1.0).astype(int)
    assert np.abs(rest - full)[230:330, 100:300].mean() > 1.0


def test_every_frame_is_drawn_from_its_dials_alone() -> None:
    rng = np.random.default_rng(1)
    dials = Channels(**{name: rng.random(3).astype(np.float32) for name in Channels.rest(1).__dict__})
    forward = [renderer(ASTRONAUT).draw(dials, i) for i in (0, 1, 2)]
    again = Renderer(scene(ASTRONAUT)).draw(dials, 2)
    assert np.array_equal(forward[2], again)
    assert np.array_equal(renderer(ASTRONAUT).draw(dials, 0), forward[0])


def test_at_rest_the_scene_is_the_photo() -> None:
    """The picture is taken apart and put together again without a trace, but for the mouth that no longer smiles."""
    rest, image, face = draw(ASTRONAUT).astype(int), scene(ASTRONAUT).image.astype(int), scene(ASTRONAUT).face
    error = np.abs(rest - image).mean(axis=2)
    x0, y0 = face.points[:, :2].min(0).astype(int)
    x1, y1 = face.points[:, :2].max(0).astype(int)
    error[y0:y1, x0:x1] = 0
    assert error.mean() < 1.5
    assert np.percentile(error, 99) < 25


def test_a_drawing_moves_although_no_person_is_seen_in_it() -> None:
    """Line art is no person to the segmentation: nothing is cut out, and the face still performs."""
    lines = 255 - np.repeat((np.abs(np.diff(read(LADY_AGNEW).astype(int).mean(2), axis=1, append=0)) > 14)[..., None] * 200, 3, 2)
    washed = (0.25 * read(LADY_AGNEW) + 0.75 * lines).astype(np.uint8)
    drawer = Renderer(prepare(washed, 600, 704))
    rest = Channels.rest(1)
    opened = drawer.draw(replace(rest, jaw=np.ones(1, np.float32)), 0)
    assert gap(find_face(opened)) > gap(find_face(drawer.draw(rest, 0))) + 0.03


@pytest.mark.parametrize("size", [(512, 512), (1280, 720), (360, 640)])
def test_the_frame_is_filled_and_the_face_inside(size: tuple[int, int]) -> None:
    framed = prepare(read(MONA_LISA), *size)
    assert framed.image.shape == (size[1], size[0], 3)
    low, high = framed.face.points[:, :2].min(0), framed.face.points[:, :2].max(0)
    assert (low >= 0).all()
    assert (high <= size).all()


def test_fill_continues_smoothly() -> None:
    ramp = np.repeat(np.linspace(0, 200, 64, dtype=np.float32)[None, :, None], 64, 0).repeat(3, 2)
    known = np.ones((64, 64), bool)
    known[20:40, 20:40] = False
    assert np.abs(fill(np.where(known[..., None], ramp, 0).astype(np.float32), known) - ramp).max() < 40
