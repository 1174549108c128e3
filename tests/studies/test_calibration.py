"""The study of calibration on made-up logits: table, gates, findings, files, figures."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from lsexp.analysis.calibration import ece, scores, softmax
from lsexp.analysis.statistics import over_both, over_seeds
from lsexp.analysis.temperature import fit_temperature, halves
from lsexp.errors import UserError
from lsexp.runs.catalog import Entry
from lsexp.studies import Trained, calibration
from lsexp.studies.calibration import Config


def logits_of(true_temperature, *, examples=2000, classes=10, seed=0):
    """Logits whose right temperature is this one, and labels drawn accordingly."""
    rng = np.random.default_rng(seed)
    honest = 2 * rng.normal(size=(examples, classes))
    labels = (softmax(honest).cumsum(1) > rng.random((examples, 1))).argmax(1)
    return (true_temperature * honest).astype(np.float32), labels


class Made(Trained):
    """A run whose outputs are given: (val, test), each (logits, labels)."""

    def __init__(self, keys, val, test, *, learnt=0.99, data="cifar100"):
        entry = Entry(Path(f"run-{keys['eps']}-{keys['seed']}"), "finished")
        entry.config = {"data.name": data, "budget": "cpu"}
        entry.metrics = {"train": {"accuracy": learnt}, "test": scores(*test)}
        super().__init__(keys, entry)
        self.__dict__["parts"] = {"val": val, "test": test}

    @property
    def outputs(self):
        return {
            f"{split}.{name}": value
            for split, pair in self.parts.items()
            if pair is not None
            for name, value in zip(("logits", "labels"), pair, strict=True)
        }


def made(temperatures, seeds=3, **options):
    """{eps: right temperature}, with so many seeds; seeds share the labels' draws."""
    return [
        Made(
            {"eps": eps, "seed": seed},
            logits_of(T, seed=10 * seed),
            logits_of(T, seed=10 * seed + 1),
            **options,
        )
        for seed in range(seeds)
        for eps, T in temperatures.items()
    ]


def analyzed(trained, recipe="mine", **keys):
    return calibration.analyze(Config(**keys), trained, recipe)


def value(result, metric, *, eps=0.0, split="test", temperature="1", interval="seeds"):
    [row] = [
        row
        for row in result.tables["calibration"]
        if row["source"] == "ours"
        and (row["eps"], row["split"], row["temperature"]) == (eps, split, temperature)
        and (row["metric"], row["interval"]) == (metric, interval)
    ]
    return row


def finding(result, claim):
    [found] = [one for one in result.findings if one.claim is claim]
    return found


OVERCONFIDENT = {0.0: 2.0, 0.05: 1.0, 0.1: 0.7}


@cache
def overconfident():
    """What is found of these, three seeds; not to be changed."""
    return analyzed(made(OVERCONFIDENT))


def test_temperatures_are_those_that_were_put_in():
    result = overconfident()
    for eps, temperature in OVERCONFIDENT.items():
        row = value(result, "temperature", eps=eps, split="val", temperature="fitted")
        assert row["value"] == pytest.approx(temperature, rel=0.05)
        assert row["n"] == 3


def test_ece_is_of_images_that_the_temperature_was_not_fitted_on():
    [one] = made({0.0: 2.0}, seeds=1)
    result = analyzed([one])
    logits, labels = one.parts["val"]
    fitted, reported = halves(labels)
    T = fit_temperature(logits[fitted], labels[fitted]).value
    for which, at in (("1", 1.0), ("fitted", T)):
        expected = ece(softmax(logits[reported] / np.float64(at)), labels[reported])
        found = value(result, "ece", split="val", temperature=which, interval=None)
        assert found["value"] == pytest.approx(expected, rel=1e-9)
    paper = analyzed([one], protocol="paper")
    T = fit_temperature(logits, labels).value
    expected = ece(softmax(logits / np.float64(T)), labels)
    found = value(paper, "ece", split="val", temperature="fitted", interval=None)
    assert found["value"] == pytest.approx(expected, rel=1e-9)
    assert any("all of val" in line for line in paper.notes)


def test_no_change_of_the_test_set_moves_the_temperature():
    val = logits_of(2.0)
    found = []
    for seed in (1, 2):
        test = logits_of(0.5, seed=seed)
        result = analyzed([Made({"eps": 0.0, "seed": 0}, val, test)])
        row = value(result, "temperature", split="val", temperature="fitted", interval=None)
        found.append(row["value"])
    assert found[0] == found[1]


def test_without_val_nothing_is_fitted_and_that_is_said():
    result = analyzed([Made({"eps": 0.0, "seed": 0}, None, logits_of(2.0))])
    assert {row["temperature"] for row in result.tables["calibration"]} == {"1"}
    assert any("never on test" in line for line in result.notes)


def test_where_no_temperature_is_best_none_is_used_and_that_is_said():
    odd = Made({"eps": 0.0, "seed": 1}, ALL_RIGHT, logits_of(2.0))
    [fine] = made({0.0: 2.0}, seeds=1)
    result = analyzed([fine, odd])
    row = value(result, "temperature", split="val", temperature="fitted", interval=None)
    assert row["n"] == 1
    assert any("no best temperature" in line and "seed=1" in line for line in result.notes)


def test_the_fit_by_ece_is_another():
    trained = made({0.0: 2.0}, seeds=1)
    by_nll, by_ece = (
        value(
            analyzed(trained, fit=fit),
            "temperature",
            split="val",
            temperature="fitted",
            interval=None,
        )["value"]
        for fit in ("nll", "ece")
    )
    assert by_ece != by_nll
    assert by_ece == pytest.approx(2, rel=0.15)


def test_the_claims_where_the_gate_holds():
    result = analyzed(made(OVERCONFIDENT), recipe="cifar100_resnet56")
    assert finding(result, calibration.OVERCONFIDENCE).verdict == "supported"
    lowered = finding(result, calibration.CALIBRATES)
    assert lowered.verdict == "supported"
    assert lowered.paper == pytest.approx(0.024 - 0.150)
    alike = finding(result, calibration.COMPARABLE)
    assert abs(alike.value + 0.01) < 0.02
    assert alike.paper == pytest.approx(0.003 - 0.01)
    assert finding(result, calibration.NO_TEMPERATURE).verdict == "supported"
    assert calibration.UNDERCONFIDENT not in [one.claim for one in result.findings]


def test_hard_networks_that_have_not_learnt_test_nothing_but_are_told():
    for found in analyzed(made(OVERCONFIDENT, learnt=0.8)).findings:
        assert found.verdict == "not tested"
        assert "right on 0.800 of their training images" in found.because
        assert found.value is not None


def test_calibrated_hard_networks_contradict_the_first_claim_and_close_the_gate_of_the_others():
    first, *others = analyzed(made({0.0: 0.7, 0.05: 0.6})).findings
    assert (first.claim, first.verdict) == (calibration.OVERCONFIDENCE, "contradicted")
    for found in others:
        assert found.verdict == "not tested"
        assert "the temperature of hard runs is 0." in found.because


LABELS = np.arange(2000) % 10
ALL_RIGHT = 5 * np.eye(10, dtype=np.float32)[LABELS], LABELS
"""The colder the better: no temperature is best."""


def test_a_hard_seed_without_a_best_temperature_closes_the_gate():
    trained = made(OVERCONFIDENT)
    trained[0] = Made({"eps": 0.0, "seed": 0}, ALL_RIGHT, logits_of(2.0, seed=1))
    result = analyzed(trained)
    assert finding(result, calibration.CALIBRATES).verdict == "not tested"
    found = finding(result, calibration.COMPARABLE)
    assert found.because == "val gives 1 of 3 hard runs no temperature"
    assert result.summary[1][2].endswith("(2)")  # of 3


@pytest.mark.parametrize("keys", [{"fit": "ece"}, {"bins": 20}, {"protocol": "paper"}])
def test_no_view_moves_a_verdict(keys):
    for found in analyzed(made(OVERCONFIDENT), **keys).findings:
        assert found.verdict == "not tested"
        assert found.because == "the claims are of fit=nll, protocol=halves and bins=15"


@pytest.mark.parametrize("temperatures", [{0.0: 2.0, 0.1: 1.0}, {0.05: 1.0}])
def test_missing_eps_are_named(temperatures):
    found = finding(analyzed(made(temperatures)), calibration.CALIBRATES)
    assert found.verdict == "not tested"
    assert found.because == "needs runs at eps 0 and 0.05 of the same seed"


@pytest.mark.parametrize(
    ("temperatures", "verdict", "because"),
    [
        ({0.0: 1.0, 0.1: 0.75}, "supported", ""),
        ({0.0: 1.0, 0.1: 1.5}, "contradicted", ""),  # over-confident by as much
        ({0.0: 1.5, 0.1: 0.75}, "not tested", "hard runs are not calibrated here"),
    ],
)
def test_on_mnist_the_smoothed_are_under_confident(temperatures, verdict, because):
    found = finding(
        analyzed(made(temperatures, seeds=10, data="mnist")), calibration.UNDERCONFIDENT
    )
    assert found.verdict == verdict
    assert because in found.because
    assert found.paper is None  # the paper has no such number


def test_the_papers_row_comes_first_then_the_reproductions():
    result = analyzed(made(OVERCONFIDENT, data="cifar100"), recipe="cifar100_resnet56")
    assert result.summary[1][:5] == ["eps 0 paper, Table 3 (val)", "", "1.9", "0.150", "0.021"]
    assert result.summary[2][:4] == ["eps 0.05 paper, Table 3 (val)", "", "", "0.024"]
    assert [row[:4] for row in result.summary[3:6]] == [
        ["eps 0 public reproduction (val)", "1", "2.9", "0.207"],
        ["eps 0.05 public reproduction (val)", "1", "", "0.053"],
        ["eps 0.1 public reproduction (val)", "1", "", "0.043"],
    ]
    assert any(line.startswith("public reproduction: one seed; decay") for line in result.notes)
    first = result.tables["calibration"][0]
    assert (first["source"], first["value"]) == ("paper, Table 3", 0.15)
    assert [line[0] for line in result.summary[6:]] == ["eps 0", "eps 0.05", "eps 0.1"]


def test_differences_are_to_hard_networks_as_they_are_and_at_their_temperature():
    result = overconfident()
    rows = {
        (row["eps"], row["temperature"], row["minus"]): row
        for row in result.tables["differences"]
        if (row["split"], row["metric"]) == ("test", "nll")
    }
    hard = value(result, "nll")["value"]
    scaled = value(result, "nll", temperature="fitted")["value"]
    smooth = value(result, "nll", eps=0.05)["value"]
    both = value(result, "nll", eps=0.05, temperature="fitted")["value"]
    assert rows[0.05, "1", "eps 0, T 1"]["value"] == pytest.approx(smooth - hard)
    assert rows[0.05, "1", "eps 0, T fitted"]["value"] == pytest.approx(smooth - scaled)
    assert rows[0.05, "fitted", "eps 0, T fitted"]["value"] == pytest.approx(both - scaled)


def test_overconfidence_is_over_seeds_and_images():
    """Seeds that see the same images in the same way say nothing about others."""
    logits, labels = logits_of(2.0, seed=0)
    alike = [
        Made(
            {"eps": eps, "seed": seed}, logits_of(2.0, seed=1), (logits * (1 + seed / 100), labels)
        )
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]
    found = finding(analyzed(alike), calibration.OVERCONFIDENCE)
    scores = []
    for seed in range(3):
        probabilities = scipy.special.softmax(logits.astype(float) * (1 + seed / 100), axis=1)
        scores.append(probabilities.max(1) - (probabilities.argmax(1) == labels))
    expected = over_both(np.array(scores))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
    seeds = over_seeds(np.array(scores).mean(1))
    assert found.high - found.low > 2 * (seeds.high - seeds.low)


def test_the_temperature_of_smoothed_networks_is_judged_over_images_too():
    """Seeds fitted on the same images of val: what other images would give is as in other draws."""
    alike = [
        Made({"eps": eps, "seed": seed}, logits_of(1.0, seed=1), logits_of(1.0, seed=2))
        for seed in range(3)
        for eps in (0.0, 0.05)
    ]
    found = finding(analyzed(alike), calibration.NO_TEMPERATURE)
    others = [
        fit_temperature(*logits_of(1.0, seed=seed, examples=1000)).value for seed in range(30)
    ]
    assert found.over == "both"
    half = (found.high - found.low) / 2
    assert half == pytest.approx(2 * np.std(others, ddof=1), rel=0.5)


def test_debiased_ece_has_its_interval_over_both():
    result = overconfident()
    row = value(result, "ece_debiased", interval="both")
    assert row["low"] < row["value"] < row["high"]
    assert row["value"] == pytest.approx(value(result, "ece_debiased")["value"])


def test_tables_are_whole():
    result = overconfident()
    bins = [row for row in result.tables["reliability"] if row["split"] == "test"]
    assert len(bins) == 9 * 2 * 15
    assert sum(row["n"] for row in bins) == 9 * 2 * 2000
    filled = [row for row in bins if row["n"]]
    assert all(row["low"] < row["confidence"] <= row["high"] for row in filled)
    assert all(row["calibrated_low"] <= row["calibrated_high"] for row in filled)
    curve = [r for r in result.tables["temperatures"] if r["eps"] == 0 and r["seed"] == 0]
    lowest = min(curve, key=lambda row: row["nll"])
    assert lowest["temperature"] == pytest.approx(2, rel=0.1)
    last = result.tables["risk_coverage"][99]
    accuracy = made(OVERCONFIDENT, seeds=1)[0].entry.metrics["test"]["accuracy"]
    assert (last["coverage"], last["risk"]) == (1, pytest.approx(1 - accuracy))


def test_the_number_of_bins():
    result = analyzed(made({0.0: 2.0}, seeds=1), bins=4)
    assert len([r for r in result.tables["reliability"] if r["split"] == "test"]) == 2 * 4


def drawn(*results, **keys):
    figures = calibration.draw(Config(**keys), results)
    for figure in figures.values():
        figure.draw_without_rendering()  # lays out
    return figures


def test_figures_show_hard_scaled_and_smoothed():
    figures = drawn(overconfident())
    assert list(figures) == ["calibration", "temperatures", "risk_coverage"]
    titles = [axis.get_title().partition("\n")[0] for axis in figures["calibration"].axes[:3]]
    assert titles == ["eps 0", "eps 0, at T = 1.97", "eps 0.05"]  # 2 was put in
    diagram, counts = figures["calibration"].axes[0], figures["calibration"].axes[3]
    assert diagram.get_xlim() == diagram.get_ylim() == counts.get_xlim() == (0, 1)
    [legend] = figures["calibration"].legends
    assert [text.get_text() for text in legend.get_texts()][:4] == [
        "of one calibrated network, 95 %",
        "calibrated",
        "gap",
        "accuracy, seeds pooled",
    ]
    assert sum(bar.get_height() for bar in counts.patches) == pytest.approx(1)
    curve, dot = figures["temperatures"].axes[0].lines[:2]
    [at], [height] = dot.get_data()
    assert at == pytest.approx(1.97, abs=0.01)
    assert height == pytest.approx(np.interp(at, *curve.get_data()), rel=1e-3)
    risk = figures["risk_coverage"].axes
    assert risk[0].get_ylim() == risk[1].get_ylim()


@pytest.mark.parametrize("sharp", [1.0, 100.0])
def test_networks_without_any_error_have_curves(sharp):
    """NLL and ECE of 0 on logarithmic axes."""
    labels = np.arange(100) % 10
    perfect = (10 * sharp * np.eye(10, dtype=np.float32)[labels], labels)
    alike = [Made({"eps": 0.0, "seed": seed}, perfect, perfect) for seed in range(2)]
    for figure in drawn(analyzed(alike)).values():
        figure.draw_without_rendering()


def test_the_legend_is_of_all_rows():
    many = analyzed(made({0.0: 1.0}, seeds=1))
    few = [Made({"eps": 0.0, "seed": 0}, logits_of(2.0), logits_of(2.0, examples=60))]
    [legend] = drawn(many, analyzed(few))["calibration"].legends
    assert "of fewer than 10 images a seed" in [text.get_text() for text in legend.get_texts()]


def test_rows_for_recipes():
    results = [analyzed(made(OVERCONFIDENT, seeds=1)), analyzed(made({0.0: 1.5}, seeds=1), "other")]
    figures = drawn(*results)
    assert len(figures["calibration"].axes) == 2 * 2 * 3
    assert len(figures["temperatures"].axes) == 4


def test_anybodys_logits_get_the_same_report(tmp_path):
    [one] = made({0.0: 2.0}, seeds=1)
    path = tmp_path / "theirs.npz"
    np.savez(path, **{name.replace(".", "_"): part for name, part in one.outputs.items()})
    theirs, ours = calibration.analyze_file(Config(), path), analyzed([one])
    assert (theirs.recipe, theirs.title) == ("theirs", "theirs, 2,000 images of test")
    assert theirs.findings == []
    assert theirs.summary[1][2:] == ours.summary[1][2:]
    drawn(theirs)


def test_logits_of_test_alone_are_not_fitted_to(tmp_path):
    logits, labels = logits_of(2.0)
    np.savez(tmp_path / "a.npz", test_logits=logits, test_labels=labels)
    result = calibration.analyze_file(Config(), tmp_path / "a.npz")
    assert {row["temperature"] for row in result.tables["calibration"]} == {"1"}
    assert any("never on test" in line for line in result.notes)
    assert "differences" not in result.tables
    drawn(result)
    with pytest.raises(UserError):
        calibration.analyze_file(Config(), tmp_path / "b.npz")


def panel_titles(result):
    return [axis.get_title().partition("\n")[0] for axis in drawn(result)["calibration"].axes[:3]]


def test_hard_networks_come_first_however_eps_is_typed_and_whichever_seed_is_missing():
    trained = made({0.1: 0.7, 0.0: 2.0, 0.05: 1.0})[1:]
    trained = [one for one in trained if one.keys != {"eps": 0.0, "seed": 0}]
    result = analyzed(trained)
    hard, scaled, smoothed = panel_titles(result)
    assert (hard, scaled[:12], smoothed) == ("eps 0", "eps 0, at T ", "eps 0.05")
    assert [line[:2] for line in result.summary[1:]] == [
        ["eps 0", "2"],
        ["eps 0.05", "3"],
        ["eps 0.1", "2"],
    ]


def test_failed_seeds_and_eps_without_a_run_stay_in_the_table():
    trained = made(OVERCONFIDENT, seeds=2)
    for one in trained:
        if one.keys["eps"] == 0.1 or one.keys == {"eps": 0.0, "seed": 1}:
            one.entry.status = "failed"
    result = analyzed(trained)
    assert [line[1] for line in result.summary[1:]] == ["1 (1 failed)", "2", "0 (2 failed)"]
    assert len(result.tables["runs"]) == 6
    drawn(result)


def test_eps_that_print_alike_are_not_taken_for_seeds():
    result = analyzed(made({0.1: 1.0, 0.1000001: 1.0}, seeds=1))
    assert [line[:2] for line in result.summary[1:]] == [["eps 0.1", "1"], ["eps 0.1000001", "1"]]
    assert any("no runs at eps 0" in line for line in result.notes)


def test_hard_networks_without_a_temperature_are_drawn_without():
    odd = Made({"eps": 0.0, "seed": 0}, ALL_RIGHT, logits_of(2.0))
    assert panel_titles(analyzed([odd, *made({0.1: 0.7}, seeds=1)])) == ["eps 0", "eps 0.1", ""]


@pytest.mark.parametrize("count", [1, 2, 19])
def test_a_tiny_val_gives_no_temperature(count):
    logits, labels = logits_of(2.0)
    one = Made({"eps": 0.0, "seed": 0}, (logits[:count], labels[:count]), (logits, labels))
    result = analyzed([one])
    assert {row["temperature"] for row in result.tables["calibration"]} == {"1"}
    assert any("val has fewer than 20 images" in line for line in result.notes)
    drawn(result)


def test_of_two_classes_no_normalised_logit_is_reported():
    val, test = (logits_of(2.0, classes=2, seed=seed) for seed in (0, 1))
    result = analyzed([Made({"eps": 0.0, "seed": 0}, val, test)])
    assert "aurc_normalised" not in {row["metric"] for row in result.tables["calibration"]}
    drawn(result)


def test_curves_have_the_bins_of_the_table():
    result = analyzed(made({0.0: 2.0}, seeds=1), bins=3)
    [at_one] = [r for r in result.tables["temperatures"] if abs(r["temperature"] - 1) < 1e-9]
    assert at_one["ece"] == pytest.approx(value(result, "ece", interval=None)["value"])


@pytest.mark.parametrize("name", ["a$x_$", "_mine"])
def test_odd_names_are_shown_as_they_are(tmp_path, name):
    logits, labels = logits_of(2.0)
    np.savez(tmp_path / f"{name}.npz", logits=logits, labels=labels)
    figures = drawn(calibration.analyze_file(Config(), tmp_path / f"{name}.npz"))
    assert len(figures["temperatures"].axes[0].get_legend().get_texts()) == 1


@pytest.mark.parametrize("scale", [1e-3, 1e9])
def test_logits_in_other_units_have_their_temperature_in_these_and_readable(tmp_path, scale):
    logits, labels = logits_of(2.0)
    for name, factor in (("own", 1.0), ("other", scale)):
        np.savez(tmp_path / f"{name}.npz", logits=factor * logits, labels=labels)
    own, other = (
        calibration.analyze_file(Config(), tmp_path / f"{name}.npz") for name in ("own", "other")
    )
    place = own.summary[0].index("T")
    temperatures = [float(result.summary[1][place]) for result in (own, other)]
    assert temperatures[1] == pytest.approx(scale * temperatures[0], rel=0.02)
    assert max(map(len, other.summary[1])) < 12
    at = own.summary[0].index("ECE at T")
    assert other.summary[1][at] == own.summary[1][at]
    drawn(other)
