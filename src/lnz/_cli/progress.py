"""Progress on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lnz._graphs.contraction_plan import size_text

_LINE_SECONDS = 10.0  # between two lines where stderr is not a terminal
_TELLING = 0.01  # of the work before the time left can be told
_FIRST_SECONDS = 0.4  # before a step is said
_BAR_SECONDS = 0.5  # of work before a bar is drawn


class TrainingProgress:
    """A bar with updates, time left, held-out log-likelihood and energy gap. A context manager."""

    def __init__(self, *, updates: int, per_epoch: int, unit: str, shown: bool = True):
        self._per_epoch, self._unit = per_epoch, unit
        self._said = time.monotonic() - _LINE_SECONDS
        self._bar: Any = None
        self._updates = updates
        self._first: tuple[float, int] | None = None  # the time and the updates after compilation
        self._held_out = self._gap = ""
        if shown and sys.stderr.isatty():
            self._bar = _display("left", "held_out", "gap", stays=True)
            self._task = self._bar.add_task("compiling", total=updates, left="", held_out="", gap="")
        self._shown = shown

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        elif self._shown:
            _line(f"compiling, then {self._updates:,} updates")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, total: int) -> None:
        """After some updates."""
        if self._bar is not None:
            if self._first is None:
                self._first = time.monotonic(), done
            epoch, left = f"epoch {done / self._per_epoch:,.0f}", _left(*self._first, done, total)
            facts = {"left": left, "held_out": self._held_out, "gap": self._gap}
            self._bar.update(self._task, description=epoch, completed=done, **facts)

    def record(self, record: dict[str, Any]) -> None:
        """After an evaluation on the held-out data."""
        found = record["validation"]
        self._held_out = (
            ""
            if found is None
            else f"held-out {'≥ ' if found.get('is_limit') else ''}{found['log_likelihood']:.2f} nats/{self._unit}"
        )
        gap = record["figures"].get("energy_gap")
        self._gap = "" if gap is None else f"energy gap {gap:+.2f}"
        if self._bar is not None:
            self._bar.update(self._task, held_out=self._held_out, gap=self._gap)
        elif self._shown and (time.monotonic() - self._said > _LINE_SECONDS or record["step"] == self._updates):
            self._said = time.monotonic()
            facts = [f"update {record['step']:,} of {self._updates:,}", self._held_out, self._gap]
            _line("  ".join(fact for fact in facts if fact))

    def alarm(self, words: str) -> None:
        """An alarm of the monitor, printed at once above the bar."""
        if not self._shown:
            return
        if self._bar is None:
            _line(f"alarm: {words}")
        else:
            self._bar.console.print(f"[bold yellow]alarm[/bold yellow]: {words}", highlight=False)


class Step:
    """A step of the work, said where it takes longer than a moment: a spinner with the time on a terminal, elsewhere a line, and the lines of `say`.

    A context manager.
    """

    def __init__(self, what: str, *, shown: bool = True):
        self._text, self._shown = what, shown
        self._spinner: Any = None
        self._line_at = 0.0
        self._lock = threading.RLock()
        self._timer = threading.Timer(_FIRST_SECONDS, self._begin)
        self._timer.daemon = True

    def __enter__(self) -> Step:
        if self._shown:
            self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._timer.cancel()
            self._shown = False
            if self._spinner is not None:
                self._spinner.stop()

    def _begin(self) -> None:
        with self._lock:
            if not self._shown:
                return
            if sys.stderr.isatty():
                self._spinner = _display(bar=False)
                self._task = self._spinner.add_task(self._text)
                self._spinner.start()
            else:
                self._line_at = time.monotonic()
                _line(self._text)

    def say_runs(self, quantity: str) -> Callable[[int, Any], None]:
        """What says the interval so far after each of several runs, given their number and the `Estimate` of a quantity."""

        def tell(runs: int, so_far: Any) -> None:
            near = f"{quantity} between {float(so_far.lower):.2f} and {float(so_far.upper):.2f}"
            self.say(f"{runs:,} run{'s' if runs > 1 else ''}: {near}")

        return tell

    def say(self, text: str) -> None:
        """Report progress: beside the spinner, or as a line at most every ten seconds."""
        with self._lock:
            self._text = text
            if self._spinner is not None:
                self._spinner.update(self._task, description=text)
            elif self._shown and not sys.stderr.isatty() and time.monotonic() - self._line_at > _LINE_SECONDS:
                self._line_at = time.monotonic()
                _line(text)


class Work:
    """Progress of long exact sums: stage, share of the predicted work, memory and time left. A context manager.

    An instance is what `lnz._graphs.solver.Solver` takes as `progress`. On a terminal a bar, at once where the work will take long, otherwise
    after half a second; a line now and then elsewhere.

    Args:
        what: is said once, before the first bar or line.
        seconds: a prediction for the whole.
    """

    def __init__(self, what: str = "", *, seconds: float = 0.0, shown: bool = True):
        self._what = what
        self._long = seconds > _BAR_SECONDS
        self._shown = shown
        self._bar: Any = None
        self._stage, self._began = "", 0.0
        self._next = 0.0  # when to draw again

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, stage: str, share: float) -> None:
        """After a step of the work: the stage, and its share from 0 to 1."""
        now = time.monotonic()
        on_terminal = self._shown and sys.stderr.isatty()
        if stage != self._stage:
            self._stage, self._began = stage, now
            # A single step may take minutes, in which nothing can be drawn for the first time.
            self._next = now + (_LINE_SECONDS if not on_terminal else 0 if self._long else _BAR_SECONDS)
        if not self._shown or now < self._next:
            return
        left = _left(self._began, 0.0, share, 1.0)
        facts = {"memory": _memory(), "left": left}
        if on_terminal:
            self._next = now + 0.1
            if self._bar is None:
                self._bar = _display("memory", "left")
                self._task = self._bar.add_task(stage, total=1.0, **facts)
                self._bar.start()
                self._say(self._bar.console.print)
            self._bar.update(self._task, description=stage, completed=share, **facts)
        else:
            self._next = now + _LINE_SECONDS
            self._say(_line)
            _line(f"{stage}: {100 * share:.0f} %  {facts['memory']}  {left}")

    def _say(self, say: Any) -> None:
        if self._what:
            say(self._what)
        self._what = ""


def _line(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _memory() -> str:
    """The memory that this process holds."""
    try:
        with open("/proc/self/statm") as file:
            return size_text(float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):  # no Linux
        return ""


def _left(began: float, from_: float, done: float, total: float) -> str:
    """The time left, where it can be told: the pace since `began`, when `from_` was done."""
    if done - from_ <= _TELLING * total:
        return ""
    return f"{_duration((time.monotonic() - began) * (total - done) / (done - from_))} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _display(*fields: str, bar: bool = True, stays: bool = False) -> Any:
    """A line of rich's on stderr: a spinner, what is done, a bar with its share, the fields of the task, and the time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    columns += [BarColumn(bar_width=24), TaskProgressColumn()] if bar else []
    columns += [*(TextColumn(f"{{task.fields[{name}]}}") for name in fields), TimeElapsedColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=not stays)
