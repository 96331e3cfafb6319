"""Traces from the request to the worker (W3C Trace Context, OpenTelemetry).

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set; OpenTelemetry's other variables hold, too. A ``traceparent`` that comes with a
request is kept in the job's record and passed on in either case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind

_TRACEPARENT = "traceparent"


def start_tracing(service_name: str) -> None:
    """Send this process's spans to the collector that the environment names, if it names one."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    # The exporter is loaded only where it is used.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def span(
    name: str, traceparent: str | None, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, str] | None = None
) -> Iterator[Span]:
    """A span below the one that ``traceparent`` names, current until the block ends."""
    above = propagate.extract({_TRACEPARENT: traceparent} if traceparent else {})
    tracer = trace.get_tracer("infinite_talk")
    with tracer.start_as_current_span(name, above, kind, dict(attributes or {})) as current:
        yield current


def current_traceparent() -> str | None:
    """The ``traceparent`` of the current span, for whoever goes on with the work."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get(_TRACEPARENT)
