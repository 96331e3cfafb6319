"""The peer: what BentoML answers when there is nothing to do."""

from __future__ import annotations

import bentoml


@bentoml.service(name="hello", workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Hello:
    """One endpoint."""

    @bentoml.api  # type: ignore[untyped-decorator] # as BentoML ships it
    def hello(self) -> str:
        """A word."""
        return "hello"
