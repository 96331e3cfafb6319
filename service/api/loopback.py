"""As long as there are no keys, only this machine is served, whatever address the server was told to listen on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response
from service.settings import is_loopback
from service.storage import StoreUnavailable

_PROBES = {"/livez", "/readyz"}


class LoopbackOnly:
    """Middleware that refuses connections which did not come to a loopback address, unless ``allow_public`` or there are keys."""

    def __init__(self, app: ASGIApp, allow_public: bool, guarded: Callable[[], Awaitable[bool]]) -> None:
        self.app = app
        self.allow_public = allow_public
        self.guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        if self.allow_public or scope["type"] != "http" or scope["path"] in _PROBES or server is None or is_loopback(server[0]):
            await self.app(scope, receive, send)
            return
        try:
            if await self.guarded():
                await self.app(scope, receive, send)
                return
        except StoreUnavailable as error:
            await error_response(error.code, error.message)(scope, receive, send)
            return
        refusal = error_response(
            "address_public",
            "There are no keys yet, so only this machine is served: use 127.0.0.1, or create a key (`infinitetalk keys create`).",
        )
        await refusal(scope, receive, send)
