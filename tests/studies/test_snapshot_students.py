"""Students of snapshots on made-up results: runs, tables, the claim, the figure."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsexp.config import (
    AugmentConfig,
    DistillationConfig,
    LossConfig,
    MLPConfig,
    StepsConfig,
    TrainConfig,
)
from lsexp.errors import UserError
from lsexp.measure import Outputs, Viewed
from lsexp.runs.catalog import Entry
from lsexp.studies import Result, Trained, information
from lsexp.studies import _snapshot_students as students
from lsexp.studies.information import Config, Curve

STUDY = Config(eps=[0.0, 0.1], seeds=[0, 1, 2], snapshots=5, students=True)
STEPS = [0, 1, 133, 267, 400]
PLACES = [*STEPS[:-1], None]


def planned(**keys):
    base = TrainConfig(
        model=MLPConfig(), augment=AugmentConfig(shift=1), train=StepsConfig(steps=400)
    )
    taught = TrainConfig(model=MLPConfig(widths=[8]), loss=LossConfig(scale=3.0, **keys))
    return information.runs(STUDY, base, taught)


def test_snapshots_and_the_end_of_every_teacher_have_a_student():
    runs = planned(spread="others")
    assert len(runs) == 3 * (2 * (1 + 4) + 1)
    for run in runs:
        keys = run.keys
        assert run.config.seed == keys["seed"]
        if keys["role"] == "teacher":
            assert run.teacher is None
            assert run.config.artifacts.snapshots == 5
            assert run.config.model == MLPConfig()
            continue
        assert run.config.model == MLPConfig(widths=[8])
        assert run.config.artifacts.snapshots == 0
        if keys["role"] == "baseline":
            assert run.config.loss == LossConfig(spread="others", scale=3.0)
            continue
        assert run.teacher in runs[: runs.index(run)]
        assert [run.teacher.keys[name] for name in ("role", "eps", "seed")] == [
            "teacher",
            keys["eps"],
            keys["seed"],
        ]
        assert run.config.loss.teacher_step == keys["step"]
        assert (run.config.loss.beta, run.config.loss.temperature) == (1, 1)
    steps = [run.keys["step"] for run in runs if run.keys["role"] == "student"]
    assert steps[:4] == STEPS[1:]  # not the one that knows nothing yet


def test_the_students_own_protocol_stands():
    loss = DistillationConfig(temperature=4.0, beta=0.5)
    base = TrainConfig(model=MLPConfig(), augment=AugmentConfig(shift=1))
    runs = information.runs(STUDY, base, TrainConfig(model=MLPConfig(), loss=loss))
    found = {(r.config.loss.temperature, r.config.loss.beta) for r in runs if r.teacher}
    assert found == {(4.0, 0.5)}


def test_snapshots_must_be_known_beforehand():
    base = TrainConfig(model=MLPConfig(), train=replace(StepsConfig(), epochs=3.0))
    with pytest.raises(UserError, match=r"train\.epochs=3: .* give train\.steps="):
        information.runs(STUDY, base, TrainConfig(model=MLPConfig()))
    assert len(information.runs(STUDY, base)) == 6  # without students they need not


def test_who_is_taught_by_what():
    assert information.partner(STUDY, TrainConfig(), "mnist_mlp") == "mnist_distill"
    assert information.partner(STUDY, TrainConfig(), "mine") == "mine"
    assert information.partner(replace(STUDY, students=False), TrainConfig(), "mine") is None


RIGHT = np.arange(100) % 2
LOOKS = {0.0: (0.5, 0.6, 0.9, 0.9, 0.95), 0.1: (0.5, 0.6, 0.9, 0.9, 0.95)}
"""How accurate snapshots are."""
KEPT = {0.0: (0.0, 0.8, 1.4, 1.3, 1.2), 0.1: (0.0, 0.8, 1.4, 1.1, 0.8)}
"""Smoothed teachers lose 0.6 nats from the third snapshot on, hard ones 0.2."""
NAMES = ("information", "own_variances", "nearest_neighbours")


def entry(accuracy, status="finished"):
    found = Entry(Path("run"), status)
    scores = {"accuracy": accuracy, "nll": 0.5, "ece": 0.1, "brier": 0.2}
    found.metrics = {"val": dict(scores), "test": scores}
    found.config = {"loss.temperature": 1.0, "loss.beta": 1.0, "loss.match": "cross_entropy"}
    return found


def trained(keys, accuracy):
    """As accurate as `accuracy(eps, place, seed)` of students."""
    if keys["role"] == "baseline":
        return Trained(keys, entry(0.8))
    eps, seed = keys["eps"], keys["seed"]
    if keys["role"] == "student":
        return Trained(keys, entry(accuracy(eps, STEPS.index(keys["step"]), seed)))
    measured = {}
    for step, share in zip(STEPS[:-1], LOOKS[eps], strict=False):
        said = np.where(np.arange(100) < round(100 * share), RIGHT, 1 - RIGHT)
        measured[Outputs("test", step)] = Viewed(np.eye(2)[said], RIGHT, np.arange(100))
    return Trained(keys, entry(LOOKS[eps][-1]), measured)


def curves(kept=KEPT, **others):
    names = (*NAMES, "within_class", "gamma")
    return [
        Curve(
            {"eps": eps, "seed": seed},
            {name: np.array(others.get(name, kept)[eps]) for name in names},
            np.zeros((1, 1)),
            60,
            30,
        )
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]


def luck(eps, place, seed):
    return 0.001 * np.random.default_rng([seed, place, round(10 * eps)]).normal()


def misses(eps, place, seed):
    """A student that learns from what is kept, and from how good its teacher is."""
    return 0.6 + 0.2 * LOOKS[eps][place] + 0.05 * KEPT[eps][place] + luck(eps, place, seed)


def does_not_care(eps, place, seed):
    """A student that learns from how good its teacher is."""
    return 0.6 + 0.2 * LOOKS[eps][place] + luck(eps, place, seed)


def gains(eps, place, seed):
    return 0.6 + 0.2 * LOOKS[eps][place] - 0.05 * KEPT[eps][place] + luck(eps, place, seed)


def rows(accuracy):
    runs = [trained(run.keys, accuracy) for run in planned()]
    return list(students.by_seed(runs, curves(), PLACES, STEPS)), students.baseline(runs)


def judged(found, curves_=None, closed=""):
    return students.finding(found, curves_ or curves(), STEPS, NAMES, "cifar10", closed)


def test_the_table_has_student_and_teacher_side_by_side():
    found, alone = rows(misses)
    assert len(found) == 24
    assert [row["step"] for row in found[:4]] == STEPS[1:]
    assert [row["teacher_test_accuracy"] for row in found[:4]] == list(LOOKS[0.0][1:])
    assert [row["teacher_within_class"] for row in found[4:8]] == list(KEPT[0.1][1:])
    assert found[0]["test_accuracy"] == misses(0.0, 1, 0)
    assert alone == [0.8] * 3
    means = list(students.over_all_seeds(found, alone))
    [row] = [r for r in means if (r["eps"], r["step"], r["metric"]) == (0.1, 133, "val_accuracy")]
    assert row["value"] == pytest.approx(np.mean([misses(0.1, 2, seed) for seed in range(3)]))
    assert (row["n"], row["interval"]) == (3, "seeds")
    assert means[-1]["role"] == "baseline"


@pytest.mark.parametrize(
    ("accuracy", "verdict", "value"),
    [
        (misses, "supported", 0.05 * (-0.6 + 0.2)),
        (gains, "contradicted", 0.05 * (0.6 - 0.2)),
        (does_not_care, "inconclusive", 0.0),
    ],
)
def test_the_claim_is_what_smoothed_teachers_students_lose_beyond_hard_ones(
    accuracy, verdict, value
):
    found = judged(rows(accuracy)[0])
    assert found.verdict == verdict
    assert found.value == pytest.approx(value, abs=0.003)
    assert found.n == 3


def test_students_that_do_not_care_are_seldom_said_to():
    """Under the null hypothesis a verdict comes in 5 % of cases, whatever teachers look like."""
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(400):
        accuracy = {
            (eps, place, seed): 0.2 * LOOKS[eps][place] + 0.01 * rng.normal()
            for eps in (0.0, 0.1)
            for place in range(5)
            for seed in range(3)
        }
        found = [
            {"eps": eps, "seed": seed, "step": STEPS[place], "test_accuracy": value}
            for (eps, place, seed), value in accuracy.items()
        ]
        verdicts.append(judged(found).verdict)
    decided = np.mean([verdict != "inconclusive" for verdict in verdicts])
    assert 0.02 < decided < 0.09


def test_what_the_claim_needs():
    found, _ = rows(misses)
    assert judged(found, closed="they have not learnt").verdict == "not tested"
    missing = [row for row in found if (row["eps"], row["seed"], row["step"]) != (0.0, 0, 133)]
    assert judged(missing).n == 2  # the snapshot with most
    others = [row for row in found if row["step"] != 267]
    assert judged(others).n == 3  # not needed
    ends = [row for row in found if row["step"] != 400]
    assert judged(ends).because == "needs students of these snapshots and of the end"
    hard = [one for one in curves() if one.keys["eps"] == 0]
    assert judged(found, hard).because.startswith("needs two seeds at eps 0 and 0.1")


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_erased_by_one_estimator_nothing_is_tested(name):
    alike = {0.0: KEPT[0.1], 0.1: KEPT[0.1]}
    found = judged(rows(misses)[0], curves(**{name: alike}))
    assert found.verdict == "not tested"
    assert "lose 0.00 nats more than hard ones, not 0.1" in found.because
    unknown = {0.0: KEPT[0.0], 0.1: (np.nan,) * 5}
    if name != "information":
        assert judged(rows(misses)[0], curves(**{name: unknown})).verdict == "not tested"


def test_students_of_another_protocol_decide_nothing():
    runs = [trained(run.keys, misses) for run in planned()]
    assert students.other_protocol(runs) == ""
    for one in runs:
        if one.keys["role"] == "student":
            one.entry.config["loss.temperature"] = 4.0
    assert students.other_protocol(runs) == "the claim is of students with loss.temperature=1.0"


def test_the_best_snapshot_is_chosen_on_val_and_told_on_test():
    found, alone = rows(misses)
    for row in found:
        row["val_accuracy"] = 0.99 if (row["eps"], row["step"]) == (0.0, 1) else 0.5
    lines = students.notes(found, alone, 400)
    mine, last = (100 * np.mean([misses(0.0, i, seed) for seed in range(3)]) for i in (1, 4))
    assert f"best on val (step 1) {mine:.2f} +-" in lines[0]
    assert f"of the end {last:.2f} +-" in lines[0]
    assert lines[-1] == "without a teacher 80.00 %"
    fewer = [row for row in found if (row["eps"], row["seed"], row["step"]) != (0.0, 2, 133)]
    of_two = 100 * np.mean([misses(0.0, 1, seed) for seed in range(2)])
    assert f"(step 1) {of_two:.2f}" in students.notes(fewer, alone, 400)[0]  # seeds that have all
    begun = [row for row in found if row["step"] < 400]
    assert "of the end" not in students.notes(begun, alone, 400)[0]
    for row in found:
        row["val_accuracy"] = None
    assert "best" not in students.notes(found, [], 400)[0]


def test_the_figure_has_students_their_teachers_and_those_without():
    found, alone = rows(misses)
    found[0]["test_accuracy"] = 1.0  # no error at all, on a logarithmic axis
    result = Result("mine", {"students": list(students.over_all_seeds(found, alone))}, [])
    figure = students.draw([result, result])
    figure.draw_without_rendering()
    assert len(figure.axes) == 6
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [
        "eps 0, students (n = 3)",
        "eps 0, their teachers",
        "eps 0.1, students (n = 3)",
        "eps 0.1, their teachers",
        "without a teacher (n = 3)",
    ]
    near = figure.axes[1]
    low, high = near.get_ylim()
    assert high - low == pytest.approx(1.3 * students.NEAR)
    means = {(row["eps"], row["step"]): 100 * row["value"] for row in shown_means(result)}
    assert low == pytest.approx(max(means.values()) - students.NEAR)
    for line, eps in zip(near.lines, (0.0, 0.1), strict=False):
        expected = [(step, value) for (of, step), value in means.items() if of == eps]
        expected = sorted(pair for pair in expected if pair[1] >= low)
        np.testing.assert_allclose(line.get_xydata(), expected)


def shown_means(result):
    rows = result.tables["students"]
    return [row for row in rows if (row["role"], row["metric"]) == ("student", "test_accuracy")]
