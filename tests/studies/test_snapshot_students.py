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
from lsexp.studies import Trained, information
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


def test_every_snapshot_and_the_end_of_every_teacher_has_a_student():
    runs = planned(spread="others")
    assert len(runs) == 3 * (2 * (1 + 5) + 1)
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
    assert steps[:5] == STEPS


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
LOOKS = {0.0: (0.5, 0.6, 0.9, 0.9, 0.9), 0.1: (0.5, 0.6, 0.9, 0.9, 0.9)}
"""How accurate snapshots are."""
WITHIN = {0.0: (0.0, 0.1, 0.7, 0.6, 0.5), 0.1: (0.0, 0.1, 0.6, 0.4, 0.2)}


def entry(accuracy, status="finished"):
    found = Entry(Path("run"), status)
    scores = {"accuracy": accuracy, "nll": 0.5, "ece": 0.1, "brier": 0.2}
    found.metrics = {"val": dict(scores), "test": scores}
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


def curves():
    return [
        Curve(
            {"eps": eps, "seed": seed},
            {name: np.array(WITHIN[eps]) for name in ("within_class", "between_classes", "gamma")},
            np.zeros((1, 1)),
            60,
            30,
        )
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]


def luck(eps, place, seed):
    return 0.01 * np.random.default_rng([seed, place, round(10 * eps)]).normal()


def keeps(eps, place, seed):
    """A student that learns what is kept."""
    return 0.5 * LOOKS[eps][place] + 0.1 * WITHIN[eps][place] + luck(eps, place, seed)


def forgets(eps, place, seed):
    return 0.5 * LOOKS[eps][place] - 0.1 * WITHIN[eps][place] + luck(eps, place, seed)


def rows(accuracy):
    runs = [trained(run.keys, accuracy) for run in planned()]
    return list(students.by_seed(runs, curves(), PLACES, STEPS)), students.baseline(runs)


def test_the_table_has_student_and_teacher_side_by_side():
    found, alone = rows(keeps)
    assert len(found) == 30
    assert [row["step"] for row in found[:5]] == STEPS
    assert [row["teacher_test_accuracy"] for row in found[:5]] == list(LOOKS[0.0])
    assert [row["teacher_within_class"] for row in found[5:10]] == list(WITHIN[0.1])
    assert found[0]["test_accuracy"] == keeps(0.0, 0, 0)
    assert alone == [0.8] * 3
    means = list(students.over_all_seeds(found, alone))
    [row] = [r for r in means if (r["eps"], r["step"], r["metric"]) == (0.1, 133, "val_accuracy")]
    assert row["value"] == pytest.approx(np.mean([keeps(0.1, 2, seed) for seed in range(3)]))
    assert (row["n"], row["interval"]) == (3, "seeds")
    assert means[-1]["role"] == "baseline"


@pytest.mark.parametrize(("accuracy", "verdict"), [(keeps, "supported"), (forgets, "contradicted")])
def test_the_claim_is_of_snapshots_that_are_equally_accurate(accuracy, verdict):
    found = students.finding(rows(accuracy)[0], "cifar10", "")
    assert found.verdict == verdict
    assert abs(found.value) > 0.5
    assert found.n == 3


def test_what_the_claim_needs():
    found, _ = rows(keeps)
    hard = [row for row in found if row["eps"] == 0]
    assert students.finding(hard, "cifar10", "").because.startswith("needs students of teachers")
    holed = [row for row in found if (row["seed"], row["step"]) not in {(0, 1), (1, 133), (2, 0)}]
    assert students.finding(holed, "cifar10", "").because.startswith("needs students of every")
    one = [row for row in found if (row["seed"], row["step"]) != (0, 1)]
    assert students.finding(one, "cifar10", "").n == 2
    closed = students.finding(found, "cifar10", "they have not learnt")
    assert (closed.verdict, closed.because) == ("not tested", "they have not learnt")
    alike = [row | {"test_accuracy": 0.5} for row in found]
    assert students.finding(alike, "cifar10", "").because == "students or snapshots do not differ"


def test_the_best_snapshot_is_chosen_on_val_and_told_on_test():
    found, alone = rows(keeps)
    for row in found:
        row["val_accuracy"] = 0.99 if (row["eps"], row["step"]) == (0.0, 1) else 0.5
    lines = students.notes(found, alone)
    mine = 100 * np.mean([keeps(0.0, 1, seed) for seed in range(3)])
    assert f"best on val (step 1) {mine:.2f} +-" in lines[0]
    assert lines[-1] == "without a teacher 80.00 %"
    for row in found:
        row["val_accuracy"] = None
    assert "best" not in students.notes(found, [])[0]
