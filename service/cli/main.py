"""The entry point: gathers the subcommands, and turns whatever ends one into an exit code (`service.cli.exits`)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from model_store.errors import InfiniteTalkError
from service.cli import animate, doctor, evaluate, keys, models, serve  # noqa: F401 - each joins the app; a new subcommand is one more name here
from service.cli.app import app
from service.cli.exits import Exit, Stopped, exit_code, say_error, unexpected


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; never returns, never shows a traceback unless ``--debug`` asks for it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    debug = "--debug" in words
    if debug:  # understood before and after the subcommand
        words = ["--debug", *(word for word in words if word != "--debug")]
    for number, code in ((signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED), (signal.SIGHUP, Exit.TERMINATED)):
        _stop_on(number, code)
    try:
        sys.exit(app(words, prog_name="infinitetalk", standalone_mode=False) or Exit.OK)
    except InfiniteTalkError as error:
        say_error(error, as_json=as_json)
        sys.exit(exit_code(error))
    except Stopped as stopped:
        say_error(InfiniteTalkError("interrupted", "Stopped; nothing was left behind."), as_json=as_json)
        sys.exit(stopped.code)
    except MemoryError:
        say_error(
            InfiniteTalkError("out_of_memory", "This machine has too little memory: close programs, or choose a smaller frame."),
            as_json=as_json,
        )
        sys.exit(Exit.ENGINE)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us is gone; the interpreter would complain at exit
        sys.exit(Exit.OUTPUT)
    except Exception as error:
        say = getattr(error, "format_message", None)  # typer's own errors, whichever click it carries
        if say is not None:
            problem = InfiniteTalkError("usage", f"{say().rstrip('.')}: see `infinitetalk --help`.")
            say_error(problem, as_json=as_json)
            sys.exit(Exit.USAGE)
        if debug:
            raise
        say_error(unexpected(error), as_json=as_json)
        sys.exit(Exit.UNEXPECTED)


def _stop_on(number: signal.Signals, code: Exit) -> None:
    def stop(received: int, frame: FrameType | None) -> None:
        signal.signal(received, signal.SIG_DFL)  # the second one ends the process at once
        raise Stopped(code)

    if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
        signal.signal(number, stop)


if __name__ == "__main__":
    main()
