"""Thin-plate splines: smooth interpolation through control points, and the warp that takes them where they are told to go."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]
"""Positions or displacements in pixels, ``[N, 2]`` as (x, y)."""

_Real = TypeVar("_Real", np.float32, np.float64)


def interpolate(centres: Points, values: NDArray[np.floating], nodes: Points, *, stiffness: float = 1e-6) -> NDArray[np.floating]:
    """The smoothest function that takes ``values`` at ``centres`` (Duchon 1977; Bookstein, PAMI 1989).

    Args:
        centres: ``[N, 2]``, all different, in any unit of the order of 1.
        values: ``[N, C]``.
        nodes: ``[G, 2]`` where to evaluate.
        stiffness: above 0, values are met the less exactly the larger it is.

    Returns:
        ``[G, C]``.
    """
    count = len(centres)
    exact = centres.astype(np.float64)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(exact, exact)
    system[np.arange(count), np.arange(count)] += stiffness
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = exact
    system[count + 1 :, :count] = exact.T
    wanted = np.zeros((count + 3, values.shape[1]))
    wanted[:count] = values
    solution = np.linalg.solve(system, wanted).astype(np.float32)
    return _kernel(nodes, centres) @ solution[:count] + solution[count] + nodes @ solution[count + 1 :]


def backward_warp(targets: Points, sources: Points, nodes: Points, *, unit: float) -> Points:
    """Where each output position must look in the source, so that control points move from ``sources`` to ``targets``.

    Args:
        targets, sources: ``[N, 2]`` the same control points in the output and in the source, in pixels.
        nodes: ``[G, 2]`` output positions asked about, in pixels.
        unit: a typical length in pixels, for conditioning.

    Returns:
        ``[G, 2]`` displacements ``source - output`` at the nodes, in pixels.
    """
    scale = np.float32(1 / unit)
    return interpolate(targets * scale, sources - targets, nodes * scale)


def _kernel(a: NDArray[_Real], b: NDArray[_Real]) -> NDArray[_Real]:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
    np.maximum(squared, 1e-12, out=squared)
    return squared * cv2.log(squared)  # four times as fast as numpy's
