from __future__ import annotations

import pytest

from tests import engines


@pytest.fixture
def pattern_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the moving-pattern engine, registered beside the built-in ones while a test runs."""
    return engines.register(monkeypatch.setattr)
