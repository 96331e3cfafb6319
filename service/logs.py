"""Log lines: for people or, with INFINITETALK_LOG_FORMAT=json, a JSON object each; with the job's id, never with a secret."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s %(process)d"
_QUIET = ("httpx", "docket", "urllib3", "uvicorn.access")

_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",]+"), r"\1 [hidden]"),
    (re.compile(r"(?i)\b((?:x-amz-(?:signature|credential|security-token)|token|signature|key)=)[^&\s'\"]+"), r"\1[hidden]"),
    (re.compile(r"(://[^/\s:@]*:)[^@\s/]+@"), r"\1[hidden]@"),
    (re.compile(r"\b(itk|whsec)_[\w+/=-]{8,}"), r"\1_[hidden]"),
)
"""What makes a request or an address good for whoever reads it: credentials, presigned links, players' tokens, keys."""

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Every line that is logged in this block, and in what it starts, belongs to this job and tenant."""
    token = _about.set({**(_about.get() or {}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def start_logging(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Send everything that this process logs to standard error, whatever the libraries in it have set up for themselves."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = (
        JsonFormatter(_FIELDS, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"})
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    handler.setFormatter(_Discreet(formatter))
    handler.addFilter(_with_context)
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def hide_secrets(text: str) -> str:
    """The text with what could be used by whoever reads it replaced."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class _Discreet(logging.Formatter):
    """Another formatter's lines, tracebacks included, without secrets."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(self.formatter.format(record))


def _with_context(record: logging.LogRecord) -> bool:
    trace_id = trace.get_current_span().get_span_context().trace_id
    if trace_id:
        record.trace_id = f"{trace_id:032x}"
    for name, value in (_about.get() or {}).items():
        setattr(record, name, value)
    return True
