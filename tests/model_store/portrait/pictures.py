"""The pictures that the portrait engine's tests look at; data/SOURCES.md says where they come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

_DATA = Path(__file__).parent / "data"
ASTRONAUT = str(Path(__file__).parents[3] / "examples" / "astronaut.png")
MONA_LISA = str(_DATA / "mona_lisa.jpg")
LADY_AGNEW = str(_DATA / "lady_agnew.jpg")


@cache
def read(path: str) -> NDArray[np.uint8]:
    """RGB."""
    picture = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    picture.flags.writeable = False
    return picture
