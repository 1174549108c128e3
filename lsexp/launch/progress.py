"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from lsexp.text import duration, plural, say
from lsexp.training.history import EpochRow

LINE_SECONDS = 10.0
PACE_SECONDS = 300.0
"""Over so long the speed is taken that says how long the rest takes: machines have slow times."""
SURE_SECONDS = 3.0
PAUSE_SECONDS = 30.0
"""From then on silence may be a pause, by a stop signal or of the machine."""


class Pace:
    """How fast steps went lately."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque()

    def left(self, steps: float) -> str:
        """How long so many steps that are left will take, for people; "" while nobody can know.

        The clock runs from the first call on, when something has been made: what a process needs
        to start is no measure of its steps.
        """
        now = time.monotonic()
        self._pass_over_a_pause(now, steps)
        marks = self._marks
        if not marks or now - marks[-1][0] >= 1:
            marks.append((now, steps))
        while len(marks) > 2 and now - marks[1][0] >= PACE_SECONDS:
            marks.popleft()
        then, before = marks[0]
        if before <= steps or now - then < SURE_SECONDS:
            return ""
        return duration((now - then) / (before - steps) * steps)

    def _pass_over_a_pause(self, now: float, steps: float) -> None:
        """A time in which nothing was told and hardly a step made: we were stopped ourselves."""
        if len(self._marks) < 2:
            return
        (first, most), (last, least) = self._marks[0], self._marks[-1]
        usual = (most - least) / (last - first)
        if now - last >= PAUSE_SECONDS and least - steps < 0.1 * usual * (now - last):
            self._marks = deque((when + now - last, before) for when, before in self._marks)

    def without(self, steps: float) -> None:
        """So many steps are left no more, though nobody has made them."""
        self._marks = deque((when, before - steps) for when, before in self._marks)


class Shown(Protocol):
    """What a run in training tells of itself; a context."""

    def __enter__(self) -> Shown: ...
    def __exit__(self, *of_an_error: Any) -> None: ...
    def look(self, step: int, loss: float, images_per_second: float, batch_size: int) -> None: ...
    def epoch(self, row: EpochRow) -> None: ...


class View:
    """Progress of one run: steps, images/s, loss, val accuracy, time left."""

    def __init__(self, steps: int, *, start: int):
        self.steps = steps
        self.val = ""
        self._last_line = time.monotonic()
        self._speed = 0.0
        self._pace = Pace()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=steps, completed=start)

    def __enter__(self) -> View:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def look(self, step: int, loss: float, images_per_second: float, batch_size: int) -> None:
        # Smoothed, so that it does not jump.
        self._speed = (
            0.8 * self._speed + 0.2 * images_per_second if self._speed else images_per_second
        )
        left = self._pace.left(self.steps - step)
        told = [
            f"{self._speed:,.0f} images/s",
            f"loss {loss:.4f}",
            self.val,
            left and f"{left} left",
        ]
        words = "  ".join(word for word in told if word)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=words)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            say(f"step {step}/{self.steps}  {words}")

    def epoch(self, row: EpochRow) -> None:
        if row.val_accuracy is not None:
            self.val = f"val accuracy {100 * row.val_accuracy:.2f} %"


class SweepView:
    """Progress of many runs: how many are done, what runs, time left; on stderr."""

    def __init__(self, labels: list[str], steps: list[int], done: list[int]):
        """Args: labels of the runs to train; steps of each; how many of them are done."""
        self.labels = labels
        self.steps = steps
        self.left = [whole - begun for whole, begun in zip(steps, done, strict=True)]
        self.ended = 0
        self._running: dict[int, str] = {}
        self._rows: dict[int, EpochRow] = {}
        self._val: dict[int, str] = {}
        self._pace = Pace()
        self._begun = False
        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._live = Live(console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> SweepView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *of_an_error: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, task: int) -> None:
        self._running[task] = "starting"
        self._show()

    def look(self, task: int, step: int, loss: float, images_per_second: float) -> None:
        self.left[task], self._begun = self.steps[task] - step, True
        row = self._rows.get(task)
        where = f"step {step:,} of {self.steps[task]:,}"
        if row is not None:
            epochs = row.epoch / row.step
            where = f"epoch {epochs * step:.1f} of {epochs * self.steps[task]:.1f}"
        self._running[task] = f"{where}  {images_per_second:,.0f} images/s  loss {loss:.4f}"
        self._show()

    def epoch(self, task: int, row: EpochRow) -> None:
        self._rows[task] = row
        if row.val_accuracy is not None:
            self._val[task] = f"  val accuracy {100 * row.val_accuracy:.2f} %"

    def end(self, task: int, outcome: Any) -> None:
        self._running.pop(task, None)
        if outcome is not None:
            self.left[task], unmade = 0, self.left[task]
            self.ended += 1
            number = f"{self.ended}/{len(self.labels)}"
            if outcome.error is not None:
                self._pace.without(unmade)
                self.say(f"{number}  {self.labels[task]}  failed: {outcome.error}")
            else:
                test = outcome.metrics["test"]
                self.say(
                    f"{number}  {self.labels[task]}  test accuracy {100 * test['accuracy']:.2f} %  "
                    f"ece {test['ece']:.4f}  in {duration(outcome.metrics['seconds'])}"
                )
        self._show()

    def say(self, message: str) -> None:
        if self._live is not None:
            self._live.console.print(message, highlight=False, markup=False, soft_wrap=True)
        else:
            say(message)

    def _show(self) -> None:
        left = self._pace.left(sum(self.left)) if self._begun else ""
        about = f", about {left} left" if left else ""
        head = f"{self.ended} of {plural(len(self.labels), 'run')} done{about}"
        running = [
            f"{self.labels[task]}  {text}{self._val.get(task, '')}"
            for task, text in self._running.items()
        ]
        if self._live is not None:
            self._live.update(Text("\n  ".join([head, *running])))
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            say("; ".join([head, *running]))
