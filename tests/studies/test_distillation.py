"""The study of distillation on made-up results: runs, curves, claims, figures."""

from pathlib import Path

import numpy as np
import pytest

from lsexp.config import (
    AlexNetConfig,
    DistillationConfig,
    LossConfig,
    MLPConfig,
    OptimConfig,
    TrainConfig,
)
from lsexp.errors import UserError
from lsexp.measure import Drawn, Measured, Measurement, Viewed
from lsexp.runs.catalog import Entry
from lsexp.studies import Trained, distillation, information, other_spread
from lsexp.studies.distillation import Config

EPS, TEMPERATURES = [0.0, 0.1, 0.2], [1.0, 4.0]
CLASSES = ["airplane", "cat", "dog", "owl"]
STUDY = Config(eps=EPS, temperatures=TEMPERATURES, seeds=[0, 1, 2])


def asked(study, **keys):
    loss = DistillationConfig(teacher="of the sweep", scale=3, **keys)
    base = TrainConfig(model=MLPConfig(widths=[8]), loss=loss)
    return distillation.runs(study, base, TrainConfig(model=MLPConfig()))


def test_teachers_come_before_their_students_who_have_their_seed():
    runs = asked(STUDY)
    assert len(runs) == 3 * (3 + 3 + 2 + 2)
    for place, run in enumerate(runs):
        if run.keys["role"] != "student":
            assert run.teacher is None
            assert type(run.config.loss) is LossConfig
            assert run.config.loss.eps == run.keys["eps"]
            continue
        before = runs[:place]
        assert any(run.teacher is one for one in before)
        assert run.teacher.keys["role"] == "teacher"
        assert run.teacher.keys["eps"] == run.keys["eps"]
        assert run.teacher.config.seed == run.config.seed == run.keys["seed"]
        assert run.config.loss.temperature == run.keys["temperature"]
        assert (run.config.loss.scale, run.config.loss.eps) == (3, 0)
    places = [(run.keys["eps"], run.keys["temperature"]) for run in runs if run.teacher][:4]
    assert places == [(0, 1), (0, 4), (0.1, 1), (0.2, 1)]


def test_baseline_students_have_the_students_network_and_the_teachers_their_own():
    widths = {run.keys["role"]: run.config.model.widths for run in asked(STUDY)}
    assert widths == {"teacher": [1200, 1200], "baseline": [8], "student": [8]}


def test_the_full_grid_has_every_teacher_at_every_temperature():
    full = Config(eps=EPS, temperatures=TEMPERATURES, seeds=[0], grid="full")
    places = {(run.keys["eps"], run.keys["temperature"]) for run in asked(full) if run.teacher}
    assert places == {(eps, t) for eps in EPS for t in TEMPERATURES}


def test_matching_logits_has_no_temperatures():
    places = [run.keys["temperature"] for run in asked(STUDY, match="logits") if run.teacher]
    assert set(places) == {1.0}


@pytest.mark.parametrize(("match", "rate"), [("logits", 1.0), ("cross_entropy", 0.1)])
def test_whoever_has_no_teacher_learns_at_a_rate_for_labels(match, rate):
    loss = DistillationConfig(teacher="of the sweep", match=match)
    base = TrainConfig(model=MLPConfig(), loss=loss, optim=OptimConfig(lr=0.1))
    taught = TrainConfig(model=MLPConfig(), optim=OptimConfig(lr=1.0))
    rates = {
        run.keys["role"]: run.config.optim.lr for run in distillation.runs(STUDY, base, taught)
    }
    assert rates == {"teacher": 1.0, "baseline": rate, "student": 0.1}


def test_what_does_nothing_at_temperature_1_is_left_out_there():
    runs = [run for run in asked(STUDY, student_temperature="tied", t_squared=True) if run.teacher]
    for run in runs:
        hot = run.keys["temperature"] != 1
        assert run.config.loss.t_squared is hot
        assert run.config.loss.student_temperature == ("tied" if hot else "1")


def test_hard_teachers_may_have_dropout():
    runs = asked(STUDY, match="logits", teachers_dropout=0.5)
    dropout = {
        run.keys["eps"]: run.config.model.dropout for run in runs if run.keys["role"] == "teacher"
    }
    assert dropout == {0.0: 0.5, 0.1: 0.0, 0.2: 0.0}
    loss = DistillationConfig(teacher="x", teachers_dropout=0.5)
    base = TrainConfig(model=MLPConfig(), loss=loss)
    with pytest.raises(UserError, match="goes with teachers that are MLPs"):
        distillation.runs(STUDY, base, TrainConfig(model=AlexNetConfig()))


def test_without_distillation_in_the_recipe_the_protocol_is_the_papers():
    base = TrainConfig(model=MLPConfig(), loss=LossConfig(scale=3))
    assert distillation.partner(STUDY, base, "mine") == "mine"
    [student, *_] = [run for run in distillation.runs(STUDY, base, base) if run.teacher]
    expected = DistillationConfig(teacher="of the sweep", scale=3)
    assert student.config.loss == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eps": [0.1]}, r"eps=0\.1: must have 0, the hard teacher"),
        ({"eps": []}, r"eps=\[\]: must hold at least one"),
        ({"temperatures": [1.0, 1.0]}, r"temperatures=1\.0,1\.0: 1 is there twice"),
        ({"seeds": []}, r"seeds=\[\]: must hold"),
    ],
)
def test_lists_that_make_no_figure(keys, message):
    with pytest.raises(UserError, match=message):
        asked(Config(**keys))


RIGHT = np.eye(4)[np.arange(40) % 4]


def said(eps, seed):
    """What a teacher says: as soft as its smoothing, wrong classes less alike the more it is."""
    rng = np.random.default_rng(seed)
    likeness = np.random.default_rng(9).normal(size=(40, 4))
    logits = 20 * (1 - eps) * RIGHT + (1 - eps) * likeness + eps * rng.normal(size=(40, 4))
    labels = np.arange(40) % 4
    views = Viewed(logits.astype(np.float32), labels, np.arange(40))
    features = (RIGHT + 0.1 * rng.normal(size=(40, 4))).astype(np.float32)
    nothing = np.zeros(4, np.float32)
    clusters = Measured(views.logits_NK, features, labels, np.arange(40), RIGHT[:4], nothing)
    asked = distillation.Views("holdout", 0, None, flip=False)
    return {asked: views, Measurement("train", None, 100): clusters}


def trained(run, accuracy, val=None):
    entry = Entry(Path("run"), "finished")
    entry.config = {
        "data.name": "cifar10",
        "budget": "cpu",
        "data.split": "holdout",
        "data.split_seed": 0,
        "data.train_size": None,
    }
    scores = {"nll": 0.5, "ece": 0.1, "brier": 0.2}
    entry.metrics = {
        "test": {"accuracy": accuracy, **scores},
        "val": {"accuracy": accuracy if val is None else val, **scores},
        "train": {"accuracy": 1.0, "images": 40},
        "targets": {"eps_uniform": run.keys["eps"]},
    }
    measured = said(run.keys["eps"], run.keys["seed"]) if run.keys["role"] == "teacher" else {}
    return Trained(run.keys, entry, measured)


def accuracy_of(keys, *, hard=0.05, cold=0.02, smoothed=-0.02):
    base = 0.8 + 0.001 * keys["seed"]
    if keys["role"] == "teacher":
        return base + 0.1
    if keys["role"] == "baseline":
        return base + 0.003 * ((keys["seed"] * 7 + int(10 * keys["eps"])) % 3)
    if keys["eps"] == 0:
        return base + (hard if keys["temperature"] == 4 else cold)
    return base + smoothed + 0.002 * ((keys["seed"] * 5) % 3)


def networks(study=STUDY, **keys):
    return [trained(run, accuracy_of(run.keys, **keys)) for run in asked(study)]


def test_the_claims_as_the_paper_has_them():
    result = distillation.analyze(STUDY, networks(), "mine")
    assert [found.verdict for found in result.findings] == ["supported"] * 5
    helps, always, baseline, no_better, against = result.findings
    assert helps.value == pytest.approx(always.value + 0.03)
    assert no_better.value == pytest.approx(baseline.value - 0.0025)
    assert {found.claim.where for found in result.findings} == {"Figure 5"}
    assert helps.claim.disputed_by == ""
    assert "Chandrasegaran" in baseline.claim.disputed_by
    assert "Shen" in against.claim.disputed_by
    best = next(line for line in result.summary if line[0] == "student (best T)")
    assert best[1:3] == ["0", "4"]


def test_the_claims_as_others_have_them():
    result = distillation.analyze(STUDY, networks(cold=-0.03, smoothed=0.06), "mine")
    verdicts = {found.claim.name: found.verdict for found in result.findings}
    assert verdicts == {
        "hard-teachers-help": "supported",
        "hard-teachers-help-always": "contradicted",
        "smoothed-teachers-do-not-help": "contradicted",
        "smoothed-teachers-no-better": "contradicted",
        "smoothed-teachers-teach-worse": "contradicted",
    }


def test_equal_to_smoothed_labels_is_no_better_and_not_worse():
    """Students of smoothed teachers as good as without them, to a tenth of a point."""
    runs = asked(STUDY)
    found = [trained(run, 0.8 if run.keys["eps"] else accuracy_of(run.keys)) for run in runs]
    for one in found:
        if one.keys["role"] == "student" and one.keys["eps"]:
            one.entry.metrics["test"]["accuracy"] += 0.001 * (one.keys["seed"] - 1)
    findings = {one.claim.name: one for one in distillation.analyze(STUDY, found, "mine").findings}
    worse, no_better = (
        findings[f"smoothed-teachers-{name}"] for name in ("do-not-help", "no-better")
    )
    assert worse.value == pytest.approx(0)
    assert (worse.verdict, no_better.verdict) == ("inconclusive", "supported")


def test_another_loss_than_the_papers_is_told_in_the_place():
    runs = networks()
    for one in runs:
        if one.keys["temperature"] == 4:
            one.entry.config |= {"loss.student_temperature": "tied", "loss.t_squared": True}
    result = distillation.analyze(STUDY, runs, "mine")
    assert {found.claim.where for found in result.findings} == {
        "Figure 5, with another loss: loss.student_temperature=tied, loss.t_squared=true"
    }


def test_gamma_counts_the_teachers_share_of_the_loss():
    def gammas(**loss):
        runs = networks()
        for one in runs:
            if one.keys["role"] == "student":
                one.entry.config |= {f"loss.{name}": value for name, value in loss.items()}
        rows = distillation.analyze(STUDY, runs, "mine").tables["distillation"]
        return {(row["role"], row["eps"]): row["gamma"] for row in rows if row["eps"] == 0.1}

    whole, shared = gammas(match="cross_entropy"), gammas(match="cross_entropy", beta=0.6)
    assert shared["student", 0.1] == pytest.approx(0.6 * whole["student", 0.1])
    assert shared["teacher", 0.1] == whole["teacher", 0.1]
    assert gammas(match="logits", beta=0.6) == whole


def test_the_temperature_is_chosen_on_val_and_told_on_test():
    """On test, temperature 4 is better; on val, 1 is."""
    runs = asked(STUDY)
    found = [
        trained(run, accuracy_of(run.keys), val=0.9 - 0.1 * (run.keys["temperature"] == 4))
        for run in runs
    ]
    result = distillation.analyze(STUDY, found, "mine")
    assert next(line for line in result.summary if line[0] == "student (best T)")[2] == "1"
    assert result.findings[0].value == pytest.approx(
        np.mean([0.02 - 0.003 * ((7 * seed) % 3) for seed in range(3)])
    )


def test_gamma_is_that_of_what_was_learnt_from():
    result = distillation.analyze(STUDY, networks(), "mine")
    rows = {
        (row["role"], row["eps"], row["temperature"]): row["gamma"]
        for row in result.tables["distillation"]
    }
    assert rows["baseline", 0.2, None] == pytest.approx(0.2)
    assert rows["student", 0.1, 1.0] == rows["teacher", 0.1, None]
    assert rows["student", 0.0, 4.0] > rows["student", 0.0, 1.0]


def test_why_is_told_for_each_teacher():
    rows = distillation.analyze(STUDY, networks(), "mine").tables["teachers"]
    assert [(row["eps"], row["seed"]) for row in rows][:4] == [(0, 0), (0.1, 0), (0.2, 0), (0, 1)]
    hard, first, second = rows[:3]
    assert hard["wrong_class_agreement"] == 1
    assert 1 > first["wrong_class_agreement"] > second["wrong_class_agreement"]
    assert hard["nc1"] > 0


def test_what_teachers_keep_within_a_class_is_told_where_they_saw_images_in_many_ways():
    runs = networks()
    assert {row["information"] for row in analyzed_teachers(runs)} == {None}
    draws = information.draws_of_the_end("cifar10", CLASSES)
    rng = np.random.default_rng(0)
    for one in runs:
        one.entry.config["augment.shift"] = 2
        one.entry.metrics |= {"classes": CLASSES, "config": {"data.name": "cifar10"}}
        if one.keys["role"] == "teacher":
            labels = np.repeat([0, 1], 30)
            means = 1000.0 * labels + (0 if one.keys["eps"] else 10) * rng.normal(size=60)
            values = means[:, None] + rng.normal(size=(60, draws.draws))
            one.measured[draws] = Drawn(values.astype(np.float32), labels, np.arange(60))
    assert draws in distillation.measurements(STUDY, runs)
    assert draws.draws == 24  # no more than are used
    lines = distillation.analyze(STUDY, runs, "mine").notes
    assert any("300 images at most of airplane and dog each, 24 draws" in line for line in lines)
    rows = analyzed_teachers(runs)
    for row in rows:
        assert row["information"] == pytest.approx(
            np.log(2) + row["within_class_information"], abs=0.01
        )
        assert (row["within_class_information"] > 1) == (row["eps"] == 0)
    runs[0].measured[draws] = (
        runs[0]
        .measured[draws]
        ._replace(  # alike in every draw
            difference_NM=np.repeat(runs[0].measured[draws].difference_NM[:, :1], draws.draws, 1)
        )
    )
    assert analyzed_teachers(runs)[0]["information"] is None


def analyzed_teachers(runs):
    return distillation.analyze(STUDY, runs, "mine").tables["teachers"]


def test_a_full_grid_has_differences_and_a_second_figure():
    full = Config(eps=EPS, temperatures=TEMPERATURES, seeds=[0, 1, 2], grid="full")
    result = distillation.analyze(full, networks(full), "mine")
    rows = {(row["eps"], row["temperature"]): row["value"] for row in result.tables["grid"]}
    assert set(rows) == {(eps, t) for eps in (0.1, 0.2) for t in TEMPERATURES}
    expected = -0.02 - 0.05 + 0.002 * np.mean([(5 * seed) % 3 for seed in range(3)])
    assert rows[0.1, 4.0] == pytest.approx(expected)
    figures = distillation.draw(full, [result])
    assert list(figures) == ["distillation", "grid"]
    for figure in figures.values():
        figure.draw_without_rendering()


def test_what_is_missing_is_left_out():
    some = networks()
    for one in some:
        if one.keys["role"] == "baseline" or one.keys == {**one.keys, "role": "teacher", "seed": 2}:
            one.entry.status = "failed"
    result = distillation.analyze(STUDY, some, "mine")
    because = [found.because for found in result.findings]
    no_baseline = "none is finished of: no teacher, eps 0.1; no teacher, eps 0.2"
    assert because[:4] == ["needs baseline students at eps 0"] * 2 + [no_baseline] * 2
    assert result.findings[4].verdict == "supported"
    distillation.draw(STUDY, [result])["distillation"].draw_without_rendering()


def failed(trained, **keys):
    for one in trained:
        if keys.items() <= one.keys.items():
            one.entry.status = "failed"
    return trained


def test_nothing_is_chosen_from_fewer_than_were_asked_for():
    """Without temperature 4 hard teachers would seem to help less."""
    some = failed(networks(), role="student", temperature=4.0)
    because = [found.because for found in distillation.analyze(STUDY, some, "mine").findings]
    lacking = "none is finished of: student, eps 0, T 4"
    assert [because[place] for place in (0, 1, 4)] == [f"the hard teacher: {lacking}"] * 3
    some = failed(networks(), role="student", eps=0.2)
    because = [found.because for found in distillation.analyze(STUDY, some, "mine").findings]
    lacking = "none is finished of: student, eps 0.2, T 1"
    assert because == ["", "", lacking, lacking, f"smoothed teachers: {lacking}"]


def test_without_hard_teachers_nothing_is_tested():
    some = failed(networks(), role="teacher", eps=0.0)
    for found in distillation.analyze(STUDY, some, "mine").findings:
        assert (found.verdict, found.because) == ("not tested", "needs runs at eps 0")
        assert found.value is not None


def test_another_spread_than_the_papers_is_not_tested():
    others = networks()
    for one in others:
        one.entry.config["loss.spread"] = "others"
    for found in distillation.analyze(STUDY, others, "mine").findings:
        assert (found.verdict, found.because) == (
            "not tested",
            other_spread(others),
        )


def test_the_grid_is_drawn_as_it_is_tabled():
    """Paired by seed, where smoothed teachers have fewer seeds than hard ones."""
    full = Config(eps=EPS, temperatures=TEMPERATURES, seeds=[0, 1, 2], grid="full")
    some = networks(full)
    for seed in (0, 1):
        failed(some, role="student", eps=0.1, seed=seed)
    result = distillation.analyze(full, some, "mine")
    drawn = distillation.draw(full, [result])["grid"].axes[1].images[0].get_array()
    for row in result.tables["grid"]:
        place = EPS.index(row["eps"]), TEMPERATURES.index(row["temperature"])
        assert drawn[place] == pytest.approx(100 * row["value"])


def test_the_toy_stands_beside_the_papers_errors():
    study = Config(eps=[0.0, 0.1], seeds=[0, 1, 2])
    found = [trained(run, accuracy_of(run.keys)) for run in asked(study, match="logits")]
    for one in found:
        one.entry.metrics["val"] = None
        one.entry.config |= {"loss.match": "logits", "data.name": "mnist"}
    result = distillation.analyze(study, found, "mnist_toy")
    rows = {(row["role"], row["teacher_eps"]): row for row in result.tables["toy"]}
    assert {place: row["paper"] for place, row in rows.items()} == {
        ("teacher", 0.0): 0.67,
        ("teacher", 0.1): 0.59,
        ("student", 0.0): 0.74,
        ("student", 0.1): 0.91,
    }
    assert rows["student", 0.1]["public_reproduction"] == 1.05
    told = [row[0:2] + row[5:6] for row in result.summary[1:9]]
    assert told[0] == ["paper, teacher", "0", "99.33"]
    assert told[3] == ["paper, student", "0.1", "99.09"]
    assert told[7] == ["public reproduction, student", "0.1", "98.95"]
    assert rows["teacher", 0.0]["value"] == pytest.approx(100 * (1 - 0.901))
    assert result.findings[0].n == 3  # the only temperature needs no val
    paper = [(found.claim.where, found.paper) for found in result.findings]
    elsewhere = ("Figure 5, with another loss: loss.match=logits", None)
    assert paper == [elsewhere] * 4 + [("section 4", pytest.approx(-0.0017))]
    assert any(line.startswith("MNIST toy, student") for line in result.notes)
    assert any(line.startswith("students that match logits have a rate") for line in result.notes)


def test_others_numbers_come_first_in_the_table():
    found = [trained(run, accuracy_of(run.keys)) for run in asked(STUDY)]
    summary = distillation.analyze(STUDY, found, "cifar10_distill").summary
    assert summary[1] == [
        *("paper, no teacher (Table 2)", "0", "", "", "0", "", "86.8 +- 0.2", "", "")
    ]
    others = [row for row in summary if row[0].startswith("public reproduction, ")]
    # of eps 0, 0.1 and 0.2 it has the first; hard teachers stand at their gamma
    assert [(row[0].split(", ")[1], row[4], row[5]) for row in others] == [
        ("no teacher", "0", "85.4"),
        *(("hard teacher", *of) for of in (("0.02", "85.1"), ("0.08", "86.0"))),
        *(("hard teacher", *of) for of in (("0.335", "87.7"), ("0.565", "86.7"))),
        ("smoothed teachers", "0", "85.0"),
    ]
    assert {len(row) for row in summary} == {9}
    for one in found:  # loss.teachers=cifar10_alexnet was typed
        if one.keys["role"] == "teacher":
            one.entry.config["model.name"] = "alexnet"
    alone = distillation.analyze(STUDY, found, "cifar10_distill").summary
    assert not any("paper" in row[0] or "reproduction" in row[0] for row in alone)


@pytest.mark.parametrize("recipe", ["mnist_mlp", "mnist_toy_teacher", "cifar10_alexnet"])
def test_networks_that_teach_in_the_paper_are_not_its_students(recipe):
    found = [trained(run, accuracy_of(run.keys)) for run in asked(STUDY)]
    for one in found:
        if one.keys["role"] != "baseline":
            one.entry.status = "missing"
        one.entry.config |= {"data.name": recipe.partition("_")[0]}
    result = distillation.analyze(STUDY, found, recipe)
    assert not result.papers
    assert not any("public reproduction" in line for line in result.notes)


def test_only_teachers_are_measured():
    roles = {run.keys["role"]: distillation.measured(run.keys) for run in asked(STUDY)}
    assert roles == {"teacher": True, "baseline": False, "student": False}
