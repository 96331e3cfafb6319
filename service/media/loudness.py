"""Programme loudness after ITU-R BS.1770-4, measured while the sound streams by."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray

_HOP_SECONDS = 0.1
_HOPS_A_BLOCK = 4
_OFFSET = -0.691
_ABSOLUTE_GATE = -70.0
_RELATIVE_GATE = -10.0

# BS.1770's two filters at 48 kHz (its tables 1 and 2): numerator and denominator.
_SHELF = ([1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585])
_HIGH_PASS = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])
_FILTER_RATE = 48_000


class LoudnessMeter:
    """Gated loudness of one channel.

    The K-weighting is applied to the spectrum of each 100 ms instead of to its samples: by Parseval's theorem the energies
    are the same but for the edges of a hop, and any sample rate needs no filters of its own. Held are 8 bytes for each 100 ms.

    Args:
        rate: sample rate in Hz.
    """

    def __init__(self, rate: int) -> None:
        self._hop = round(rate * _HOP_SECONDS)
        self._weights = _k_weights(self._hop, rate)
        self._rest: NDArray[np.float32] = np.zeros(0, np.float32)
        self._energies = array("d")

    def add(self, samples: NDArray[np.float32]) -> None:
        """Listen to the next samples, float32 ``[n]``."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // self._hop * self._hop
        self._rest = samples[whole:]
        self._energies.extend(self._mean_squares(samples[:whole].reshape(-1, self._hop)))

    def loudness(self) -> float:
        """Integrated loudness in LUFS of all that was heard; ``-inf`` when nothing exceeds the gate of -70 LUFS."""
        energies = np.array(self._energies)
        if not len(energies):  # shorter than one hop: as if the rest were silence
            rest = np.zeros((1, self._hop), np.float32)
            rest[0, : len(self._rest)] = self._rest
            energies = self._mean_squares(rest)
        blocks = energies
        if len(energies) >= _HOPS_A_BLOCK:
            blocks = np.convolve(energies, np.full(_HOPS_A_BLOCK, 1 / _HOPS_A_BLOCK), "valid")
        blocks = blocks[_lufs(blocks) > _ABSOLUTE_GATE]
        if not len(blocks):
            return -math.inf
        gate = float(_lufs(np.array([blocks.mean()]))[0]) + _RELATIVE_GATE
        return float(_lufs(np.array([blocks[_lufs(blocks) > gate].mean()]))[0])

    def _mean_squares(self, hops: NDArray[np.float32]) -> NDArray[np.float64]:
        spectrum = np.fft.rfft(hops, axis=1)
        return (np.square(np.abs(spectrum)) @ self._weights).astype(np.float64)


def _lufs(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    return _OFFSET + 10 * np.log10(np.maximum(energies, 1e-30))


def _k_weights(hop: int, rate: int) -> NDArray[np.float64]:
    """Weights ``[hop // 2 + 1]`` that turn a hop's power spectrum into its K-weighted mean square."""
    frequencies = np.fft.rfftfreq(hop, 1 / rate)
    z = np.exp(-2j * np.pi * np.minimum(frequencies, _FILTER_RATE / 2) / _FILTER_RATE)
    response = np.ones_like(z)
    for numerator, denominator in (_SHELF, _HIGH_PASS):
        response *= np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
    both_sides = np.full(len(frequencies), 2.0)
    both_sides[0] = 1
    if hop % 2 == 0:
        both_sides[-1] = 1
    return np.square(np.abs(response)) * both_sides / hop**2
