"""The portrait engine, end to end, before the judge: thirteen seconds of timed speech on a face 250 pixels wide.

The bars are those of the full minute (`make quality`), lowered where so short a piece says less: it holds seven frames of F/V,
and a few sentences' worth of head motion.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from service.evaluate.measure import Evaluation, Measures, evaluate_video
from service.evaluate.timings import read_timings
from tests.quality.table import DATA, TIMINGS, VOICE, animate

START, SECONDS = 44.05, 12.7
PHOTO = DATA / "mona_lisa_face.jpg"

pytestmark = pytest.mark.usefixtures("judge")


@pytest.fixture(scope="module")
def evaluation(judge: None, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    video = tmp_path_factory.mktemp("portrait") / "talking.mp4"
    animate(PHOTO, video, start=START, seconds=SECONDS)
    return evaluate_video(video, PHOTO, VOICE, read_timings(TIMINGS), start=START)


@pytest.fixture(scope="module")
def measures(evaluation: Evaluation) -> Measures:
    return evaluation.measures


def test_face_is_seen_and_large_enough_to_judge_lips(measures: Measures) -> None:
    assert measures.face_seen == 1.0
    assert measures.face_width >= 200


def test_lips_close_on_p_b_m(measures: Measures) -> None:
    assert measures.closures is not None
    assert measures.closures.probability >= 0.85
    assert abs(measures.closures.lag) <= 2


def test_lip_meets_teeth_on_f_v(measures: Measures) -> None:
    assert measures.tucks is not None
    assert measures.tucks.probability >= 0.7


def test_mouth_opens_on_open_vowels(measures: Measures) -> None:
    assert measures.opens is not None
    assert measures.opens.probability >= 0.7


def test_mouth_keeps_time_with_the_sound(measures: Measures) -> None:
    assert measures.sound_correlation > 0.3
    assert abs(measures.sound_lag) <= 2


def test_face_stays_the_photo_s(measures: Measures) -> None:
    assert measures.identity_mean <= 0.35
    assert measures.identity_worst <= 0.45


def test_whole_frame_is_alive_in_every_second(measures: Measures) -> None:
    assert 0.6 <= max(measures.yaw_std, measures.roll_std) <= 5
    assert measures.motion_outside_least >= 0.05
    assert measures.longest_still < 1


def test_picture_is_steady(measures: Measures) -> None:
    assert measures.jitter <= 1.3
    assert measures.joint_largest <= 1.0
    assert measures.face_drift <= 2.5


def test_plot_shows_it(evaluation: Evaluation, tmp_path: Path) -> None:
    plot = pytest.importorskip("service.evaluate.plot")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[quality]'")
    plot.save_plot(evaluation, tmp_path / "plot.png", "A title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
