"""The history of a run: what history.csv holds. Free of torch, for readers in a hurry."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass
class EpochRow:
    """A row, written where a pass over the training images ends, and at the end.

    epoch: passes made; lr: rate of the last update; train_loss: mean of the run's loss before
    loss.scale (smoothed cross-entropy in nats, or what matches a teacher) and train_accuracy over
    the row's batches, augmented, while training;
    val_*: on val, None without one and between evaluations (train.evals); seconds: of training so
    far, evaluation included.
    """

    epoch: float
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float | None
    val_nll: float | None
    seconds: float


def history_text(rows: Sequence[EpochRow]) -> str:
    """history.csv; empty cells where there is no val."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(EpochRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
