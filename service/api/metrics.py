"""Counts, times and traces requests by route template, so that no id becomes a label."""

from __future__ import annotations

import time

from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import HTTP_DURATION, HTTP_REQUESTS
from service.tracing import span

UNMATCHED = "unmatched"
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class RequestMetrics:
    """Middleware around everything else; an answer that never began counts as status 499, the client having gone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499
        begun = began

        async def watched(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], time.perf_counter()
            await send(message)

        parent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        try:
            with span(scope["method"], parent, SpanKind.SERVER) as current:
                await self.app(scope, receive, watched)
                route = getattr(scope.get("route"), "path", UNMATCHED)
                current.update_name(f"{scope['method']} {route}")
                current.set_attributes({"http.route": route, "http.response.status_code": status})
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            route = UNMATCHED if route.endswith("{path:path}") else route
            method = scope["method"] if scope["method"] in _METHODS else "other"
            HTTP_REQUESTS.labels(method, route, str(status)).inc()
            HTTP_DURATION.labels(method, route).observe(max(0.0, begun - began))
