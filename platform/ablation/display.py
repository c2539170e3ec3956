"""What a person sees while a study runs: bars on a terminal, a line per happening elsewhere."""

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from ablation.events import Event
from ablation.plain import plain
from ablation.plan import Plan

__all__ = ["Display", "displaying"]

_LINE_EVERY_S = 15.0
_ENDS = ("finished", "failed", "found", "retried", "interrupted", "busy")
_WORDS = {
    "begun": "began",
    "resumed": "goes on after step {step} of {total}",
    "progress": "step {step} of {total}{metrics}",
    "noticed": "saves: {message}",
    "paused": "waits: {message}",
    "damaged": "{message}",
    "retried": "failed at step {step} and is tried again: {message}",
    "busy": "left to others: {message}",
    "finished": "finished{metrics}",
    "failed": "FAILED: {message}",
    "interrupted": "interrupted at step {step} of {total}",
    "found": "{message}",
    "skipped": "{message}",
}


class Display:
    """An observer that shows events of a plan's stages on a console."""

    def __init__(
        self, plan: Plan, done: Iterable[str], console: Console, bars: Progress | None
    ) -> None:
        self._titles = {stage.digest: cell.title for cell in reversed(plan.cells) for stage in cell}
        self._ended, self._all = {*done}, len(plan.stages)
        self._console, self._bars = console, bars
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._last: dict[str, str] = {}
        if bars:
            self._tasks[""] = bars.add_task(
                "all stages", total=self._all, completed=len(self._ended)
            )

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.kind in ("finished", "failed", "found"):
            self._ended.add(event.digest)
        if self._bars:
            self._draw(event, self._bars)
        if event.kind == "progress":
            quiet = time.monotonic() - self._said.get(event.digest, 0.0) < _LINE_EVERY_S
            if self._bars or quiet:
                return
        elif event.kind == "committed" or (self._bars and event.kind == "begun"):
            return
        self._said[event.digest] = time.monotonic()
        words = _WORDS[event.kind].format(
            step=event.step, total=event.total, message=event.message, metrics=_show(event.metrics)
        )
        if self._last.get(event.digest) == words:  # such as a stage that others are at
            return
        self._last[event.digest] = words
        count, title = f"{len(self._ended)}/{self._all}", self._titles[event.digest]
        line = f"[{count}] {title}: {event.name} {words}"
        self._console.print(plain(line), markup=False, highlight=False, soft_wrap=True)

    def _draw(self, event: Event, bars: Progress) -> None:
        bars.update(self._tasks[""], completed=len(self._ended))
        if event.kind in ("begun", "resumed", "progress"):
            if event.digest not in self._tasks:
                title = f"{self._titles[event.digest]}: {event.name}"
                self._tasks[event.digest] = bars.add_task(plain(title), total=event.total or None)
            bars.update(self._tasks[event.digest], total=event.total or None, completed=event.step)
        elif event.kind in _ENDS and event.digest in self._tasks:
            bars.remove_task(self._tasks.pop(event.digest))


@contextmanager
def displaying(plan: Plan, done: Iterable[str], console: Console) -> Generator[Display]:
    """A display for the time that a study runs; `done` are the stages that finished before."""
    if not console.is_terminal:
        yield Display(plan, done, console, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Display(plan, done, console, bars)


def _show(metrics: Mapping[str, float]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in list(metrics.items())[:3]]
    return f" ({', '.join(shown)})" if shown else ""
