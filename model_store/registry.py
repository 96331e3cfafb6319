"""Engines by name: the two built in, and whatever other distributions announce as entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points

from model_store.engine import Engine
from model_store.errors import InfiniteTalkError

BUILT_IN: Mapping[str, str] = {
    "portrait": "model_store.portrait.engine:PortraitEngine",
    "infinitetalk": "model_store.infinitetalk.engine:InfiniteTalkEngine",
}
"""Engine name -> ``module:class``, imported only when the engine is asked for (one of them needs torch)."""

PHOTOS_ONLY = frozenset({"portrait"})
"""Built-in engines that dub no video (``video_not_supported``), known without importing them."""

ENTRY_POINTS = "infinite_talk.engines"


def engine_names() -> list[str]:
    """Names that :func:`create_engine` accepts, the built-in ones first."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - set(BUILT_IN))]


def create_engine(name: str) -> Engine:
    """A new engine by name; ``engine_unknown`` when there is none of that name."""
    target = BUILT_IN.get(name) or next((point.value for point in entry_points(group=ENTRY_POINTS, name=name)), None)
    if target is None:
        raise InfiniteTalkError(
            "engine_unknown", f"There is no engine {name!r}: choose one of {', '.join(engine_names())}.", param="model"
        )
    module, _, attribute = target.partition(":")
    factory: type[Engine] = getattr(import_module(module), attribute)
    return factory()
