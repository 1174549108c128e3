"""The study of information on made-up networks: runs, curves, claims, the figure."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsexp.analysis.information import estimate
from lsexp.analysis.statistics import over_seeds
from lsexp.config import AugmentConfig, MLPConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.measure import Drawn, Draws, Measured
from lsexp.runs.catalog import Entry
from lsexp.studies import Chosen, Trained, information
from lsexp.studies.information import Config

STEPS = 400
RNG = np.random.default_rng(0)
SNAPSHOTS = 5
NAMES = ["cat", "dog", "owl"]
IMAGES = {"train": [2, 2, 1], "val": [0, 0, 0]}
CHOSEN = Chosen((0, 1), ("cat", "dog"))


def network(spreads, seed=0, count=60, study=None, parts=1, noise=1.0):
    """{question: answer} of a network whose two clusters have these spreads (in units of the noise)
    at the snapshots, and which before training knows nothing."""
    study = study or Config(snapshots=SNAPSHOTS)
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], count // 2)
    places = information._steps(study, [finished(0.0, 0)])
    found = {}
    for place, spread in zip(places, spreads, strict=True):
        for part in range(study.subsets if place is None else 1):
            means = np.zeros(count) if spread is None else 1000.0 * labels
            means = means + (spread or 0) * rng.normal(size=count)
            asked = information._draws(study, CHOSEN, place, part)
            draws = means[:, None] + noise * rng.normal(size=(count, asked.draws))
            some = slice(None) if part < parts else slice(0)
            drawn = Drawn(draws.astype(np.float32), labels, np.arange(count))
            found[asked] = Drawn(*(array[some] for array in drawn))
        kinds = np.arange(30) % 3
        features = np.eye(3)[kinds] + 0.1 * rng.normal(size=(30, 3))
        weight, bias = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
        logits = (20 * features).astype(np.float32)
        meters = information._meters(place)
        found[meters] = Measured(
            logits, features.astype(np.float32), kinds, np.arange(30), weight, bias
        )
    return found


def finished(eps, seed, measured=None, *, learnt=1.0, data="cifar10"):
    entry = Entry(Path(f"run-{eps}-{seed}"), "finished")
    entry.config = {"train.steps": STEPS, "data.name": data, "budget": "cpu"}
    entry.metrics = {
        "classes": NAMES,
        "config": {"data.name": "mine"},
        "train": {"accuracy": learnt},
    }
    return Trained({"eps": eps, "seed": seed}, entry, measured or {})


HARD = (None, 2.0, 10.0, 10.0, 10.0)
SMOOTHED = (None, 2.0, 10.0, 1.0, 0.0)


def several(**options):
    return [
        finished(eps, seed, network(spreads, seed=10 * seed), **options)
        for seed in range(3)
        for eps, spreads in ((0.0, HARD), (0.1, SMOOTHED))
    ]


def analyzed(trained, **keys):
    return information.analyze(Config(snapshots=SNAPSHOTS, **keys), trained, "mine")


def verdicts(result):
    """Of the claims on information; that on students needs some."""
    assert result.findings[-1].because
    return [found.verdict for found in result.findings[:-1]]


def test_runs_are_those_of_eps_with_snapshots():
    base = TrainConfig(model=MLPConfig(), augment=AugmentConfig(shift=1))
    runs = information.runs(Config(eps=[0.0, 0.1], seeds=[4]), base)
    assert [run.keys for run in runs] == [{"eps": 0.0, "seed": 4}, {"eps": 0.1, "seed": 4}]
    assert {run.config.artifacts.snapshots for run in runs} == {17}


@pytest.mark.parametrize(
    "augment",
    [{"shift": 1}, {"crop": 6}, {"flip": True}, {"brightness": 1.0}, {"contrast": 0.1}],
)
def test_images_must_be_augmented(augment):
    planned = TrainConfig(model=MLPConfig())
    with pytest.raises(UserError, match=r"augment: information needs .* augment\.shift=1"):
        information.check(Config(), "mine", NAMES, planned, IMAGES)
    planned = replace(planned, augment=AugmentConfig(**augment))
    information.check(Config(), "mine", NAMES, planned, IMAGES)
    planned = replace(planned, data=replace(planned.data, normalize="image"))
    if "brightness" in augment:
        with pytest.raises(UserError, match=r"data\.normalize=image: takes back"):
            information.check(Config(), "mine", NAMES, planned, IMAGES)
    else:
        information.check(Config(), "mine", NAMES, planned, IMAGES)


def test_data_of_too_few_images_are_refused_before_training():
    planned = TrainConfig(model=MLPConfig(), augment=AugmentConfig(shift=1))
    told = (
        r"classes=cat,owl: train has 1 image of class owl, and 2 of each are needed; .*train_size"
    )
    with pytest.raises(UserError, match=told):
        information.check(Config(classes=["cat", "owl"]), "mine", NAMES, planned, IMAGES)


def test_each_snapshot_is_asked_for_draws_and_meters():
    study = Config(snapshots=SNAPSHOTS, subsets=2, redraws=4)
    asked = information.measurements(study, [finished(0.0, 0)])
    draws = [one for one in asked if isinstance(one, Draws)]
    assert [one.step for one in draws] == [0, 1, 133, 267, None, None]
    assert len(asked) == 5 * 2 + 1
    assert [one.draws for one in draws] == [24, 24, 24, 24, 24 * 4, 24 * 4]
    assert [one.part for one in draws] == [0, 0, 0, 0, 0, 1]
    paper = information.measurements(Config(protocol="paper"), [finished(0.0, 0)])
    assert {one.draws for one in paper if isinstance(one, Draws)} == {6, 18}


def test_classes_are_the_papers_or_those_typed():
    one = finished(0.0, 0)
    assert information.measurements(Config(), [one])[0].classes == (0, 1)
    assert information.measurements(Config(classes=["owl", "0"]), [one])[0].classes == (2, 0)
    one.entry.metrics["config"]["data.name"] = "cifar10"
    one.entry.metrics["classes"] = ["airplane", "cat", "dog"]
    assert information.measurements(Config(), [one])[0].classes == (0, 2)
    with pytest.raises(UserError, match="must be two different classes"):
        information.check(Config(classes=["owl"]), "mine", NAMES, TrainConfig(), IMAGES)


def test_the_curve_starts_at_nothing_and_ends_at_the_class():
    result = analyzed(several())
    rows = [r for r in result.tables["curves"] if (r["eps"], r["seed"]) == (0.1, 0)]
    curve = {row["step"]: row["value"] for row in rows if row["metric"] == "information"}
    assert list(curve) == [0, 1, 133, 267, 400]
    assert curve[0] == pytest.approx(0, abs=0.1)
    assert curve[133] > 2
    assert curve[400] == pytest.approx(np.log(2), abs=0.1)
    within = [row["value"] for row in rows if row["metric"] == "within_class"]
    assert within[-1] == pytest.approx(0, abs=0.1)


def test_the_claims_where_all_holds():
    assert verdicts(analyzed(several())) == ["supported"] * 5


def test_what_does_not_fall_does_not_support():
    trained = [
        finished(eps, seed, network(HARD, seed=10 * seed + (eps > 0)))
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]
    small, rises, falls, lower, above = verdicts(analyzed(trained))
    assert (small, rises, above) == ("supported", "supported", "supported")
    assert falls == "contradicted"
    assert lower == "inconclusive"


def test_what_never_rose_does_not_fall():
    falling = (10.0, 5.0, 2.0, 1.0, 0.0)
    trained = [
        finished(eps, seed, network(falling, seed=10 * seed + (eps > 0)))
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]
    result = analyzed(trained)
    assert result.findings[1].verdict == "contradicted"
    assert result.findings[2].because == "it did not rise before"


def test_what_rises_to_the_end_is_no_fall():
    rising = (None, 0.0, 1.0, 5.0, 20.0)
    trained = [
        finished(eps, seed, network(rising, seed=10 * seed + (eps > 0)))
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]
    assert analyzed(trained).findings[2].verdict == "contradicted"


@pytest.mark.parametrize("rounding", [0.0, 1e-6])
def test_images_that_look_alike_in_every_draw_are_refused(rounding):
    trained = several()
    for question, found in trained[0].measured.items():
        if isinstance(question, Draws) and question.part == 0:
            same = np.repeat(found.difference_NM[:, :1], question.draws, axis=1)
            same = same * (1 + rounding * RNG.normal(size=same.shape))
            trained[0].measured[question] = found._replace(difference_NM=same)
    with pytest.raises(UserError, match="look alike in every draw"):
        analyzed(trained)


def test_a_network_that_always_says_the_same_knows_nothing():
    trained = several()
    for question, found in trained[0].measured.items():
        if isinstance(question, Draws) and question.part == 0:
            same = 7 + 1e-9 * RNG.normal(size=found.difference_NM.shape)
            trained[0].measured[question] = found._replace(difference_NM=same)
    result = analyzed(trained)
    rows = [r for r in result.tables["curves"] if (r["eps"], r["seed"]) == (0.0, 0)]
    assert {r["value"] for r in rows if r["metric"] == "information"} == {0.0}
    assert {r["value"] for r in rows if r["metric"] == "nearest_neighbours"} == {None}


def test_estimators_that_are_not_known_decide_nothing(monkeypatch):
    trained = several()
    assert analyzed(trained).findings[3].verdict == "supported"
    monkeypatch.setattr(information, "nearest_neighbours", lambda _y_NM: None)
    lower = analyzed(trained).findings[3]
    assert lower.high < 0
    assert lower.verdict == "inconclusive"
    assert lower.because == "no estimate by nearest neighbours agrees: not known"


def test_estimators_that_disagree_decide_nothing():
    """Some images with far more noise: with one noise for all, it seems to be under log 2."""
    noise = np.where(np.arange(60) % 6 == 0, 400.0, 1.0)[:, None]
    trained = [
        finished(eps, seed, network((None, 2.0, 10.0, 1.0, 0.0), 10 * seed, noise=noise))
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]
    above = analyzed(trained).findings[4]
    assert above.high < 0
    assert above.verdict == "inconclusive"
    assert above.because.startswith("estimators disagree: by a noise of each image's own +")


def test_the_ends_are_compared_over_all_sets_of_images():
    trained = [
        finished(eps, seed, network(spreads, seed=10 * seed, parts=3))
        for seed in range(3)
        for eps, spreads in ((0.0, HARD), (0.1, SMOOTHED))
    ]
    result = analyzed(trained)
    ends = {}
    for row in result.tables["curves"]:
        if row["metric"] == "information" and row["step"] == STEPS:
            ends.setdefault((row["eps"], row["seed"]), []).append(row["value"])
    assert {len(sets) for sets in ends.values()} == {9}
    apart = [np.mean(ends[0.1, seed]) - np.mean(ends[0.0, seed]) for seed in range(3)]
    above = [np.mean(ends[0.1, seed]) - np.log(2) + 0.05 for seed in range(3)]
    assert result.findings[3].value == pytest.approx(np.mean(apart))
    assert result.findings[4].value == pytest.approx(np.mean(above))


def test_hard_networks_that_have_not_learnt_close_the_gate_of_the_end():
    said = verdicts(analyzed(several(learnt=0.9)))
    assert said == ["supported", "supported", "not tested", "not tested", "not tested"]


@pytest.mark.parametrize(
    ("keys", "because"),
    [({"protocol": "paper"}, "the default classes"), ({"classes": ["dog", "cat"]}, "the default")],
)
def test_other_views_test_nothing(keys, because):
    result = information.analyze(*asked_by(keys), "mine")
    assert set(verdicts(result)) == {"not tested"}
    assert all(because in found.because for found in result.findings)


@pytest.mark.parametrize("keys", [{"classes": ["0", "dog"]}, {"subsets": 1, "redraws": 1}])
def test_keys_that_change_no_judged_number_leave_the_claims(keys):
    assert verdicts(information.analyze(*asked_by(keys), "mine")) == ["supported"] * 5


def asked_by(keys):
    """A study with these keys, and networks that answer it."""
    study = Config(snapshots=SNAPSHOTS, **keys)
    chosen = information._chosen(study, "mine", NAMES)
    trained = several()
    for one in trained:
        for place, part in [*((place, 0) for place in (0, 1, 133, 267)), *LAST]:
            wanted = information._draws(study, chosen, place, part)
            found = one.measured[information._draws(Config(), CHOSEN, place, part)]
            one.measured[wanted] = found._replace(
                difference_NM=found.difference_NM[:, : wanted.draws]
            )
    return study, trained


LAST = [(None, 0), (None, 1), (None, 2)]


def test_the_end_has_intervals_over_disjoint_subsets_and_redraws():
    study = Config(snapshots=SNAPSHOTS, subsets=4, redraws=2)
    rising = (None, 0.0, 1.0, 2.0, 3.0)
    trained = [
        finished(0.0, seed, network(rising, seed, study=study, parts=3)) for seed in range(2)
    ]
    result = information.analyze(study, trained, "mine")
    rows = [r for r in result.tables["curves"] if (r["metric"], r["step"]) == ("information", 400)]
    assert [(r["subset"], r["redraw"]) for r in rows[:6]] == [
        *((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)),
    ]
    values = np.array([r["value"] for r in rows]).reshape(2, 3, 2)
    assert len(set(values.ravel().tolist())) == 12
    by_kind = {r["interval"]: r for r in result.tables["information"] if r["step"] == 400}
    for kind, axes, n in (("subsets", (0, 2), 3), ("redraws", (0, 1), 2)):
        expected = over_seeds(values.mean(axis=axes))
        assert (by_kind[kind]["value"], by_kind[kind]["n"]) == (pytest.approx(values.mean()), n)
        assert by_kind[kind]["low"] == pytest.approx(expected.low)
    # Each estimate is that of its own images and draws.
    drawn = trained[0].measured[information._draws(study, CHOSEN, None, 1)]
    y_NM = drawn.difference_NM[:, 24:]
    assert values[0, 1, 1] == estimate(y_NM[:, :20], y_NM[:, 20:], drawn.labels_N).total
    [said] = [line for line in result.notes if "disjoint" in line]
    assert f"{values.mean():.3f} as the mean +- " in said
    assert re.search(r"\+- [\d.]+ over 3 disjoint sets of images, \+- [\d.]+ over 2 redraws$", said)


def test_other_estimators_stand_beside_it():
    result = analyzed(several())
    end = {r["metric"]: r["value"] for r in result.tables["information"] if r["step"] == 400}
    assert end["own_variances"] == pytest.approx(np.log(2), abs=0.15)
    assert end["nearest_neighbours"] == pytest.approx(np.log(2), abs=0.15)
    assert any("by nearest neighbours" in line for line in result.notes)


def test_missing_eps_and_seeds_are_named():
    result = analyzed([one for one in several() if one.keys["eps"] == 0])
    because = [found.because for found in result.findings]
    assert because[2:5] == [
        "needs runs at eps 0.1",
        "needs runs at eps 0 and 0.1",
        "needs runs at eps 0 and 0.1",
    ]


def test_claims_of_one_eps_need_no_seeds_of_the_other():
    hard = [one for one in several() if one.keys["eps"] == 0]
    smoothed = [one for one in several() if one.keys["eps"] == 0.1]
    some = analyzed([*hard, smoothed[0]]).findings
    assert [(found.n, found.verdict) for found in some[:2]] == [(3, "supported")] * 2
    assert some[3].n == 1


def test_the_table_shows_failed_seeds():
    trained = several()
    trained[-1].entry.status = "failed"
    result = analyzed(trained)
    assert [line[:2] for line in result.summary[1:]] == [["0", "3"], ["0.1", "2 (1 failed)"]]


def test_the_figure_has_information_its_parts_and_the_other_meters():
    result = analyzed(several())
    figure = information.draw(Config(), [result])["information"]
    figure.draw_without_rendering()
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels[:3] == ["I(X;Y) (nats)", "its parts (nats)", "NC1 (within/between)"]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["log 2", "at most log 60 = 4.09"]
    assert figure.axes[0].get_ylim()[1] < np.log(60)  # else all curves lie on the ground
    assert len(figure.axes[0].get_legend().get_texts()) == 2
