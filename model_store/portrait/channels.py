"""The dials of a performance: what `performance` decides for every frame, and what `render` obeys."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float32]
"""One dial over time, ``[T]``."""


@dataclass(frozen=True)
class Channels:
    """Dials for T consecutive frames, each float32 ``[T]``. All at 0 is the face at rest, mouth closed, eyes open, looking ahead.

    Mouth (independent of the photo's own expression, which the renderer neutralises first):

    * ``jaw``: 0 teeth together .. 1 the widest "aa" of natural speech (lips parted by about half the resting mouth width).
    * ``apart``: lips drawn apart without the jaw, showing the teeth: 0 .. 1 (1 parts them by about 1/6 of the mouth width).
    * ``press``: P/B/M: 0 .. 1; at 1 the lips meet, whatever jaw and apart say. The renderer applies it last.
    * ``tuck``: F/V: 0 .. 1; at 1 the lower lip touches the edge of the upper teeth, which show a little.
    * ``wide``: -1 rounded and protruded ("oo", W) .. 0 .. 1 spread ("ee").
    * ``tongue``: 0 low and hidden .. 1 its tip behind or between the teeth (L, TH, T, D, N).
    * ``smile``: 0 .. 1, corners up and out, cheeks raised; slow.

    Eyes and brows:

    * ``blink``: 0 open .. 1 shut, both eyes.
    * ``gaze_x``, ``gaze_y``: -1 .. 1 of the largest natural glance, to the viewer's right and down.
    * ``brow``: -1 lowered and drawn together .. 0 .. 1 raised.
    * ``squint``: 0 .. 1 lower lids raised, with smiles and effort.

    Head and body (degrees; lengths in face widths; all relative to the photo's own pose):

    * ``yaw`` (+ turns to the viewer's right), ``pitch`` (+ nods down), ``roll`` (+ clockwise for the viewer).
    * ``head_x``, ``head_y``: shift of the head, + to the viewer's right and down.
    * ``lean``: + towards the viewer, as a fraction of size (0.02 is 2% larger).
    * ``sway_x``: shift of the torso, in face widths. ``sway_roll``: roll of the torso, degrees.
    * ``breath``: 0 .. 1, chest and shoulders lifted.
    """

    jaw: Curve
    apart: Curve
    press: Curve
    tuck: Curve
    wide: Curve
    tongue: Curve
    smile: Curve
    blink: Curve
    gaze_x: Curve
    gaze_y: Curve
    brow: Curve
    squint: Curve
    yaw: Curve
    pitch: Curve
    roll: Curve
    head_x: Curve
    head_y: Curve
    lean: Curve
    sway_x: Curve
    sway_roll: Curve
    breath: Curve

    @classmethod
    def rest(cls, frames: int) -> Channels:
        """All dials at 0."""
        return cls(**{f.name: np.zeros(frames, np.float32) for f in fields(cls)})

    def __len__(self) -> int:
        return len(self.jaw)
