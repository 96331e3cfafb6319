"""Objects on their way to a client: from the folder with ranges, or from S3 by a link."""

from __future__ import annotations

import asyncio

from fastapi import Response
from fastapi.responses import FileResponse, RedirectResponse

from service.api.context import Context

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private"}


async def deliver(service: Context, key: str, media_type: str, filename: str | None = None) -> Response:
    """Answer with an object: a redirect to the store where it has links, else the file itself, in ranges if asked.

    Args:
        service: whose store.
        key: of an object that is there.
        media_type: what it is.
        filename: to be saved as; None is shown in place.
    """
    link = await asyncio.to_thread(service.store.link, key, service.settings.presign_seconds, filename)
    if link is not None:
        return RedirectResponse(link, 307, headers={"Cache-Control": "no-store"})
    path = service.store.path(key)
    if path is None:
        raise RuntimeError("a store with neither links nor files")
    return FileResponse(path, media_type=media_type, filename=filename, headers=_HEADERS)
