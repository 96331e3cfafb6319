"""One pass over a video, and every number that describes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, SPEECH_RATE, Picture
from model_store.errors import InfiniteTalkError
from model_store.portrait.engine import CHUNK_FRAMES, FIRST_CHUNK_FRAMES
from service.evaluate.blinks import Blink, find_blinks
from service.evaluate.colour import ColourMeter
from service.evaluate.face_reader import FaceReader, Points
from service.evaluate.landmarks import eye_distance, eye_openness, face_width, jitter, mouth_opening
from service.evaluate.motion import MotionMeter, joint_ratios, least_in_windows
from service.evaluate.ordering import Ordering, ordering
from service.evaluate.pose import head_pose
from service.evaluate.sound import loudness, sound_lag
from service.evaluate.timings import CLOSED, OPEN, TUCKED, Timings
from service.media.picture import load_picture
from service.media.speech import open_speech
from service.media.video import read_video_frames

Curve = NDArray[np.float64]

IDENTITY_EVERY = 10
"""Identity changes slowly and costs 0.1 s: every tenth frame is compared with the photo."""

LONGEST_SECONDS = 4 * 3600.0
_LENGTH_TOLERANCE = 0.2
_STRIP_FRAMES = 9
_STRIP_HEIGHT = 320


@dataclass(frozen=True)
class Measures:
    """What was measured. Lags are in frames, positive when the mouth comes after the sound; NaN where nothing could be measured.

    Args:
        frames, seconds, width, height: of the video.
        face_width: median distance between the ends of the jaw line, in pixels.
        face_seen: share of frames in which a face was seen.
        closures, tucks, opens: P/B/M more closed, F/V more closed, open vowels more open than other speech; None without timings.
        sound_lag, sound_correlation: of the mouth's opening against loudness.
        identity_mean, identity_worst: distance of dlib's face descriptors between photo and frames.
        blinks, blinks_a_minute: by eye-aspect ratio.
        yaw_std, pitch_std, roll_std: of the head, in degrees over the whole clip.
        motion_inside, motion_outside: mean optical flow in the mouth region and in the rest of the frame, percent of the face's
            width a frame.
        motion_outside_least: the least of the latter in any five seconds.
        longest_still: seconds of the longest stretch without motion outside the mouth.
        jitter: see :func:`service.evaluate.landmarks.jitter`.
        joint_largest, joint_median: frame differences at joints of chunks, relative to those elsewhere.
        face_drift, background_drift: ΔE between the first and last five seconds.
    """

    frames: int
    seconds: float
    width: int
    height: int
    face_width: float
    face_seen: float
    closures: Ordering | None
    tucks: Ordering | None
    opens: Ordering | None
    sound_lag: int
    sound_correlation: float
    identity_mean: float
    identity_worst: float
    blinks: int
    blinks_a_minute: float
    yaw_std: float
    pitch_std: float
    roll_std: float
    motion_inside: float
    motion_outside: float
    motion_outside_least: float
    longest_still: float
    jitter: float
    joint_largest: float
    joint_median: float
    face_drift: float
    background_drift: float


@dataclass(frozen=True)
class Evaluation:
    """The numbers, and the curves behind them: opening, loudness (dB) and eye openness ``[T]``, pose ``[T, 3]`` in degrees."""

    measures: Measures
    opening: Curve
    loudness: Curve
    openness: Curve
    pose: NDArray[np.float64]
    blinks: list[Blink]
    timings: Timings | None
    strip: list[tuple[float, Picture]]
    """Some frames, evenly spread, with their times in seconds."""


@dataclass
class _Watched:
    """What one pass over the frames leaves."""

    motion: MotionMeter = field(default_factory=MotionMeter)
    tracks: list[Points] = field(default_factory=list)
    colours: ColourMeter = field(default_factory=ColourMeter)
    distances: list[float] = field(default_factory=list)
    strip: list[tuple[float, Picture]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)


def evaluate_video(
    video: Path,
    photo: Path,
    audio: Path,
    timings: Timings | None = None,
    *,
    start: float | None = None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure a talking portrait.

    Args:
        video: the MP4, 25 frames a second.
        photo: the picture it was made from.
        audio: the recording it was made from.
        timings: of the recording, if known.
        start: second of the recording at which the video begins; the recording may then go on after the video's end. None: video
            and recording have the same length.
        on_frame: called with the number of frames done and in all.

    Raises:
        InfiniteTalkError: ``quality_extra_missing``; ``video_not_found``, ``video_damaged``, ``video_rate`` (not 25 fps),
            ``no_face`` (``param`` names ``video`` or ``image``), ``lengths_differ``, and what the photo and the recording cause.
    """
    reader = FaceReader()
    count = _frame_count(video)
    picture = load_picture(photo)
    seconds = count / FPS
    with open_speech(audio, max_seconds=LONGEST_SECONDS, start=start or 0.0) as speech:
        _require_equal_lengths(seconds, speech.samples / SPEECH_RATE, whole=start is None)
        watched = _watch(video, count, picture, reader, on_frame)
        level = loudness(speech, len(watched.tracks))
    if timings is not None and start is not None:
        timings = timings.cut(start)
    return _evaluation(watched, level, timings)


def _watch(video: Path, count: int, picture: Picture, reader: FaceReader, on_frame: Callable[[int, int], None]) -> _Watched:
    watched = _Watched()
    own: NDArray[np.float64] | None = None
    keep = set(np.linspace(0.03 * count, 0.97 * count, _STRIP_FRAMES).astype(int).tolist())
    for number, frame in enumerate(read_video_frames(video)):
        points = reader.follow(frame)
        if points is not None and own is None:
            own = _photo_descriptor(reader, picture, float(eye_distance(points[None])[0]))
        if points is not None and own is not None and number % IDENTITY_EVERY == 0:
            watched.distances.append(float(np.linalg.norm(reader.descriptor(frame, points) - own)))
        watched.motion.add(frame, points)
        watched.colours.add(frame, points)
        watched.tracks.append(np.full((68, 2), np.nan) if points is None else points)
        watched.size = frame.shape[1], frame.shape[0]
        if number in keep:
            scale = _STRIP_HEIGHT / frame.shape[0]
            small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            watched.strip.append((number / FPS, np.asarray(small, np.uint8)))
        on_frame(number + 1, count)
    if own is None:
        raise InfiniteTalkError(
            "no_face", f"The judge's detector sees no face in {video.name!r}: nothing can be measured.", param="video"
        )
    return watched


def _evaluation(watched: _Watched, level: Curve, timings: Timings | None) -> Evaluation:
    tracks = np.array(watched.tracks)
    opening, openness = mouth_opening(tracks), eye_openness(tracks)
    blinks = find_blinks(openness)
    pose = head_pose(tracks, *watched.size)
    yaw, pitch, roll = np.nanstd(pose, axis=0)
    seen = np.isfinite(opening)
    lag, correlation = sound_lag(opening, level)
    inside, outside = np.array(watched.motion.inside), np.array(watched.motion.outside)
    joint_largest, joint_median = joint_ratios(np.array(watched.motion.change), FIRST_CHUNK_FRAMES, CHUNK_FRAMES)
    face_drift, background_drift = watched.colours.drift()
    measures = Measures(
        frames=len(tracks),
        seconds=len(tracks) / FPS,
        width=watched.size[0],
        height=watched.size[1],
        face_width=float(np.nanmedian(face_width(tracks))),
        face_seen=float(seen.mean()),
        closures=ordering(opening, timings, CLOSED) if timings else None,
        tucks=ordering(opening, timings, TUCKED) if timings else None,
        opens=ordering(opening, timings, OPEN, opens=True) if timings else None,
        sound_lag=lag,
        sound_correlation=correlation,
        identity_mean=float(np.mean(watched.distances)) if watched.distances else float("nan"),
        identity_worst=max(watched.distances, default=float("nan")),
        blinks=len(blinks),
        blinks_a_minute=60 * FPS * len(blinks) / int(seen.sum()),
        yaw_std=float(yaw),
        pitch_std=float(pitch),
        roll_std=float(roll),
        motion_inside=_mean(inside),
        motion_outside=_mean(outside),
        motion_outside_least=least_in_windows(outside),
        longest_still=watched.motion.longest_still,
        jitter=jitter(tracks),
        joint_largest=joint_largest,
        joint_median=joint_median,
        face_drift=face_drift,
        background_drift=background_drift,
    )
    return Evaluation(measures, opening, level, openness, pose, blinks, timings, watched.strip)


def _photo_descriptor(reader: FaceReader, picture: Picture, eyes: float) -> NDArray[np.float64]:
    """The photo's descriptor, from the photo reduced until its face is as large as in the video: detail is no difference."""
    points = reader.find(picture)
    if points is None:
        raise InfiniteTalkError(
            "no_face", "The judge's detector sees no face in the photo: use one that shows the face.", param="image"
        )
    scale = min(1.0, eyes / float(eye_distance(points[None])[0]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return reader.descriptor(np.asarray(small, np.uint8), points * scale)


def _frame_count(video: Path) -> int:
    """Frames of the video by its index."""
    if not video.is_file():
        raise InfiniteTalkError("video_not_found", f"There is no file {video.name!r}: check its name.", param="video")
    try:
        with av.open(f"file:{video.resolve()}", "r", options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            count = stream.frames or sum(packet.pts is not None for packet in container.demux(stream))
    except (av.FFmpegError, IndexError) as error:
        raise InfiniteTalkError(
            "video_damaged", f"{video.name!r} is not a video that can be decoded: make it again.", param="video"
        ) from error
    if rate is None or abs(float(rate) - FPS) > 0.01:
        found = "no steady rate" if rate is None else f"{float(rate):g} frames a second"
        raise InfiniteTalkError("video_rate", f"{video.name!r} has {found}: convert it to {FPS} frames a second.", param="video")
    return int(count)


def _require_equal_lengths(video: float, audio: float, *, whole: bool) -> None:
    if audio < video - _LENGTH_TOLERANCE or (whole and audio > video + _LENGTH_TOLERANCE):
        raise InfiniteTalkError(
            "lengths_differ",
            f"The video lasts {video:.2f} s and the recording {audio:.2f} s: name the recording that the video was made from, "
            "or with --start the second of it at which the video begins.",
            param="audio",
        )


def _mean(values: Curve) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
