"""The loop around a member's step: epochs, validation, best val, checkpoints, divergence.

The host looks at the device every quarter of a second or so, and at the end of each epoch. When
it looks does not change what is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from lsexp.config import StepsConfig
from lsexp.data.batches import Images
from lsexp.training.evaluate import accuracy_and_nll, logits_of
from lsexp.training.history import EpochRow
from lsexp.training.member import Member, step
from lsexp.training.optimizer import rate

LOOK_SECONDS = 0.25
LEAST_CHECKPOINT_SECONDS = 1.0
CHECKPOINT_SHARE = 0.02
"""Of the time, that checkpoints at the end of passes may take."""


class Diverged(Exception):
    """The loss or the outputs stopped being finite at `step` (counted from 1)."""

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step


@dataclass
class Progress:
    """What the loop carries beside the member; all of it is in a checkpoint.

    best: the row with the highest val accuracy (the first of equals), and the weights there.
    """

    history: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None
    best_weights: dict[str, torch.Tensor] | None = None
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "history": [asdict(row) for row in self.history],
            "best": None if self.best is None else asdict(self.best),
            "best_weights": self.best_weights,
            "seconds": self.seconds,
        }

    @staticmethod
    def load(state: dict[str, Any]) -> Progress:
        return Progress(
            [EpochRow(**row) for row in state["history"]],
            None if state["best"] is None else EpochRow(**state["best"]),
            state["best_weights"],
            state["seconds"],
        )


class Watcher(Protocol):
    """What the loop tells and asks while it trains."""

    def look(self, step: int, loss: float, images_per_second: float) -> None:
        """Some steps were done; called about four times a second."""

    def epoch(self, row: EpochRow) -> None:
        """A row of the history is complete."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep this; `resume` takes it."""

    def snapshot(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Keep these weights."""

    def stopping(self) -> bool:
        """Whether to stop here, after a checkpoint."""


def take_steps(member: Member, count: int) -> None:
    for _ in range(count):
        step(member)


def row_end(member: Member, after: int) -> int:
    """The first step greater than `after` where a pass ends, or the last step.

    Pass e ends with the batch that takes in its last image.
    """
    images, batch = len(member.batches), member.config.train.batch_size
    passes = after * batch // images + 1
    end = math.ceil(passes * images / batch)
    return min(end if end > after else after + 1, member.config.train.steps)


def evaluation_is_due(config: StepsConfig, before: int, after: int) -> bool:
    """Whether to evaluate at the end of a pass, at step `after`, the last having ended at `before`.

    `evals` are spread evenly over the steps: one at the first end of a pass behind each.

    >>> tens = StepsConfig(steps=100, evals=4)
    >>> [step for step in range(10, 101, 10) if evaluation_is_due(tens, step - 10, step)]
    [30, 50, 80, 100]
    """
    if config.evals is None or after == config.steps:
        return True
    return after * config.evals // config.steps > before * config.evals // config.steps


def train(
    member: Member,
    val: Images,
    watcher: Watcher,
    progress: Progress,
    *,
    checkpoint_seconds: float,
    snapshots: Sequence[int] = (),
    advance: Callable[[int], None] | None = None,
) -> bool:
    """Train `member` from where it stands to its last step.

    Args:
        val: may be empty: then there is no best val.
        progress: continued in place.
        checkpoint_seconds: a checkpoint at the first look after this long.
        snapshots: steps after which the watcher is to keep the weights, ascending.
        advance: takes so many steps with the member (None: one `step` after the other).

    Returns:
        True at the end, False where the watcher wanted to stop (a checkpoint was made).

    Raises:
        Diverged: a loss, or a logit on val, is not finite.
    """
    steps, batch = member.config.train.steps, member.config.train.batch_size
    started = time.monotonic() - progress.seconds
    saved, least = time.monotonic(), LEAST_CHECKPOINT_SECONDS
    chunk, looked_step = 1, member.step
    advance = advance or partial(take_steps, member)
    looked = time.monotonic()

    def state() -> dict[str, Any]:
        progress.seconds = time.monotonic() - started
        return {"member": member.state(), "progress": progress.state()}

    if member.step == 0 and 0 in snapshots:
        watcher.snapshot(0, member.model.state_dict())
    while member.step < steps:
        end = row_end(member, member.step)
        stop = min([end, *(at for at in snapshots if at > member.step)])
        advance(min(chunk, stop - member.step))
        losses = member.losses_S[: member.since_reset].cpu()
        if not bool(losses.isfinite().all()):
            first = int((~losses.isfinite()).nonzero()[0])
            raise Diverged(member.step - member.since_reset + first + 1, "the training loss")
        if member.step in snapshots:  # before any checkpoint that lies behind it
            watcher.snapshot(member.step, member.model.state_dict())

        now = time.monotonic()
        steps_per_second = (member.step - looked_step) / max(now - looked, 1e-9)
        chunk = max(1, round(steps_per_second * LOOK_SECONDS))
        watcher.look(member.step, float(losses[-1]), steps_per_second * batch)

        at_end = member.step == end
        if at_end:
            _finish_row(member, val, progress, losses, started)
            watcher.epoch(progress.history[-1])
        stopping = watcher.stopping()
        now = time.monotonic()
        wait = min(checkpoint_seconds, least) if at_end else checkpoint_seconds
        if stopping or (now - saved >= wait and member.step < steps):
            watcher.checkpoint(state())
            saved = time.monotonic()
            least = max(LEAST_CHECKPOINT_SECONDS, (saved - now) / CHECKPOINT_SHARE)
        if stopping and member.step < steps:
            return False
        looked, looked_step = time.monotonic(), member.step
    progress.seconds = time.monotonic() - started
    return True


def _finish_row(
    member: Member,
    val: Images,
    progress: Progress,
    losses: torch.Tensor,
    started: float,
) -> None:
    batch = member.config.train.batch_size
    accuracy = nll = None
    before = progress.history[-1].step if progress.history else 0
    if len(val) and evaluation_is_due(member.config.train, before, member.step):
        logits = logits_of(member.model, member.preprocess, val)
        if not bool(logits.isfinite().all()):
            raise Diverged(member.step, "an output on val")
        accuracy, nll = accuracy_and_nll(logits, val.labels_N)
    row = EpochRow(
        epoch=round(member.step * batch / len(member.batches), 4),
        step=member.step,
        lr=rate(member.config.optim, member.step - 1, member.config.train.steps),
        train_loss=losses.double().mean().item(),
        train_accuracy=int(member.correct) / (member.since_reset * batch),
        val_accuracy=accuracy,
        val_nll=nll,
        seconds=round(time.monotonic() - started, 3),
    )
    progress.history.append(row)
    best = progress.best
    if accuracy is not None and (best is None or accuracy > (best.val_accuracy or 0.0)):
        progress.best = row
        weights = member.model.state_dict()
        progress.best_weights = {k: v.detach().to("cpu", copy=True) for k, v in weights.items()}
    member.reset_sums()
