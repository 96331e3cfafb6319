"""dlib as a judge: what it reads off real pictures whose truth is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from model_store.engine import Picture
from service.evaluate.face_reader import FaceReader
from service.evaluate.landmarks import mouth_opening
from service.evaluate.pose import head_pose
from service.media.picture import load_picture
from tests.quality.puppet import Puppet

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PEOPLE = ("astronaut_face.jpg", "mona_lisa_face.jpg", "lady_agnew_face.jpg")

pytestmark = pytest.mark.usefixtures("judge")


@pytest.fixture(scope="module", params=PEOPLE)
def person(request: pytest.FixtureRequest) -> Picture:
    """A face about 200 pixels wide."""
    picture = load_picture(DATA / request.param)
    return np.asarray(cv2.resize(picture, (480, 480), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def reader() -> FaceReader:
    return FaceReader()


def test_reads_a_speaking_face_that_moves(reader: FaceReader, person: Picture) -> None:
    points = reader.find(person)
    assert points is not None
    puppet = Puppet(person, points)
    rng = np.random.default_rng(0)
    gaps = rng.permutation(np.linspace(0, 0.4, 30))
    rolls = 6 * np.sin(np.arange(30) / 4)
    tracks = [reader.follow(puppet.frame(gap, roll=roll, shift=(roll, 2 * roll))) for gap, roll in zip(gaps, rolls, strict=True)]
    assert all(track is not None for track in tracks)
    seen = np.array(tracks)
    assert np.corrcoef(mouth_opening(seen), gaps)[0, 1] > 0.95
    found = head_pose(seen, 480, 480)
    assert found[:, 2] - found[:, 2].mean() == pytest.approx(rolls - rolls.mean(), abs=1.0)
    assert found[:, 0].std() < 0.5  # pitch is not held to this: a mouth that opens looks like a nod


def test_loses_a_face_that_leaves_and_finds_it_again(reader: FaceReader, person: Picture) -> None:
    away = np.full_like(person, 90)
    seen = [reader.follow(frame) is not None for frame in [person] * 3 + [away] * 30 + [person] * 10]
    assert all(seen[:3])
    assert not any(seen[15:33])
    assert all(seen[38:])


def test_two_people_differ_and_one_person_does_not(reader: FaceReader) -> None:
    descriptors = {}
    for name in PEOPLE:
        picture = load_picture(DATA / name)
        points = reader.find(picture)
        assert points is not None
        descriptors[name] = reader.descriptor(picture, points)
        darker = (picture * 0.8).astype(np.uint8)
        assert np.linalg.norm(reader.descriptor(darker, points) - descriptors[name]) < 0.25
    first, second, third = descriptors.values()
    assert min(np.linalg.norm(first - second), np.linalg.norm(first - third), np.linalg.norm(second - third)) > 0.6


def test_sees_no_face_where_none_is(reader: FaceReader) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    assert reader.find(noise) is None


@pytest.mark.parametrize("side", [480, 520])
def test_a_fold_of_the_suit_is_not_taken_for_the_face(reader: FaceReader, side: int) -> None:
    # dlib's detector finds a "face" there, larger than the real one, at these sizes.
    picture = load_picture(EXAMPLES / "astronaut.png")
    points = reader.find(np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8))
    assert points is not None
    assert points[30] / side == pytest.approx([0.44, 0.25], abs=0.03)
