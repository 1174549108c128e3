"""The study of eps on made-up outputs: values by hand, missing and failed seeds, the finding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsexp import studies
from lsexp.analysis.calibration import scores
from lsexp.config import MLPConfig, TrainConfig, walk
from lsexp.errors import UserError
from lsexp.runs.catalog import Entry
from lsexp.studies import Trained, eps

LABELS = np.arange(40) % 4


def outputs(right, confidence=0.7, seed=0):
    """Logits that get the first `right` of 40 examples right, with one confidence."""
    predicted = np.where(np.arange(40) < right, LABELS, (LABELS + 1) % 4)
    logits = np.full((40, 4), np.log((1 - confidence) / 3), np.float32)
    logits[np.arange(40), predicted] = np.log(confidence)
    return logits


class Made(Trained):
    """A run whose outputs are given."""

    def __init__(self, keys, logits, status="finished"):
        entry = Entry(Path("runs") / f"run-{keys['eps']}-{keys['seed']}", status)
        entry.config = {"data.name": "cifar10", "model.name": "alexnet", "budget": "cpu"}
        if status == "finished":
            found = scores(logits, LABELS)
            entry.metrics = {"val": found, "test": found, "train": {"accuracy": 1.0}}
        super().__init__(keys, entry)
        self.__dict__["logits"] = logits

    @property
    def outputs(self):
        parts = (("logits", self.logits), ("labels", LABELS))
        return {f"{split}.{name}": value for split in ("val", "test") for name, value in parts}


def made(right_by_eps, **options):
    """Runs with so many right answers: {eps: [of seed 0, of seed 1, ...]}; None: failed."""
    return [
        Made(
            {"eps": e, "seed": seed}, outputs(right or 0), "failed" if right is None else "finished"
        )
        for e, rights in right_by_eps.items()
        for seed, right in enumerate(rights)
    ]


def analyzed(right_by_eps, recipe="digits_mlp"):
    trained = made(right_by_eps)
    seeds = sorted({one.keys["seed"] for one in trained})
    return eps.analyze(eps.Config(eps=list(right_by_eps), seeds=seeds), trained, recipe)


def drawn(*results):
    return eps.draw(eps.Config(), results)["eps"]


def only(rows, **keys):
    [row] = [row for row in rows if all(row[name] == value for name, value in keys.items())]
    return row


def base():
    return TrainConfig(model=MLPConfig(), precision="fp32")


def test_runs_are_every_eps_with_every_seed_and_nothing_else_changes():
    runs = eps.runs(eps.Config(eps=[0.0, 0.1], seeds=[3, 5]), base())
    assert [run.keys for run in runs] == [
        {"eps": 0.0, "seed": 3},
        {"eps": 0.1, "seed": 3},
        {"eps": 0.0, "seed": 5},
        {"eps": 0.1, "seed": 5},
    ]
    for run in runs:
        assert (run.config.loss.eps, run.config.seed) == (run.keys["eps"], run.keys["seed"])
        loss = replace(run.config.loss, eps=base().loss.eps)
        assert replace(run.config, loss=loss, seed=base().seed) == base()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (eps.Config(eps=[]), r"^eps=\[\]: must hold at least one"),
        (eps.Config(seeds=[]), r"^seeds=\[\]: must hold at least one"),
        (eps.Config(seeds=[1, 2, 1]), "^seeds=1,2,1: 1 is there twice"),
        (eps.Config(eps=[0.3, 0.1 + 0.2]), r"^eps=0\.3,0\.30000000000000004: 0\.3 is there twice"),
    ],
)
def test_empty_lists_and_values_given_twice_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        eps.runs(config, base())


def test_numbers_that_are_alike_only_in_their_first_digits_are_two_seeds():
    assert len(eps.runs(eps.Config(eps=[0.0], seeds=[10**6, 10**6 + 1]), base())) == 2


def test_means_and_intervals_by_hand():
    rows = analyzed({0.0: [30, 32, 34]}).tables["eps"]
    row = only(rows, split="test", metric="accuracy", interval="seeds")
    # 75, 80 and 85 %: standard deviation 5, t(2) = 4.3027, over the root of 3.
    assert row["value"] == pytest.approx(0.80)
    assert row["high"] - row["value"] == pytest.approx(0.05 * 4.3027 / 3**0.5, rel=1e-4)
    assert row["n"] == 3
    examples = only(rows, split="test", metric="accuracy", interval="examples")
    both = only(rows, split="test", metric="accuracy", interval="both")
    assert examples["n"] == 40
    assert both["high"] - both["low"] >= max(
        row["high"] - row["low"], examples["high"] - examples["low"]
    )
    ece = only(rows, split="test", metric="ece")
    assert ece["value"] == pytest.approx((0.05 + 0.10 + 0.15) / 3)


def test_every_metric_is_the_mean_of_what_the_runs_have_in_their_metrics():
    trained = made({0.1: [20, 25]})
    result = eps.analyze(eps.Config(eps=[0.1], seeds=[0, 1]), trained, "digits_mlp")
    for metric in ("accuracy", "nll", "ece", "brier"):
        expected = np.mean([one.entry.metrics["val"][metric] for one in trained])
        rows = [r for r in result.tables["eps"] if (r["split"], r["metric"]) == ("val", metric)]
        assert {round(row["value"], 12) for row in rows} == {round(expected, 12)}


def test_one_seed_has_no_interval_over_seeds():
    result = analyzed({0.0: [30], 0.1: [31]})
    rows = [r for r in result.tables["eps"] if r["metric"] == "accuracy" and r["split"] == "test"]
    assert [row["interval"] for row in rows] == [None, "examples"] * 2  # at each eps
    [finding] = result.findings
    assert (finding.verdict, finding.because) == ("inconclusive", "decided from 3 seeds on")
    assert finding.low is None
    assert result.summary[1][2] == "75.00"


def test_differences_are_paired_by_seed():
    rows = analyzed({0.0: [20, 30, 36], 0.1: [22, 32, 39]}).tables["differences"]
    row = only(rows, split="test", metric="accuracy")
    # 5, 5 and 7.5 points: mean 5.83, far less spread than the runs themselves.
    assert row["value"] == pytest.approx((0.05 + 0.05 + 0.075) / 3)
    assert row["low"] > 0.02
    assert row["correlation"] > 0.99
    assert (row["n"], row["p"], row["p_holm"]) == (3, None, None)


def test_a_seed_that_one_eps_lacks_is_left_out_of_the_difference_but_not_of_the_mean():
    result = analyzed({0.0: [20, 30, 36], 0.1: [22, None, 39]})
    row = only(result.tables["differences"], split="test", metric="accuracy")
    assert (row["n"], row["value"]) == (2, pytest.approx((0.05 + 0.075) / 2))
    mean = only(result.tables["eps"], eps=0.0, split="test", metric="accuracy", interval="seeds")
    assert mean["n"] == 3
    assert result.summary[2][1] == "2 (1 failed)"
    assert [row["status"] for row in result.tables["runs"]].count("failed") == 1


def test_p_values_come_with_the_seeds_that_could_reject_and_are_corrected():
    def rows(seeds):
        hard = [20, 21, 22, 23, 24, 25, 26][:seeds]
        better = [23, 25, 26, 27, 26, 29, 30][:seeds]
        alike = [21, 20, 23, 22, 25, 24, 27][:seeds]
        table = analyzed({0.0: hard, 0.1: better, 0.2: alike}).tables["differences"]
        return [only(table, eps=e, split="test", metric="accuracy") for e in (0.1, 0.2)]

    better, alike = rows(7)
    assert better["p"] == pytest.approx(2 / 128)
    assert better["p_holm"] == pytest.approx(4 / 128)
    assert alike["p_holm"] == alike["p"] > 0.5
    better, _ = rows(6)  # the smallest that Holm could give two of them is .0625
    assert better["p"] == pytest.approx(2 / 64)
    assert better["p_holm"] is None


def test_fewer_seeds_of_one_eps_take_no_p_from_another():
    hard, better = list(range(10, 20)), list(range(15, 25))

    def holms(*others):
        rights = {0.0: hard} | {0.1 * (k + 1): right for k, right in enumerate(others)}
        table = analyzed(rights).tables["differences"]
        return [r["p_holm"] for r in table if (r["split"], r["metric"]) == ("test", "accuracy")]

    varied = [right + seed % 3 for seed, right in enumerate(better)]
    assert holms(varied, varied[:6]) == pytest.approx([2 * 2 / 2**10, 2 / 2**6])
    assert holms(varied[:6], varied[:1]) == [pytest.approx(2 / 2**6), None]


@pytest.mark.parametrize(
    ("hard", "smooth", "verdict"),
    [
        ([30, 31, 32], [30, 31, 32], "inconclusive"),  # alike: no spread, no interval
        ([20, 21, 22], [30, 32, 32], "contradicted"),  # 25 points
        ([20, 30, 25], [30, 20, 26], "inconclusive"),
    ],
)
def test_the_finding_follows_the_declared_rule(hard, smooth, verdict):
    [finding] = analyzed({0.0: hard, 0.1: smooth}).findings
    assert finding.claim is eps.UNCHANGED
    assert finding.verdict == verdict
    if hard == smooth:
        assert finding.because == "the values are all alike: no interval"


def test_elsewhere_than_on_the_papers_data_ten_seeds_decide():
    def finding(seeds):
        rights = {0.0: [20 + seed % 2 for seed in range(seeds)], 0.1: [30] * seeds}
        trained = made(rights)
        for one in trained:
            one.entry.config["data.name"] = "digits"
        study = eps.Config(eps=[0.0, 0.1], seeds=list(range(seeds)))
        return eps.analyze(study, trained, "digits_mlp").findings[0]

    assert finding(9).because == "decided from 10 seeds on"
    assert finding(9).verdict == "inconclusive"
    assert finding(10).verdict == "contradicted"


def test_another_spread_than_the_papers_is_not_tested():
    trained = made({0.0: [20, 21, 22], 0.1: [20, 22, 22]})
    study = eps.Config(eps=[0.0, 0.1], seeds=[0, 1, 2])
    for one in trained:
        one.entry.config["loss.spread"] = "uniform" if one.keys["eps"] else "others"
    [finding] = eps.analyze(study, trained, "cifar10_alexnet").findings
    assert finding.verdict != "not tested"  # of hard labels there is one kind
    for one in trained:
        one.entry.config["loss.spread"] = "others" if one.keys["eps"] else "uniform"
    [finding] = eps.analyze(study, trained, "cifar10_alexnet").findings
    assert finding.verdict == "not tested"
    assert finding.because.startswith("eps is spread over the other classes")


def test_differences_are_to_the_smallest_eps_whatever_the_order_typed():
    result = analyzed({0.1: [22, 32, 39], 0.0: [20, 30, 36]})
    assert {(row["eps"], row["minus"]) for row in result.tables["differences"]} == {(0.1, 0.0)}
    assert [row[0] for row in result.summary[1:]] == ["0", "0.1"]


def test_without_the_smallest_eps_there_are_no_differences_and_that_is_said():
    result = analyzed({0.0: [None, None], 0.1: [22, 32]})
    assert "differences" not in result.tables
    assert "no differences: they are to eps 0, seed by seed" in result.notes


def test_the_figure_invents_no_interval_and_tells_n_where_it_differs():
    accuracy = drawn(analyzed({0.0: [30], 0.1: [33]})).axes[0]
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert "mean; no interval from one seed" in labels
    ends = [
        point[1] for bars in accuracy.collections for line in bars.get_segments() for point in line
    ]
    assert np.isnan(ends).all()
    accuracy = drawn(analyzed({0.0: [30, 31], 0.1: [33, None]})).axes[0]
    assert sorted(text.get_text() for text in accuracy.texts) == ["n=1", "n=2"]


def test_differences_within_a_point_support_the_claim(monkeypatch):
    claim = eps.UNCHANGED._replace(margin=0.2)
    monkeypatch.setattr(eps, "UNCHANGED", claim)
    [finding] = analyzed({0.0: [20, 30, 36], 0.1: [22, 32, 39]}).findings
    assert finding.verdict == "supported"


def test_without_eps_0_and_0_1_nothing_is_tested():
    [finding] = analyzed({0.0: [30], 0.2: [31]}).findings
    assert (finding.verdict, finding.because) == ("not tested", "needs runs at eps 0 and 0.1")


def test_the_papers_numbers_come_first_where_it_has_any():
    result = analyzed({0.0: [30, 31], 0.1: [31, 33]}, recipe="cifar10_alexnet")
    first, second = result.tables["eps"][:2]
    assert (first["source"], first["eps"], first["value"]) == ("paper, Table 2", 0.0, 0.868)
    assert (second["low"], second["high"]) == (pytest.approx(0.864), pytest.approx(0.870))
    assert result.summary[1][:3] == ["0 paper", "", "86.8 +- 0.2 (val)"]
    [finding] = result.findings
    assert finding.paper == pytest.approx(-0.001)


def test_others_numbers_are_not_put_beside_another_network():
    trained = made({0.0: [30, 31], 0.1: [31, 33]})
    for one in trained:
        one.entry.config["model.name"] = "mlp"  # model=mlp was typed
    study = eps.Config(eps=[0.0, 0.1], seeds=[0, 1])
    result = eps.analyze(study, trained, "cifar10_alexnet")
    assert {row["source"] for row in result.tables["eps"]} == {"ours"}
    assert [row[0] for row in result.summary[1:]] == ["0", "0.1"]
    assert result.findings[0].paper is None
    assert not result.papers
    assert not any("public reproduction" in line for line in result.notes)


def test_the_figure_has_a_point_a_seed_and_the_papers():
    result = analyzed({0.0: [30, 31], 0.1: [31, 33]}, recipe="cifar10_alexnet")
    figure = drawn(result)
    accuracy, won, _, ece = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "test accuracy (%)",
        "test accuracy minus eps 0\n(points, paired by seed)",
        "test NLL (nats)",
        "test ECE (15 bins)",
    ]
    points = accuracy.lines[0]
    assert sorted(points.get_ydata()) == pytest.approx([75, 77.5, 77.5, 82.5])
    assert sorted(points.get_xdata()) == [0.0, 0.0, 0.1, 0.1]
    pairs = next(line for line in won.lines if line.get_label() == "a seed")
    np.testing.assert_allclose(pairs.get_xydata(), [[0.1, 2.5], [0.1, 5.0]])
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert "paper (on val)" in labels
    assert "paper (on val)" not in [text.get_text() for text in ece.get_legend().get_texts()]
    assert "2 seeds" in figure.get_suptitle()


def test_the_papers_numbers_are_seen_where_seeds_are_uneven():
    trained = {0.0: [30, 31], 0.1: [31, None], 0.2: [30, 33]}
    accuracy, won, *_ = drawn(analyzed(trained, recipe="cifar10_alexnet")).axes
    low, high = accuracy.get_ylim()
    assert low < 75 < 86.8 < high
    assert sorted(text.get_text() for text in accuracy.texts) == ["n=1", "n=2", "n=2"]
    assert sorted(text.get_text() for text in won.texts) == ["n=1", "n=2"]
    labels = [text.get_text() for text in won.get_legend().get_texts()]
    assert labels == ["a seed", "mean, 95 % over seeds"]


def test_several_recipes_are_rows_of_one_figure():
    first, second = analyzed({0.0: [30, 31]}), analyzed({0.0: [20]}, recipe="cifar10_alexnet")
    figure = drawn(first, second)
    assert len(figure.axes) == 8
    assert not figure.axes[1].get_visible()  # nothing to compare with
    assert [axis.get_title(loc="left") for axis in figure.axes[::4]] == [
        "digits_mlp on cifar10, budget cpu (2 runs, 2 seeds)",
        "cifar10_alexnet, budget cpu (1 run, 1 seed)",
    ]


def test_every_study_keeps_to_the_interface():
    for name in studies.names():
        module = studies.study(name, "lsexp sweep")
        for item in studies.Study.__annotations__:
            assert hasattr(module, item), (name, item)
        keys = {key for key, _, _ in walk(module.Config())}
        assert set(module.VIEW) <= keys
        assert all(replacement.partition("=")[0] in keys for replacement in module.OWNED.values())
        assert {claim.direction for claim in module.CLAIMS} <= {"above", "below", "within"}


def test_what_the_test_set_leaves_open_is_said():
    result = analyzed({0.0: [30, 30], 0.1: [32, 34]})
    row = only(result.tables["differences"], split="test", metric="accuracy")
    # 2 and 4 of 40 examples are right with smoothing only.
    assert row["disagreement"] == pytest.approx(3 / 40)
    assert row["visible_difference"] == pytest.approx(1.96 * (0.075 / 40) ** 0.5, rel=1e-3)
    text = "\n".join(result.notes)
    assert "40 test images leave +-13." in text
    assert "exactly one is right on 7.5 % of them" in text
    assert "nothing can be said" not in text
    assert "one seed: nothing can be said" in analyzed({0.0: [30]}).notes[-1]
