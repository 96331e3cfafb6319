"""The application that subcommands join, and the options they share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="infinitetalk",
    help="Make a photo talk: one picture and one voice in, a whole-frame talking video out.",
    epilog="Animate only people who agreed to it, and say that the result is synthetic when you show it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, the result or the error, and nothing else.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - keeps --help fast

        typer.echo(f"infinitetalk {version('infinite-talk')}")
        raise typer.Exit


@app.callback()
def infinitetalk(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an unexpected error.")] = False,
) -> None:
    """Options of every subcommand; `--version` acts where it is read, `--debug` in `service.cli.main`."""
