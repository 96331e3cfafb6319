"""`infinitetalk doctor`: what this machine can run, and why not the rest; `service.cli.examine` looks."""

from __future__ import annotations

import typer

from service.cli.app import Json, app


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine can run: engines, codecs, GPU, memory, disk, optional parts.

    Exits with 0 when at least one engine can run, with 6 otherwise.
    """
    from service.cli.examine import examine, show  # noqa: PLC0415 - keeps --help fast

    report = examine()
    show(report, as_json=json)
    if not report.can_run:
        from service.cli.exits import Exit  # noqa: PLC0415

        raise typer.Exit(Exit.ENGINE)
