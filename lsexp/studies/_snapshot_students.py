"""Students of the snapshots of a teacher: is what smoothing erases what students would have learnt?

The paper explains Figure 5 by Figure 6: smoothing erases what logits tell of an example within its
class, and with it what makes a teacher (section 4). Here that is put to the test, as a part of the
study `information`. Shape letters: S seeds, I snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lsexp.analysis.statistics import over_seeds
from lsexp.config import LossConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.figures import (
    COLORS,
    beside,
    grid,
    logarithmic,
    marker_of,
    over_training,
    plain,
    series_style,
)
from lsexp.measure import Outputs, Question
from lsexp.studies import (
    GATE,
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
from lsexp.studies._teaching import (
    BASELINE,
    DISPUTED,
    STUDENT,
    TEACHER,
    labels_of,
    protocol_of,
)
from lsexp.training.snapshots import snapshot_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsexp.studies.information import Curve

ERASED = 0.1
"""Nats that smoothed teachers must lose beyond what hard ones do, for there to be anything to test:
as in the claim that information falls again."""
MISSED = Claim(
    "students-miss-what-is-erased",
    "students of smoothed teachers miss what these erase: from the snapshot that keeps most to the "
    "end of training they fall behind students of hard teachers",
    "section 4",
    "students' test accuracy at the end minus at the snapshot where I(X;Y) of smoothed teachers "
    "(eps 0.1) is highest in the other seeds; that of smoothed teachers minus that of hard ones, "
    "paired by seed",
    "below",
    factor=100,
    unit="points",
    disputed_by=DISPUTED,
    gate=f"{GATE}, and smoothed teachers lose {ERASED} nats more than they do",
)
"""Declared before any run; nobody has published it. The hard teachers stand for what changes
between the two places without smoothing: that a teacher becomes better. Gate: hard teachers have
learnt their training images; and between the two places smoothed ones lose `ERASED` more
information than hard ones, by every estimator. Judged with the paper's protocol of students
(temperature 1, no labels) only."""
JUDGED = {"loss.temperature": 1.0, "loss.beta": 1.0, "loss.match": "cross_entropy"}


def runs(teachers: Sequence[Run], students: TrainConfig, snapshots: int) -> list[Run]:
    """Teachers, each with a student of its end and of every snapshot but that before training; and
    for each seed one that has hard labels instead.

    Raises:
        UserError: the teachers' length is told in epochs, so that their steps are not known yet.
    """
    length = teachers[0].config.train
    if length.epochs is not None:
        raise UserError(
            f"train.epochs={length.epochs:g}: with students=true the snapshots must be known "
            f"beforehand; give train.steps="
        )
    protocol, labels = protocol_of(students.loss), labels_of(students.loss)
    found: list[Run] = []
    seeds: set[int] = set()
    for one in teachers:
        eps, seed = one.keys["eps"], one.keys["seed"]
        teacher = Run(_keys(TEACHER, eps, seed, None), one.config)
        found.append(teacher)
        if seed not in seeds:
            seeds.add(seed)
            found.append(Run(_keys(BASELINE, 0.0, seed, None), _like(students, labels, seed)))
        for step in [*snapshot_steps(length.steps, snapshots)[1:], length.steps]:
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
            for name in ("information", "within_class", "gamma"):
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


def other_protocol(trained: Sequence[Trained]) -> str:
    """Why these students decide nothing, "" where they are taught as the claim says."""
    for one in trained:
        if one.finished and one.keys["role"] == STUDENT:
            for name, usual in JUDGED.items():
                if one.entry.config.get(name, usual) != usual:
                    return f"the claim is of students with {name}={usual}"
    return ""


def finding(
    rows: Sequence[Row],
    curves: Sequence[Curve],
    steps: Sequence[int],
    estimators: Sequence[str],
    data: str,
    closed: str,
) -> Finding:
    """`MISSED` from rows by seed.

    Args:
        estimators: names of values of the curves that must agree that information is lost.
        closed: why its gate does not hold already, "" where it does.
    """
    known = {(one.keys["eps"], one.keys["seed"]): one.values for one in curves}
    scores = {(row["eps"], row["seed"], row["step"]): row["test_accuracy"] for row in rows}
    seeds = sorted(seed for eps, seed in known if eps == 0.1 and (0.0, seed) in known)
    if len(seeds) < 2 or len(steps) < 4:
        return untested(MISSED, None, "needs two seeds at eps 0 and 0.1, and four snapshots")
    smoothed_SI = np.array([known[0.1, seed]["information"] for seed in seeds])
    top_S = 1 + highest_elsewhere(smoothed_SI)
    end, values, lost = len(steps) - 1, [], []
    for seed, top in zip(seeds, top_S, strict=True):
        places = [(eps, seed, steps[at]) for eps in (0.1, 0.0) for at in (end, int(top))]
        if not all(place in scores for place in places):
            continue
        last, first, hard_last, hard_first = (scores[place] for place in places)
        values.append((last - first) - (hard_last - hard_first))
        lost.append(
            [
                sum(
                    sign * (known[eps, seed][name][top] - known[eps, seed][name][end])
                    for eps, sign in ((0.1, 1), (0.0, -1))
                )
                for name in estimators
            ]
        )
    if not values:
        return untested(MISSED, None, "needs students of these snapshots and of the end")
    least = np.array(lost).mean(axis=0).min()
    if not closed and not least > ERASED:  # where one is not known too
        closed = f"smoothed teachers lose {least:.2f} nats more than hard ones, not {ERASED}"
    return decide(MISSED, over_seeds(np.array(values)), None, data, closed)


def highest_elsewhere(values_SI: np.ndarray) -> np.ndarray:
    """For each seed where, between start and end, the mean of the other seeds is highest: [S].

    Counted from the first snapshot behind the start. Where a curve itself is highest it would be
    high by chance too.

    >>> highest_elsewhere(np.array([[0.0, 5.0, 1.0, 0.0], [0.0, 1.0, 2.0, 0.0]])).tolist()
    [1, 0]
    """
    inside_SI = values_SI[:, 1:-1]
    others_SI = (inside_SI.sum(axis=0) - inside_SI) / (len(inside_SI) - 1)
    found_S: np.ndarray = others_SI.argmax(axis=1)
    return found_S


def notes(rows: Sequence[Row], alone: Sequence[float], end: int) -> list[str]:
    """For each eps students of the end, and of the snapshot that is best on val, of seeds that have
    all."""
    lines = []
    for eps in sorted({row["eps"] for row in rows}):
        here = [row for row in rows if row["eps"] == eps]
        steps = sorted({row["step"] for row in here})
        of = {step: {r["seed"]: r for r in here if r["step"] == step} for step in steps}
        parts = []
        if end in of:
            scores = [row["test_accuracy"] for row in of[end].values()]
            parts.append(f"of the end {_percent(scores)} % on test")
        seeds = set.intersection(*(set(part) for part in of.values()))
        if seeds and all(row["val_accuracy"] is not None for row in here):
            means = {
                step: np.mean([of[step][seed]["val_accuracy"] for seed in seeds]) for step in steps
            }
            best = max(means, key=lambda step: means[step])
            scores = [of[best][seed]["test_accuracy"] for seed in sorted(seeds)]
            parts.append(
                f"of the snapshot that is best on val (step {best:,}) {_percent(scores)} %"
            )
        if parts:
            lines.append(f"students at eps {eps:.12g}: {', '.join(parts)}")
    return [*lines, f"without a teacher {_percent(alone)} %"] if alone else lines


def _percent(values: Sequence[float]) -> str:
    return mean_cell([100 * value for value in values], 2)


NEAR = 2.0
"""Percentage points below the best students that the enlarged panel shows."""


def draw(results: Sequence[Result]) -> Figure:
    """A row for each recipe: students' error against the snapshot, the best of it enlarged, and
    error against I(X;Y|C) there."""
    figure, axes_RC = grid(len(results), 3, width=4.2, height=3.4)
    for (whole, near, within), result in zip(axes_RC, results, strict=True):
        axes = (whole, within)
        rows = result.tables["students"]
        errors = [100 * (1 - row["value"]) for row in rows if "accuracy" in row["metric"]]
        floor = min((value for value in errors if value > 0), default=0.1) / 2
        for number, eps in enumerate(sorted({r["eps"] for r in rows if r["role"] == STUDENT})):
            look = {**series_style(number), "marker": marker_of(number)}
            _draw_students(axes, rows, eps, look, floor)
        _enlarge(near, rows)
        alone = [row for row in rows if row["role"] == BASELINE]
        for axis in axes:
            for row in alone:
                axis.axhline(
                    max(floor, 100 * (1 - row["value"])), color=COLORS[7], linewidth=1,
                    label=f"without a teacher (n = {row['n']})",
                )  # fmt: skip
            logarithmic(axis)
            axis.yaxis.set_tick_params(which="both", labelsize=7)
            edge = "; 0 at the edge" if min(errors, default=1) <= 0 else ""
            axis.set_ylabel(f"test error (%{edge})")
            axis.legend(fontsize=7)
        for axis in (whole, near):
            over_training(axis, max(row["step"] for row in rows if row["step"] is not None))
        axes[0].set_xlabel("training step of the snapshot that teaches")
        axes[1].set_xlabel("I(X;Y|C) of the snapshot (nats)")
        axes[0].set_title(plain(result.title), loc="left", fontsize=8)
    return figure


def _enlarge(axis: Any, rows: Sequence[Row]) -> None:
    """Accuracy of students, means with their intervals, where it is near the best."""
    students = [r for r in rows if (r["role"], r["metric"]) == (STUDENT, "test_accuracy")]
    least = max((row["value"] for row in students), default=0.0) - NEAR / 100
    for number, eps in enumerate(sorted({row["eps"] for row in students})):
        here = [row for row in _curve(rows, eps, "test_accuracy") if row["value"] >= least]
        steps = [row["step"] for row in here]
        look = {**series_style(number), "marker": marker_of(number)}
        axis.plot(
            steps, [100 * row["value"] for row in here], markersize=3,
            label=f"eps {eps:.12g}, students", **look,
        )  # fmt: skip
        known = [row for row in here if row["n"] > 2 and row["low"] is not None]
        ends = [[100 * row[end] for row in known] for end in ("low", "high")]
        shade = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
        axis.fill_between([row["step"] for row in known], *ends, **shade)
    for row in rows:
        if row["role"] == BASELINE and row["value"] >= least:
            axis.axhline(
                100 * row["value"], color=COLORS[7], linewidth=1, label="without a teacher"
            )
            if row["n"] > 2 and row["low"] is not None:
                low, high = 100 * row["low"], 100 * row["high"]
                axis.axhspan(low, high, color=COLORS[7], alpha=0.15, linewidth=0)
    axis.set_ylim(100 * least, 100 * least + 1.3 * NEAR)
    axis.set_xlabel("training step of the snapshot that teaches")
    axis.set_ylabel("test accuracy of students (%)")
    axis.set_title("enlarged; shaded: 95 % over seeds", loc="left", fontsize=8)
    axis.legend(fontsize=7)


def _draw_students(
    axes: Sequence[Any], rows: Sequence[Row], eps: float, look: dict[str, Any], floor: float
) -> None:
    students = _curve(rows, eps, "test_accuracy")
    steps, errors, low, high = _errors(students, floor)
    count = min(row["n"] for row in students)
    label = f"eps {eps:.12g}, students (n = {count})"
    axes[0].plot(steps, errors, label=label, markersize=3, **look)
    if count > 2:
        axes[0].fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
    own = _errors(_curve(rows, eps, "teacher_test_accuracy"), floor)
    axes[0].plot(
        *own[:2], color=look["color"], linewidth=0.8, linestyle=":", marker=look["marker"],
        markersize=2, label=f"eps {eps:.12g}, their teachers",
    )  # fmt: skip
    within = {row["step"]: row["value"] for row in _curve(rows, eps, "teacher_within_class")}
    x = [within.get(step, float("nan")) for step in steps]
    axes[1].plot(x, errors, markersize=3, linewidth=0.8, label=label, **look)
    axes[1].plot(x[-1:], errors[-1:], markersize=7, **look)
    for place, side, shift in ((0, "left", 5), (len(steps) - 1, "right", -6)):
        at = (x[place], errors[place])
        beside(axes[1], f"step {steps[place]:,}", at, (shift, 4), look["color"], ha=side)


def _curve(rows: Sequence[Row], eps: float, metric: str) -> list[Row]:
    return [
        row for row in rows if (row["role"], row["eps"], row["metric"]) == (STUDENT, eps, metric)
    ]


def _errors(
    rows: Sequence[Row], floor: float
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and errors in percent with their intervals, within what a logarithmic axis shows."""
    errors, low, high = (
        [
            float(np.clip(100 * (1 - (row["value"] if row[end] is None else row[end])), floor, 100))
            for row in rows
        ]
        for end in ("value", "high", "low")
    )
    return [row["step"] for row in rows], errors, low, high
