"""Addresses with control characters: routers do not match them, and whoever sends one shall get an error of the usual shape."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import error_response


class PrintablePaths:
    """Middleware that answers 404 (``route_not_found``) for addresses that no route can have."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(character < " " or character == "\x7f" for character in scope["path"]):
            refusal = error_response("route_not_found", "The address has control characters: remove them, or see /docs.")
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)
