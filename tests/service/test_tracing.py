"""Traces: one from the request to the worker, sent to a collector over real HTTP."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import Client, Deployment, eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_request_and_its_work_are_one_trace(tmp_path: Path, picture: Path, speech: Path) -> None:
    spans: dict[tuple[str, str], bytes] = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        if span.trace_id.hex() == TRACE:
                            spans[names["service.name"], span.name] = span.parent_span_id
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    deployment = Deployment(tmp_path / "traced", settings)
    try:
        deployment.worker()
        deployment.wait_ready()
        client = Client(deployment.url, picture, speech)
        answer = client.submit(seconds=0.64, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
        client.wait(answer.json()["id"])
        wanted = {("infinitetalk-api", "POST /v1/videos"), ("infinitetalk-worker", "perform video")}
        eventually(lambda: wanted <= set(spans), f"both processes report, not only {set(spans)}")
        assert spans["infinitetalk-worker", "perform video"], "the work lies below the request"
    finally:
        deployment.end()
        server.shutdown()
        server.server_close()
