from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session")
def judge() -> None:
    """Skips what needs dlib's models where they are not installed."""
    for module in ("dlib", "face_recognition_models"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[quality]' (models for non-commercial use)")
