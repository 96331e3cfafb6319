"""`infinitetalk models`: the checkpoints that the infinitetalk engine runs on, listed, fetched and checked."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from model_store.catalogue import COMPONENTS, Component, component, needed
from model_store.weight_sources import open_source
from model_store.weights import Step, WeightCache
from service.cli.app import Json, app
from service.cli.exits import Exit

_PIPED_WIDTH = 200  # columns of the table where no terminal says how many it has

models = typer.Typer(help="List, fetch and check the infinitetalk engine's checkpoints.", no_args_is_help=True)
app.add_typer(models, name="models")

Names = Annotated[
    list[str] | None, typer.Argument(help="Components by name; what the variant needs unless given.", metavar="[COMPONENT]...")
]
VariantName = Annotated[str, typer.Option("--variant", help="base, 8-step or 4-step.")]
People = Annotated[bool, typer.Option("--several", help="The adapter for several speakers instead of one.")]
Quantised = Annotated[str | None, typer.Option("--quantised", help="fp8 or int8: the publishers' 8-bit transformer.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder of the checkpoints; INFINITETALK_MODELS unless given.")]


def _chosen(names: list[str] | None, variant: str, several: bool, quantised: str | None) -> list[Component]:
    if names:
        return [component(name) for name in names]
    return list(needed(variant, people="multi" if several else "single", quantised=quantised))


@models.command("list")
def list_models(cache: Cache = None, json: Json = False) -> None:
    """Every component: what it is, its licence, its size, and whether it is here."""
    store = WeightCache(cache)
    rows = []
    for part in COMPONENTS.values():
        missing = len(store.missing(part))
        state = (
            "here"
            if not missing
            else "absent"
            if missing == len(part.files)
            else f"{len(part.files) - missing}/{len(part.files)} files"
        )
        rows.append((part, state))
    if json:
        typer.echo(
            json_format.dumps(
                [
                    {
                        "name": part.name,
                        "role": part.role,
                        "repository": part.repository,
                        "revision": part.revision,
                        "licence": part.licence,
                        "gigabytes": part.about,
                        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in part.files],
                        "state": state,
                    }
                    for part, state in rows
                ]
            )
        )
        return
    table = Table(box=None, pad_edge=False)
    for title in ("component", "what it is", "from", "licence", "GB", "state"):
        table.add_column(title, justify="right" if title == "GB" else "left", no_wrap=title in ("component", "GB", "state"))
    for part, state in rows:
        table.add_row(part.name, part.role, part.repository, part.licence, f"{part.about:g}" if part.about else "?", state)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


class _Bar:
    """One line on a terminal: the file, its bytes, the speed and the time left; silent when nobody watches."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._index = -1

    def __call__(self, step: Step) -> None:
        if step.index != self._index:
            self._index = step.index
            self._progress.reset(
                self._task, description=f"{step.index + 1}/{step.count} {Path(step.file).name}", total=step.total
            )
        self._progress.update(self._task, completed=step.done)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


@models.command()
def pull(
    names: Names = None,
    source: Annotated[
        str,
        typer.Option(
            "--source", help="hub, a hub's URL, s3://bucket/prefix, or a folder; the last two as <owner>/<repository>/<path>."
        ),
    ] = "hub",
    variant: VariantName = "base",
    several: People = False,
    quantised: Quantised = None,
    cache: Cache = None,
    json: Json = False,
) -> None:
    """Fetch checkpoints into the cache; a pull that was stopped goes on where it stopped."""
    chosen = _chosen(names, variant, several, quantised)
    store = WeightCache(cache)
    with _Bar(quiet=json) as bar:
        store.pull(chosen, open_source(source), bar)
    if json:
        typer.echo(json_format.dumps({"pulled": [part.name for part in chosen], "cache": str(store.folder)}))
    else:
        typer.echo(f"{', '.join(part.name for part in chosen)}: complete in {store.folder}")


@models.command()
def verify(
    names: Names = None,
    variant: VariantName = "base",
    several: People = False,
    quantised: Quantised = None,
    cache: Cache = None,
    json: Json = False,
) -> None:
    """Read the checkpoints again and check sizes, checksums and headers; exits with 6 when something is wrong."""
    chosen = _chosen(names, variant, several, quantised)
    with _Bar(quiet=json) as bar:
        problems = WeightCache(cache).verify(chosen, bar)
    if json:
        typer.echo(json_format.dumps({"problems": [{"code": problem.code, "message": problem.message} for problem in problems]}))
    else:
        for problem in problems:
            typer.echo(problem.message, err=True)
        if not problems:
            typer.echo(f"{', '.join(part.name for part in chosen)}: all files are as they should be")
    if problems:
        raise typer.Exit(Exit.ENGINE)
