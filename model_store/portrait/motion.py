"""Head, eyes, brows and body: what a speaker does besides speaking, from prosody and the seed.

Every curve is a sum of slow noise and of events (stress, pauses, blinks, glances) that lie within a few seconds of the frame.
Times are absolute, so a performance can be made in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS
from model_store.portrait.chance import Chance
from model_store.portrait.prosody import Prosody, emphasis, moving_mean, speaking

Floats = NDArray[np.float64]

REACH = 140
"""Frames before and after a moment on which it depends."""

BLINK_SECONDS = 3.4
"""One blink in each span of this length: 17.6 a minute."""

GLANCE_SECONDS = 1.7
"""One decision where to look in each span of this length."""

YAW_LIMIT, PITCH_LIMIT, ROLL_LIMIT = 9.0, 7.0, 4.0
"""Degrees that the head never exceeds at expressiveness 1."""

DEGREES_PER_GAZE = 28.0
"""A head turned by this much with the eyes left on the viewer shows the eyes in their corner."""


@dataclass(frozen=True)
class _Moment:
    """Frames to plan: ``frame`` are absolute numbers, ``seconds`` their times."""

    frame: NDArray[np.int64]
    seconds: Floats


def _bump(rise: float, fall: float) -> Floats:
    """A pulse from 0 to 1 in ``rise`` seconds and back in ``fall``, smooth at both ends and at the top."""
    up = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, round(rise * FPS) + 1) / round(rise * FPS))
    down = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, round(fall * FPS)) / round(fall * FPS))
    return np.concatenate([up, down])


def _place(events: Floats, pulse: Floats, lead: float) -> Floats:
    """A pulse for every event, beginning ``lead`` seconds before it."""
    shift = round(lead * FPS)
    full = np.convolve(np.pad(events, (0, len(pulse))), pulse)
    return np.asarray(full[shift : shift + len(events)])


def _limit(values: Floats, limit: float) -> Floats:
    """Bend large values over so that none passes the limit; small ones stay as they are."""
    return np.asarray(limit * np.tanh(values / limit))


def _phrase_edges(spoken: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """1 in the first frame of each phrase, and 1 in the first frame of each pause."""
    change = np.diff(spoken.astype(np.int8), prepend=spoken[:1].astype(np.int8))
    return (change > 0).astype(np.float64), (change < 0).astype(np.float64)


def _sign(chance: Chance, stream: str, frame: NDArray[np.int64]) -> Floats:
    """A random direction and strength for an event in each frame: -1 .. -0.5 or 0.5 .. 1."""
    u = chance.uniform(stream, frame)
    return np.where(u < 0.5, -1.0 + u, u)


def blinks(chance: Chance, moment: _Moment, pause: Floats, glance: Floats) -> Floats:
    """Lids: one blink in every :data:`BLINK_SECONDS`, in its pause or with its largest glance if it has one."""
    span = round(BLINK_SECONDS * FPS)
    wish = pause + 0.7 * glance + 0.9 * chance.uniform("blink", moment.frame)
    lids = np.zeros(len(moment.frame))
    shapes = (
        np.array([0.45, 1.0, 0.92, 0.5, 0.16]),
        np.array([0.6, 1.0, 0.62, 0.22]),
        np.array([0.38, 0.95, 1.0, 0.66, 0.32, 0.1]),
    )
    for slot in range(int(moment.frame[0]) // span, int(moment.frame[-1]) // span + 1):
        # Only the middle of a span may blink, which keeps two blinks apart.
        first, last = slot * span + round(0.08 * span), slot * span + round(0.86 * span)
        lo, hi = first - int(moment.frame[0]), last - int(moment.frame[0])
        if lo < 0 or hi > len(wish):
            continue
        index = np.array([slot])
        at = lo + int(np.argmax(wish[lo:hi]))
        kind = float(chance.uniform("blink kind", index)[0])
        shape = shapes[int(kind * len(shapes))]
        starts = [at, at + len(shape) + 5] if float(chance.uniform("blink twice", index)[0]) < 0.06 else [at]
        for start in starts:
            stop = min(start + len(shape), len(lids))
            lids[start:stop] = np.maximum(lids[start:stop], shape[: max(0, stop - start)])
    return lids


def glances(chance: Chance, moment: _Moment) -> tuple[Floats, Floats, Floats]:
    """Where the eyes look: mostly at the viewer, held, then a jump. Returns x, y and the size of the jump in each frame."""
    span = GLANCE_SECONDS * FPS
    x, y, jump = (np.zeros(len(moment.frame)) for _ in range(3))
    slots = np.arange(int(moment.frame[0] // span) - 1, int(moment.frame[-1] // span) + 2)
    starts = np.ceil((slots + 0.8 * chance.uniform("glance time", slots)) * span).astype(np.int64)
    away = chance.uniform("glance away", slots) < np.where(slots % 2 == 0, 0.12, 0.6)
    far = np.where(away, 0.28 + 0.4 * chance.uniform("glance far", slots), 0.05)
    angle = 2.0 * np.pi * chance.uniform("glance angle", slots)
    to_x, to_y = far * np.cos(angle), 0.6 * far * np.sin(angle)
    for i in range(1, len(slots)):
        lo, hi = (
            int(np.clip(s - moment.frame[0], 0, len(x)))
            for s in (starts[i], starts[i + 1] if i + 1 < len(slots) else starts[i] + 10**6)
        )
        x[lo:hi], y[lo:hi] = to_x[i], to_y[i]
        if 0 <= starts[i] - moment.frame[0] < len(x):
            distance = float(np.hypot(to_x[i] - to_x[i - 1], to_y[i] - to_y[i - 1]))
            jump[lo] = distance
            # A jump takes 40-60 ms: one frame is seen on the way.
            x[lo] = 0.35 * to_x[i - 1] + 0.65 * to_x[i]
            y[lo] = 0.35 * to_y[i - 1] + 0.65 * to_y[i]
    return x, y, jump


def move(prosody: Prosody, first_frame: int, chance: Chance, expressiveness: float) -> dict[str, Floats]:
    """All dials but the mouth's, for the frames of ``prosody``.

    Args:
        prosody: of the frames from ``first_frame`` on.
        first_frame: number of the first frame.
        chance: of the performance's seed.
        expressiveness: 0 .. 2.

    Returns:
        Dials by name, each ``[T]``; the first and last :data:`REACH` frames are not settled, since they lack neighbours.
    """
    frame = np.arange(first_frame, first_frame + len(prosody.loudness), dtype=np.int64)
    moment = _Moment(frame, (frame + 0.5) / FPS)
    seconds = moment.seconds

    def drift(stream: str, period: float) -> Floats:
        return chance.drift(stream, seconds, period)

    spoken = speaking(prosody)
    begins, ends = _phrase_edges(spoken)
    stress = emphasis(prosody)
    active = moving_mean(spoken.astype(np.float64), 8)
    nod_chance = chance.uniform("nod", frame)
    nod = _place(stress * (nod_chance < 0.7), _bump(0.24, 0.44), 0.20)
    dip = _place(ends * (0.5 + 0.5 * chance.uniform("dip", frame)), _bump(0.5, 1.2), 0.4)
    lift = _place(begins * chance.uniform("lift", frame), _bump(0.36, 1.0), 0.36)
    turn = _place(ends * _sign(chance, "turn", frame), _bump(0.72, 2.4), 0.3)
    tilt = _place(stress * _sign(chance, "tilt", frame), _bump(0.32, 0.7), 0.24)
    sweep = _place(stress * _sign(chance, "sweep", frame), _bump(0.36, 0.8), 0.28)

    lively = 0.6 + 0.4 * active
    yaw = (
        1.7 * drift("yaw", 2.3)
        + 1.3 * drift("yaw slow", 14.0)
        + 0.45 * lively * drift("yaw quick", 0.75)
        + 3.2 * turn
        + 1.4 * sweep
    )
    pitch = (
        0.8 * drift("pitch", 1.9)
        + 0.6 * drift("pitch slow", 11.0)
        + 0.4 * lively * drift("pitch quick", 0.6)
        + 3.4 * nod
        + 1.6 * dip
        - 1.8 * lift
    )
    roll = 0.8 * drift("roll", 2.9) + 0.6 * drift("roll slow", 13.0) + 0.9 * tilt - 0.12 * yaw
    reach = 0.6 + 0.4 * max(1.0, expressiveness)
    yaw = _limit(expressiveness * yaw, reach * YAW_LIMIT)
    pitch = _limit(expressiveness * (pitch - 0.5), reach * PITCH_LIMIT)
    roll = _limit(expressiveness * roll, reach * ROLL_LIMIT)

    glance_x, glance_y, jump = glances(chance, moment)
    pause = 1.0 - moving_mean(spoken.astype(np.float64), 2)
    # The eyes stay on what they look at while the head turns under them.
    held_x, held_y = -0.75 * yaw / DEGREES_PER_GAZE, -0.75 * pitch / DEGREES_PER_GAZE
    brows = _place(stress * (chance.uniform("brow", frame) < 0.75), _bump(0.2, 0.6), 0.18)
    inhale = _place(ends, _bump(0.6, 2.6), 0.0)
    tide = 0.5 - 0.5 * np.cos(2.0 * np.pi * seconds / 3.9 + 0.9 * drift("tide", 5.0))
    sway = 0.012 * drift("sway", 4.7) + 0.02 * drift("sway slow", 17.0)
    return {
        "smile": np.clip(expressiveness * (0.10 + 0.06 * drift("smile", 6.0)), 0.0, 1.0),
        "blink": blinks(chance, moment, pause, jump),
        "gaze_x": np.clip(expressiveness * glance_x + held_x, -1.0, 1.0),
        "gaze_y": np.clip(expressiveness * glance_y + held_y, -1.0, 1.0),
        "brow": np.clip(expressiveness * (0.62 * brows + 0.10 * drift("brow slow", 3.1) - 0.03), -1.0, 1.0),
        "squint": np.clip(expressiveness * (0.08 + 0.06 * drift("squint", 4.0) + 0.10 * nod), 0.0, 1.0),
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "head_x": 0.006 * yaw + expressiveness * sway,
        "head_y": 0.006 * pitch + expressiveness * 0.006 * drift("head y", 3.7),
        "lean": expressiveness * (0.008 * drift("lean", 6.1) + 0.010 * moving_mean(nod, 4) + 0.006 * (active - 0.5)),
        "sway_x": expressiveness * sway,
        "sway_roll": expressiveness * (0.5 * drift("sway roll", 7.3) + 0.1 * moving_mean(roll, 6)),
        "breath": np.clip(0.30 * tide + 0.65 * np.clip(inhale, 0.0, 1.0), 0.0, 1.0),
    }
