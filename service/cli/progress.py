"""One line on a terminal: the stage, frames done, frames a second and the time left; silent when nobody watches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from model_store.engine import Chunk, Plan
from model_store.engine import Progress as EngineProgress

_STAGES = {
    "load": "loading",
    "prepare": "looking at the face",
    "listen": "listening",
    "perform": "performing",
    "join": "joining",
}


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:4.1f} fps" if speed else "   - fps", style="progress.data.speed")


class ProgressLine:
    """Listens to an engine (as its ``on_progress``) and shows where the work stands, on standard error.

    Args:
        plan: of what is being made.
        quiet: show nothing, as when standard error is not a terminal.
    """

    def __init__(self, plan: Plan, *, quiet: bool) -> None:
        self._plan = plan
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
            _Speed(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(_STAGES["load"], total=plan.frames)

    def __call__(self, progress: EngineProgress) -> None:
        """Take an engine's word; frames count by the part of the chunk that is done."""
        self.stage(progress.stage)
        if progress.stage == "perform" and progress.total:
            first, last = self._plan.span(progress.chunk)
            self._advance(first + (last - first) * progress.done / progress.total)

    def stage(self, name: str) -> None:
        """Show another stage: an engine's, or ``join``."""
        self._progress.update(self._task, description=_STAGES.get(name, name))

    def encoded(self, chunk: Chunk) -> None:
        """A chunk is finished, whatever the engine has said so far."""
        self._advance(chunk.start + len(chunk.frames))

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _advance(self, frames: float) -> None:
        # The engine is a chunk ahead of the encoder: the line never runs backwards.
        self._progress.update(self._task, completed=max(frames, self._progress.tasks[0].completed))
