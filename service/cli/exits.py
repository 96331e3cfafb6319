"""How a command ends: its exit code, and one line or one JSON object for whatever went wrong."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from enum import IntEnum

from model_store.errors import InfiniteTalkError


class Exit(IntEnum):
    """Exit codes of every subcommand; scripts rely on them."""

    OK = 0
    UNEXPECTED = 1
    """A fault of ours; the details are in the file that the message names."""
    USAGE = 2
    """The command line: an unknown option, a value out of range."""
    PICTURE = 3
    """The picture, or the video to dub, cannot be used."""
    SPEECH = 4
    """The recording cannot be used."""
    OUTPUT = 5
    """The output cannot be written: place, permission, space."""
    ENGINE = 6
    """The engine, or this machine, cannot do it."""
    INTERRUPTED = 130
    """Ctrl-C."""
    TERMINATED = 143
    """SIGTERM or SIGHUP."""


_BY_PARAM = {"image": Exit.PICTURE, "video": Exit.PICTURE, "audio": Exit.SPEECH, "output": Exit.OUTPUT}


class Stopped(BaseException):
    """A signal asked the process to end; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code.name)
        self.code = code


def exit_code(error: InfiniteTalkError) -> Exit:
    """Picture, speech and output by the field at fault; other fields are options; no field is the engine or the machine."""
    if error.param is None:
        return Exit.ENGINE
    return _BY_PARAM.get(error.param, Exit.USAGE)


def say_error(error: InfiniteTalkError, *, as_json: bool) -> None:
    """One line on standard error, or ``{"error": {code, message, param}}`` on standard output."""
    if as_json:
        print(json.dumps({"error": {"code": error.code, "message": error.message, "param": error.param}}), flush=True)
    else:
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr, flush=True)


def unexpected(error: Exception) -> InfiniteTalkError:
    """A fault that nobody foresaw, as a message that names where its traceback was written."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, name = tempfile.mkstemp(prefix="infinitetalk-", suffix=".log")
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        where = f"the details are in {name}"
    except OSError:
        where = "run again with `infinitetalk --debug` for the details"
    return InfiniteTalkError("unexpected", f"Something unforeseen failed ({type(error).__name__}): {where}; please report it.")
