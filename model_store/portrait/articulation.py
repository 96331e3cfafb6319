"""From visemes to the mouth's dials: blending of neighbours, loudness, and the contacts that must not be missed.

Vowels and consonants are blended as in Cohen and Massaro (1993): each viseme pulls every dial towards its target with its
own strength, over a window of time before and after it; jaw and lips are separate (JALI, Edwards et al. 2016). Contacts
are not blended: wherever P/B/M or F/V are heard, the lips meet, last and regardless of the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_store.portrait.phonemes import AA, CH, DD, EH, EI, FF, IY, KK, OH, PP, RR, SIL, SS, TH, UW, VISEMES

Floats = NDArray[np.float64]

RATE = 100
"""Steps a second in which the mouth is planned; frames are taken from them at the end."""

REACH_BACK, REACH_AHEAD = 60, 24
"""Steps before and after a moment on which it depends."""

JAW, APART, WIDE, TONGUE = range(4)

_TARGETS = np.zeros((len(VISEMES), 4))
#                jaw  apart  wide  tongue
_TARGETS[SIL] = (0.00, 0.00, 0.00, 0.0)
_TARGETS[PP] = (0.14, 0.20, 0.00, 0.1)
_TARGETS[FF] = (0.10, 0.22, 0.05, 0.1)
_TARGETS[TH] = (0.20, 0.45, 0.05, 0.9)
_TARGETS[DD] = (0.20, 0.50, 0.08, 0.8)
_TARGETS[KK] = (0.27, 0.45, 0.00, 0.1)
_TARGETS[SS] = (0.12, 0.62, 0.25, 0.3)
_TARGETS[CH] = (0.17, 0.60, -0.45, 0.2)
_TARGETS[RR] = (0.24, 0.42, -0.35, 0.2)
_TARGETS[AA] = (0.92, 0.45, 0.05, 0.0)
_TARGETS[EI] = (0.72, 0.52, 0.35, 0.0)
_TARGETS[EH] = (0.40, 0.48, 0.20, 0.1)
_TARGETS[IY] = (0.28, 0.52, 0.60, 0.2)
_TARGETS[OH] = (0.46, 0.32, -0.65, 0.0)
_TARGETS[UW] = (0.24, 0.28, -0.90, 0.0)

_PULL = np.ones((len(VISEMES), 4))
"""How strongly a viseme insists on its targets: vowels on the jaw, rounding on the lips, contacts on little but themselves."""
_PULL[SIL] = (0.35, 0.35, 0.3, 0.3)
_PULL[PP] = (0.5, 0.4, 0.15, 0.3)
_PULL[FF] = (0.8, 0.8, 0.2, 0.3)
_PULL[[TH, DD, KK]] = (0.9, 0.8, 0.25, 1.0)
_PULL[SS] = (1.2, 1.0, 0.5, 1.0)
_PULL[CH] = (1.0, 1.0, 1.0, 1.0)
_PULL[RR] = (0.8, 0.8, 0.8, 0.8)
_PULL[[AA, EI]] = (1.5, 1.0, 0.6, 1.0)
_PULL[[OH, UW]] = (1.3, 1.2, 1.8, 1.0)

_SPREAD = (6, 6, 13, 5)
"""Half lengths, in steps, of the windows over which a dial blends: lips round well before a vowel, the jaw moves quicker."""

LOUD_DB = (-26.0, -2.0)
LOUD_SCALE = (0.68, 1.08)
"""Opening is scaled from the first to the second over that range of loudness."""

_DOUBT = 0.04
"""A viseme less likely than this is not one."""

_LINGER = 48
"""After the last sound the mouth keeps its posture and closes within this many steps."""

_LINGER_SHARE = 0.7
"""How much of a sound's posture lingers."""

_CONTACT_DOUBT = (0.3, 0.6)

_CONTACT_HOLD, _CONTACT_RAMP = 1, 5
"""A contact lasts this many steps more on either side than it is heard, and is prepared and released in that many."""

_TUCK_HOLD, _TUCK_RAMP = 1, 5


def _window(half: int) -> Floats:
    taper = np.hanning(2 * half + 3)[1:-1]
    return np.asarray(taper / taper.sum())


def _reach_out(values: Floats, hold: int, ramp: int) -> Floats:
    """Each value held for ``hold`` steps and eased over ``ramp`` more, on both sides; the greatest wins."""
    steps = np.abs(np.arange(-hold - ramp, hold + ramp + 1)) - hold
    shape = 0.5 + 0.5 * np.cos(np.pi * np.clip(steps / ramp, 0.0, 1.0))
    half = hold + ramp
    around = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="edge"), 2 * half + 1)
    return np.asarray((around * shape).max(axis=1))


def _contact(probability: Floats) -> Floats:
    """How sure a contact is: none below the first bound, certain from the second on."""
    low, high = _CONTACT_DOUBT
    return np.asarray(np.clip((probability - low) / (high - low), 0.0, 1.0))


def _blend(likely: Floats) -> Floats:
    """Dials ``[n, 4]`` of blended targets; silence pulls them to rest, softly after speech, briskly before it."""
    sounds = likely.copy()
    sounds[:, SIL] = 0.0
    fading = np.zeros(2 * _LINGER + 1)
    fading[_LINGER:] = 0.5 + 0.5 * np.cos(np.pi * np.arange(_LINGER + 1) / (_LINGER + 1))
    fading *= 0.3 / fading.sum()
    lingering = _LINGER_SHARE * _TARGETS
    # Lips that met stay together in the pause that follows.
    lingering[PP, [JAW, APART]] = 0.0
    dials = np.empty((len(likely), 4))
    for dial, half in enumerate(_SPREAD):
        window = _window(half)
        weight = sounds * _PULL[:, dial]
        rest = likely[:, SIL] * _PULL[SIL, dial]
        pulled = np.convolve(weight @ _TARGETS[:, dial], window, mode="same")
        pulled += np.convolve(weight @ lingering[:, dial], fading, mode="same")
        # What lingers weighs against silence but is nothing beside the next sound.
        total = np.convolve(weight.sum(axis=1) + 0.12 * rest, window, mode="same") + np.convolve(
            weight.sum(axis=1), fading, mode="same"
        )
        dials[:, dial] = pulled / np.maximum(total, 1e-6)
    return dials


def mouth(visemes: NDArray[np.float32], loudness: Floats) -> dict[str, Floats]:
    """The mouth's dials in steps of 10 ms.

    Args:
        visemes: ``[n, visemes]``, the probability of each in every step.
        loudness: ``[n]``, dB above the level of the speech around.

    Returns:
        ``jaw``, ``apart``, ``press``, ``tuck``, ``wide``, ``tongue``, each ``[n]``; the first :data:`REACH_BACK`
        and the last :data:`REACH_AHEAD` steps are not settled, since they lack neighbours.
    """
    # A few percent of everything are always left over; without them silence is silent.
    likely = np.clip((visemes.astype(np.float64) - _DOUBT) / (1.0 - _DOUBT), 0.0, 1.0)
    dials = _blend(likely)
    loud = np.interp(np.convolve(loudness, _window(9), mode="same"), LOUD_DB, LOUD_SCALE)
    spoken = np.convolve(1.0 - likely[:, SIL], _window(8), mode="same")
    jaw = np.clip(dials[:, JAW] * loud, 0.0, 1.0)
    return {
        "jaw": jaw,
        "apart": np.clip(dials[:, APART] * np.sqrt(loud), 0.0, 1.0),
        "press": _reach_out(_contact(likely[:, PP]), _CONTACT_HOLD, _CONTACT_RAMP),
        "tuck": _reach_out(_contact(likely[:, FF]), _TUCK_HOLD, _TUCK_RAMP),
        "wide": np.clip(dials[:, WIDE] * spoken, -1.0, 1.0),
        "tongue": np.clip(dials[:, TONGUE] * spoken, 0.0, 1.0),
    }
