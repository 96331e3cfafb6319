"""Chance without memory: every random number is a function of the seed, a named stream and an index on a fixed grid.

So any moment of a performance can be made on its own, in any process, and joins what comes before and after it.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Chance:
    """Random numbers of one seed.

    Args:
        seed: 0 .. 2**32 - 1; every stream follows from it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)

    def uniform(self, stream: str, index: NDArray[np.int64]) -> Floats:
        """A number in 0..1 for each integer index (any sign) of a stream, same shape as ``index``."""
        key = np.array([(int(self._seed) << 32) | zlib.crc32(stream.encode())], np.uint64)
        with np.errstate(over="ignore"):
            mixed = _mix(_mix(key * _INCREMENT + _INCREMENT) + index.astype(np.int64).view(np.uint64) * _INCREMENT)
        return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2.0**53)

    def drift(self, stream: str, seconds: Floats, period: float) -> Floats:
        """Smooth noise over time, mean 0, standard deviation about 1, within about ±2.2, turning about every ``period`` seconds.

        A cubic B-spline through random knots: continuous in speed and acceleration.
        """
        position = seconds / period + 0.37 * float(self.uniform(stream, np.array([-(1 << 40)]))[0])
        knot = np.floor(position).astype(np.int64)
        u = position - knot
        weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
        total = np.zeros_like(position)
        for offset, weight in enumerate(weights):
            total += weight / 6.0 * (2.0 * self.uniform(stream, knot + offset) - 1.0)
        # The spline averages its knots: uniform knots (std 0.577) come out with std 0.40.
        return total / 0.40
