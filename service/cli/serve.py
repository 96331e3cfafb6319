"""``infinitetalk serve`` and ``infinitetalk worker``: the service on this machine, and one more pair of hands for it."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

from model_store.errors import InfiniteTalkError
from service.cli.app import app

_NEEDED = ("bentoml", "docket", "pydantic_settings", "minio")


@app.command()
def serve() -> None:
    """Serve the API on this machine, with a worker and, unless INFINITETALK_REDIS_URL names one, a queue of its own."""
    require_service()
    from service import embedded  # noqa: PLC0415 - the command line starts without the service's dependencies
    from service.logs import start_logging  # noqa: PLC0415
    from service.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    start_logging(settings.log_format)
    embedded.serve(settings)


@app.command()
def worker() -> None:
    """Perform jobs from the shared queue, or from that of an `infinitetalk serve` on this machine, until SIGTERM."""
    require_service()
    from service.run import EngineUnusableError  # noqa: PLC0415
    from service.settings import load_settings  # noqa: PLC0415
    from service.worker import work  # noqa: PLC0415

    try:
        asyncio.run(work(load_settings()))
    except EngineUnusableError as error:
        raise InfiniteTalkError("engine_unusable", f"{error}; its own messages are above: install what it misses.") from None


def require_service() -> None:
    """Set up what every command of the service shares; ``service_not_installed`` if its parts are missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InfiniteTalkError(
            "service_not_installed",
            f"The service's parts are not installed ({', '.join(missing)}): pip install 'infinite-talk[service]'.",
        )
