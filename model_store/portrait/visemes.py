"""From what is heard to what is seen: a small network that times the visemes.

The recogniser knows well *which* sounds were spoken but marks each with a single spike, up to 0.1 s late; the spectrum shows
*when* lips close and open but not whose closure it is. A dilated convolution over both (receptive field 0.58 s) says for every
10 ms how likely each viseme is. How it was trained is told in ``models/VISEMES.md``.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from model_store.portrait.phonemes import VISEMES
from model_store.portrait.speech import Heard

_DILATIONS = {"b": 1, "c": 2, "d": 4}


@cache
def _weights() -> dict[str, NDArray[np.float32]]:
    with files("model_store.portrait").joinpath("models/visemes.npz").open("rb") as file, np.load(file) as stored:
        return {name: stored[name].astype(np.float32) for name in stored.files}


def features(heard: Heard) -> NDArray[np.float32]:
    """What the network looks at, ``[T, inputs]``: posteriors, their logarithms, and the spectra, all of size about one."""
    posteriors = heard.posteriors
    spectrum = np.clip(heard.mels / 20.0, -3.5, 1.0).reshape(len(posteriors), -1)
    return np.concatenate([posteriors, np.log(posteriors + 1e-4) / 9.2 + 1.0, spectrum], axis=1)


def _convolve(
    x: NDArray[np.float32], kernel: NDArray[np.float32], bias: NDArray[np.float32], dilation: int
) -> NDArray[np.float32]:
    """A dilated convolution that keeps the length: ``x`` ``[T, in]``, ``kernel`` ``[taps, in, out]``."""
    taps = len(kernel)
    half = dilation * (taps // 2)
    padded = np.pad(x, ((half, half), (0, 0)))
    total = np.tile(bias, (len(x), 1))
    for tap in range(taps):
        total += padded[tap * dilation : tap * dilation + len(x)] @ kernel[tap]
    return total


def see(heard: Heard) -> NDArray[np.float32]:
    """Probability of each viseme, ``[2 T, visemes]``, one row for every 10 ms of the ``T`` hops heard."""
    w = _weights()
    x = (features(heard) - w["mean"]) / w["deviation"]
    x = np.maximum(x @ w["a.kernel"][0] + w["a.bias"], 0.0)
    for layer, dilation in _DILATIONS.items():
        x = x + np.maximum(_convolve(x, w[f"{layer}.kernel"], w[f"{layer}.bias"], dilation), 0.0)
    logits = (x @ w["o.kernel"][0] + w["o.bias"]).reshape(-1, len(VISEMES))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float32)
