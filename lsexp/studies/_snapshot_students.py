"""Students of every snapshot of a teacher: do those learn more whose teacher keeps more?

The paper explains Figure 5 by Figure 6: what smoothing erases of the example within its class is
what students would have learnt from (section 4). Here that is put to the test, as a part of the
study `information`. Shape letters: S seeds, M snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lsexp.analysis.statistics import over_seeds, partial_rank_correlation
from lsexp.config import DistillationConfig, LossConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.figures import COLORS, grid, logarithmic, plain, series_style
from lsexp.measure import Outputs, Question
from lsexp.studies import (
    Claim,
    Finding,
    Result,
    Row,
    Run,
    Trained,
    decide,
    interval_row,
    mean_cell,
    untested,
)
from lsexp.training.snapshots import snapshot_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsexp.studies.information import Curve

RECIPES = {
    "digits_shifted": "digits_distill",
    "mnist_mlp": "mnist_distill",
    "cifar10_resnet56": "cifar10_distill",
    "cifar10_resnet56_thin": "cifar10_distill_thin",
}
"""Teachers' recipe to that of their students; others are taught to networks of their own kind."""
TEACHER, STUDENT, BASELINE = "teacher", "student", "baseline"
FOLLOW = Claim(
    "students-follow-information",
    "of snapshots that are equally accurate, those teach better that keep more within a class",
    "section 4",
    "partial rank correlation, over the snapshots at eps 0 and 0.1 of a seed, of students' test "
    "accuracy with I(X;Y|C), given the snapshots' own test accuracy",
    "above",
    disputed_by="Shen et al. 2021 (2104.00676); Chandrasegaran et al. 2022 (2206.14532)",
)
"""The paper says so of ends of training; nobody has published it of the way there."""


def runs(teachers: Sequence[Run], students: TrainConfig, snapshots: int) -> list[Run]:
    """Teachers, each with a student of every snapshot and of its end; and for each seed one that
    has hard labels instead.

    Raises:
        UserError: the teachers' length is told in epochs, so that their steps are not known yet.
    """
    length = teachers[0].config.train
    if length.epochs is not None:
        raise UserError(
            f"train.epochs={length.epochs:g}: with students=true the snapshots must be known "
            f"beforehand; give train.steps="
        )
    own = students.loss
    protocol = own if isinstance(own, DistillationConfig) else DistillationConfig(scale=own.scale)
    labels = LossConfig(spread=own.spread, scale=own.scale)
    found: list[Run] = []
    seeds: set[int] = set()
    for one in teachers:
        eps, seed = one.keys["eps"], one.keys["seed"]
        teacher = Run(_keys(TEACHER, eps, seed, None), one.config)
        found.append(teacher)
        if seed not in seeds:
            seeds.add(seed)
            found.append(Run(_keys(BASELINE, 0.0, seed, None), _like(students, labels, seed)))
        for step in [*snapshot_steps(length.steps, snapshots), length.steps]:
            loss = replace(protocol, teacher="of the sweep", teacher_step=step)
            found.append(Run(_keys(STUDENT, eps, seed, step), _like(students, loss, seed), teacher))
    return found


def _keys(role: str, eps: float, seed: int, step: int | None) -> Row:
    return {"role": role, "eps": eps, "seed": seed, "step": step}


def _like(config: TrainConfig, loss: LossConfig, seed: int) -> TrainConfig:
    return replace(config, loss=loss, seed=seed)


def is_teacher(keys: Row) -> bool:
    """Without students all are."""
    return bool(keys.get("role", TEACHER) == TEACHER)


def measurements(places: Sequence[int | None]) -> list[Question]:
    """What snapshots say of the test images; the end's answers every run has."""
    return [Outputs("test", step) for step in places if step is not None]


def by_seed(
    trained: Sequence[Trained],
    curves: Sequence[Curve],
    places: Sequence[int | None],
    steps: Sequence[int],
) -> Iterator[Row]:
    """Every student that is finished, beside its teacher: eps, seed, step of the teacher."""
    students = {
        tuple(one.keys[name] for name in ("eps", "seed", "step")): one.entry.metrics
        for one in trained
        if one.finished and one.keys["role"] == STUDENT
    }
    teachers = {
        (one.keys["eps"], one.keys["seed"]): one
        for one in trained
        if one.finished and is_teacher(one.keys)
    }
    for curve in curves:
        eps, seed = curve.keys["eps"], curve.keys["seed"]
        for i, (place, step) in enumerate(zip(places, steps, strict=True)):
            metrics = students.get((eps, seed, step))
            if metrics is None:
                continue
            row = {"eps": eps, "seed": seed, "step": step}
            row["teacher_test_accuracy"] = _accuracy(teachers[eps, seed], place)
            for name in ("within_class", "between_classes", "gamma"):
                row[f"teacher_{name}"] = float(curve.values[name][i])
            for split in ("val", "test"):
                for metric in ("accuracy", "nll", "ece"):
                    row[f"{split}_{metric}"] = (metrics[split] or {}).get(metric)
            yield row


def _accuracy(teacher: Trained, step: int | None) -> float:
    if step is None:
        return float(teacher.entry.metrics["test"]["accuracy"])
    said = teacher.measured[Outputs("test", step)]
    return float((said.logits_NK.argmax(1) == said.labels_N).mean())


def baseline(trained: Sequence[Trained]) -> list[float]:
    """Test accuracy of the networks without a teacher."""
    return [
        one.entry.metrics["test"]["accuracy"]
        for one in trained
        if one.finished and one.keys["role"] == BASELINE
    ]


SHOWN = ("test_accuracy", "test_nll", "val_accuracy", "teacher_test_accuracy")


def over_all_seeds(rows: Sequence[Row], alone: Sequence[float]) -> Iterator[Row]:
    """Rows of students.csv: means over seeds at every snapshot, and those without a teacher."""
    for eps, step in sorted({(row["eps"], row["step"]) for row in rows}):
        here = [row for row in rows if (row["eps"], row["step"]) == (eps, step)]
        for metric in (*SHOWN, "teacher_within_class"):
            values = np.array([row[metric] for row in here if row[metric] is not None], float)
            values = values[np.isfinite(values)]
            if values.size:
                keys: Row = {"role": STUDENT, "eps": eps, "step": step, "metric": metric}
                yield keys | interval_row(over_seeds(values))
    if alone:
        keys = {"role": BASELINE, "eps": 0.0, "step": None, "metric": "test_accuracy"}
        yield keys | interval_row(over_seeds(np.array(alone)))


def finding(rows: Sequence[Row], data: str, closed: str) -> Finding:
    """`FOLLOW` from rows by seed.

    Args:
        closed: why its gate does not hold, "" where it does.
    """
    seeds = sorted({row["seed"] for row in rows})
    steps = {eps: {row["step"] for row in rows if row["eps"] == eps} for eps in (0.0, 0.1)}
    whole = [
        seed
        for seed in seeds
        if all({r["step"] for r in rows if (r["eps"], r["seed"]) == (eps, seed)} == steps[eps]
               for eps in steps)
    ]  # fmt: skip
    if not all(steps.values()):
        return untested(FOLLOW, None, "needs students of teachers at eps 0 and 0.1")
    if not whole:
        return untested(FOLLOW, None, "needs students of every snapshot of a seed")
    found = []
    for seed in whole:
        here = [row for row in rows if row["seed"] == seed and row["eps"] in steps]
        columns = ("test_accuracy", "teacher_within_class", "teacher_test_accuracy")
        found.append(partial_rank_correlation(*(np.array([r[c] for r in here]) for c in columns)))
    values_S = np.array([value for value in found if value is not None])
    if not values_S.size:
        return untested(FOLLOW, None, "students or snapshots do not differ")
    return decide(FOLLOW, over_seeds(values_S), None, data, closed)


def notes(rows: Sequence[Row], alone: Sequence[float]) -> list[str]:
    """For each eps students of the end, and of the snapshot that is best on val."""
    lines = []
    for eps in sorted({row["eps"] for row in rows}):
        here = [row for row in rows if row["eps"] == eps]
        steps = sorted({row["step"] for row in here})
        cells = {
            step: _percent([r["test_accuracy"] for r in here if r["step"] == step])
            for step in steps
        }
        line = f"students at eps {eps:.12g}: of the last snapshot {cells[steps[-1]]} % on test"
        chosen = {
            step: np.mean([r["val_accuracy"] for r in here if r["step"] == step])
            for step in steps
            if all(r["val_accuracy"] is not None for r in here if r["step"] == step)
        }
        if chosen:
            best = max(chosen, key=lambda step: chosen[step])
            line += f", of the one that is best on val (step {best:,}) {cells[best]} %"
        lines.append(line)
    return [*lines, f"without a teacher {_percent(alone)} %"] if alone else lines


def _percent(values: Sequence[float]) -> str:
    return mean_cell([100 * value for value in values], 2)


def draw(results: Sequence[Result]) -> Figure:
    """A row for each recipe: students' error against the snapshot, and against I(X;Y|C) there."""
    figure, axes_RC = grid(len(results), 2, width=4.6, height=3.4)
    for axes, result in zip(axes_RC, results, strict=True):
        rows = result.tables["students"]
        for number, eps in enumerate(sorted({r["eps"] for r in rows if r["role"] == STUDENT})):
            look = series_style(number)
            students = _curve(rows, eps, "test_accuracy")
            steps, errors, low, high = _errors(students)
            count = min(row["n"] for row in students)
            label = f"eps {eps:.12g}, students (n = {count})"
            axes[0].plot(steps, errors, label=label, marker="o", markersize=3, **look)
            if count > 2:
                axes[0].fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
            own = _errors(_curve(rows, eps, "teacher_test_accuracy"))
            axes[0].plot(
                *own[:2],
                color=look["color"],
                linewidth=0.8,
                linestyle=":",
                label=f"eps {eps:.12g}, their teachers",
            )
            within = {
                row["step"]: row["value"] for row in _curve(rows, eps, "teacher_within_class")
            }
            x = [within.get(step, float("nan")) for step in steps]
            axes[1].plot(
                x, errors, marker="o", markersize=3, linewidth=0.8, label=label, **_of(look)
            )
            axes[1].plot(x[-1:], errors[-1:], marker="s", markersize=7, **_of(look))
            for place in (0, len(steps) - 1):
                axes[1].annotate(
                    f"step {steps[place]:,}", (x[place], errors[place]), xytext=(5, 4),
                    textcoords="offset points", fontsize=6, color=look["color"],
                )  # fmt: skip
        alone = [row for row in rows if row["role"] == BASELINE]
        for axis in axes:
            for row in alone:
                axis.axhline(
                    100 * (1 - row["value"]), color=COLORS[7], linewidth=1,
                    label=f"without a teacher (n = {row['n']})",
                )  # fmt: skip
            logarithmic(axis)
            axis.set_ylabel("test error (%)")
            axis.legend(fontsize=7)
        axes[0].set_xscale("symlog", linthresh=1)
        axes[0].set_xlim(left=0)
        axes[0].set_xlabel("training step of the snapshot that teaches")
        axes[1].set_xlabel("I(X;Y|C) of the snapshot (nats)")
        axes[0].set_title(plain(result.title), loc="left", fontsize=8)
    return figure


def _of(look: dict[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "linestyle": look["linestyle"]}


def _curve(rows: Sequence[Row], eps: float, metric: str) -> list[Row]:
    return [
        row for row in rows if (row["role"], row["eps"], row["metric"]) == (STUDENT, eps, metric)
    ]


def _errors(rows: Sequence[Row]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and errors in percent with their intervals, within what a logarithmic axis shows."""
    errors, low, high = (
        [
            float(np.clip(100 * (1 - (row["value"] if row[end] is None else row[end])), 0.05, 100))
            for row in rows
        ]
        for end in ("value", "high", "low")
    )
    return [row["step"] for row in rows], errors, low, high
