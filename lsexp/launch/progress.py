"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lsexp.text import duration, say
from lsexp.training.history import EpochRow

LINE_SECONDS = 10.0


class View:
    """Progress of one run: steps, images/s, loss, val accuracy, time left."""

    def __init__(self, steps: int, *, start: int):
        self.steps = steps
        self.val = ""
        self._last_line = time.monotonic()
        self._speed = 0.0
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
        # Smoothed, so that the time left does not jump.
        self._speed = (
            0.8 * self._speed + 0.2 * images_per_second if self._speed else images_per_second
        )
        left = duration((self.steps - step) * batch_size / max(self._speed, 1e-9))
        words = f"{self._speed:,.0f} images/s  loss {loss:.4f}  {self.val}  {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=words)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            say(f"step {step}/{self.steps}  {words}")

    def epoch(self, row: EpochRow) -> None:
        if row.val_accuracy is not None:
            self.val = f"val accuracy {100 * row.val_accuracy:.2f} %"
