"""What a run shows while it goes: a bar on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

_LINE_SECONDS = 10.0  # between two lines where stderr is no terminal


class TrainingProgress:
    """A bar with the updates made, the time left, the held-out log-likelihood and the energy gap. A context manager."""

    def __init__(self, *, updates: int, per_epoch: int, unit: str, shown: bool = True):
        self._per_epoch, self._unit = per_epoch, unit
        self._said = time.monotonic() - _LINE_SECONDS
        self._bar: Any = None
        self._updates = updates
        self._held_out = self._gap = ""
        if shown and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=updates, epoch="compiling", held_out="", gap="")
        self._shown = shown

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, total: int) -> None:
        """After some updates."""
        if self._bar is not None:
            epoch = f"epoch {done / self._per_epoch:,.0f}"
            self._bar.update(self._task, completed=done, epoch=epoch, held_out=self._held_out, gap=self._gap)

    def record(self, record: dict[str, Any]) -> None:
        """After a look at the held-out data."""
        look = record["validation"]
        self._held_out = "" if look is None else f"held-out {look['log_likelihood']:.2f} nats/{self._unit}"
        gap = record["figures"].get("energy_gap")
        self._gap = "" if gap is None else f"energy gap {gap:+.2f}"
        if self._bar is not None:
            self._bar.update(self._task, held_out=self._held_out, gap=self._gap)
        elif self._shown and (time.monotonic() - self._said > _LINE_SECONDS or record["step"] == self._updates):
            self._said = time.monotonic()
            facts = [f"update {record['step']:,} of {self._updates:,}", self._held_out, self._gap]
            print("  ".join(fact for fact in facts if fact), file=sys.stderr, flush=True)


class Step:
    """A named piece of work: a spinner on a terminal, and elsewhere only what it says as it goes. A context manager."""

    def __init__(self, what: str, *, shown: bool = True):
        self._status: Any = None
        self._shown, self._said = shown, time.monotonic() - _LINE_SECONDS
        if shown and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(what)

    def __enter__(self) -> Step:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """How far the work is: beside the spinner, or a line now and then."""
        if self._status is not None:
            self._status.update(text)
        elif self._shown and time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.fields[epoch]}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[bold]{task.fields[held_out]}[/bold]"),
        TextColumn("[dim]{task.fields[gap]}[/dim]"),
        console=Console(stderr=True),
    )
