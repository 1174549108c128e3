"""Table 3 and Figure 2: calibration of hard, temperature-scaled and smoothed networks.

Temperature is fitted on held-out images that are not reported on; the test set is never fitted to.
Shape letters: N examples, K classes, S seeds, T temperatures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lsexp.analysis import selective
from lsexp.analysis.calibration import (
    BINS,
    adaptive_ece,
    brier,
    classwise_ece,
    confidence_gap,
    debiased_ece,
    ece_floor,
    ece_of,
    mce,
    nll,
    reliability,
    sampling_band,
    softmax,
    top_label,
)
from lsexp.analysis.statistics import Interval, over_both_of, over_seeds, paired
from lsexp.analysis.temperature import By, curve, fit_temperature, halves
from lsexp.config import key
from lsexp.measure import Measurement, read_logits
from lsexp.published import PAPER_ECE, REPRODUCTION_ECE, PublishedECE
from lsexp.studies import (
    LEARNT,
    OVERCONFIDENT,
    Claim,
    Finding,
    Result,
    Row,
    Trained,
    _calibration_figures,
    decide,
    untested,
)
from lsexp.studies.eps import OWNED as OWNED
from lsexp.studies.eps import runs as runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "Table 3, Figure 2: ECE and reliability, hard, temperature-scaled and smoothed"
VIEW = ("protocol", "fit", "bins")
FILE = "val_logits, val_labels, test_logits, test_labels"
SPLITS = ("val", "test")
REPRODUCED_ECE_AT_01 = 0.102
TEMPERATURES = np.geomspace(0.25, 4, 61)
"""Of the curves."""
SMOOTHED = 0.05
"""The eps of Table 3 on CIFAR-100: that of the claims."""


@dataclass
class Config:
    eps: list[float] = key(
        [0.0, 0.05, 0.1, 0.2, 0.3], "smoothing of each run, as a list", at_least=0, below=1
    )
    seeds: list[int] = key(
        [0, 1, 2, 3, 4], "how many seeds, or which, as a list", at_least=0, below=2**31
    )
    protocol: str = key(
        "halves",
        "halves: temperature is fitted on one half of val, val is reported on the other; paper: "
        "both on all of val, as the paper seems to have done",
        choices=("halves", "paper"),
    )
    fit: str = key("nll", "what the temperature makes smallest: nll or ece", choices=("nll", "ece"))
    bins: int = key(BINS, "of equal width, for ECE and the diagrams", at_least=1, at_most=1000)


OVERCONFIDENCE = Claim(
    "hard-overconfident",
    "networks trained on hard labels are over-confident",
    "Figure 2",
    "mean confidence minus accuracy on test at eps 0",
    "above",
    factor=100,
    unit="points",
)
CALIBRATES = Claim(
    "smoothing-calibrates",
    "smoothing by 0.05 lowers ECE",
    "Table 3, CIFAR-100",
    "debiased ECE on test at eps 0.05 minus at eps 0, paired by seed",
    "below",
)
COMPARABLE = Claim(
    "as-temperature-scaling",
    "smoothing by 0.05 calibrates as well as temperature scaling of hard networks",
    "Table 3, CIFAR-100",
    "debiased ECE on test at eps 0.05 minus at eps 0 with its temperature, paired by seed",
    "within",
    margin=0.01,
)
NO_TEMPERATURE = Claim(
    "smoothed-need-none",
    "the temperature of networks smoothed by 0.05 is below or near 1",
    "Table 3, CIFAR-100 (reported at T = 1)",
    "temperature fitted on val at eps 0.05, minus 1.1",
    "below",
    disputed_by="Mukhoti et al. 2020 have 0.9 and 1.0 at eps 0.05 on CIFAR-10",
)
UNDERCONFIDENT = Claim(
    "mnist-underconfident",
    "on MNIST, where hard networks are calibrated, smoothing by 0.1 gives an ECE near 0.1",
    "public reproduction (0.102)",
    "ECE on test at eps 0.1, minus 0.1",
    "within",
    margin=0.03,
)
CLAIMS = (OVERCONFIDENCE, CALIBRATES, COMPARABLE, NO_TEMPERATURE, UNDERCONFIDENT)
"""Declared before any run. Gate of the first four: hard runs have learnt their training images
(`LEARNT`) and their temperature is at least `OVERCONFIDENT`; before, there is nothing to cure."""


class Network(NamedTuple):
    """Somebody's logits: keys ({"eps", "seed"} or {"model"}), and split to (logits, labels)."""

    keys: Row
    outputs: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Report:
    """How honest one network is.

    Attributes:
        temperature: None where there is nothing to fit it on, or no best one: where all of the
            few images that it is fitted on are right, the colder the better.
        edge: how far it ran, then.
        parts: split to the logits and labels that are reported.
        scores: (split, "1" or "fitted", metric) to value.
        norm: p of the normalised score.
    """

    keys: Row
    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    temperature: float | None = None
    edge: float | None = None
    norm: int | None = None
    scores: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def at(self, which: str) -> float:
        """The temperature that "1" or "fitted" names."""
        return self.temperature if which == "fitted" and self.temperature else 1.0

    def ways(self) -> tuple[str, ...]:
        return ("1", "fitted") if self.temperature else ("1",)


def measurements(_study: Config, _trained: Sequence[Trained]) -> list[Measurement]:
    """None: the logits that every run leaves are enough."""
    return []


def analyze(study: Config, trained: Sequence[Trained], recipe: str) -> Result:
    """The table, diagrams and curves of all networks, and what they say of the claims."""
    done = [one for one in trained if one.finished]
    reports = []
    for one in done:
        found = one.outputs
        splits = [split for split in SPLITS if f"{split}.logits" in found]
        outputs = {s: (found[f"{s}.logits"], found[f"{s}.labels"]) for s in splits}
        reports.append(_report(study, Network(one.keys, outputs)))
    config = done[0].entry.config
    title = f"{recipe}, budget {config['budget']}"
    return Result(
        recipe,
        {**_tables(study, reports, _known(recipe)), "runs": [_run_row(one) for one in trained]},
        _findings(done, reports, PAPER_ECE.get(recipe)),
        summary=_summary(reports, _known(recipe)),
        notes=_notes(study, reports),
        title=title,
    )


def analyze_file(study: Config, path: Path) -> Result:
    """The same for anybody's network; `path` as in `measure.read_logits`."""
    network = Network({"model": path.stem}, read_logits(path))
    reports = [_report(study, network)]
    return Result(
        path.stem,
        _tables(study, reports, {}),
        [],
        summary=_summary(reports, {}),
        notes=_notes(study, reports),
        title=path.stem,
    )


def _report(study: Config, network: Network) -> Report:
    outputs = dict(network.outputs)
    report = Report(network.keys, outputs)
    if "val" in outputs:
        logits, labels = outputs["val"]
        fitted, reported = halves(labels)
        if study.protocol == "paper":
            fitted = reported = np.arange(len(labels))
        by: By = "nll" if study.fit == "nll" else "ece"
        best = fit_temperature(logits[fitted], labels[fitted], by)
        if best.at_edge:
            report.edge = best.value
        else:
            report.temperature = best.value
        report.norm = selective.choose_p(logits[fitted], labels[fitted])
        outputs["val"] = logits[reported], labels[reported]
    for split, (logits, labels) in outputs.items():
        for which in report.ways():
            found = _scores(logits.astype(np.float64) / report.at(which), labels, study.bins)
            report.scores |= {(split, which, name): value for name, value in found.items()}
        if report.norm is not None:
            score = selective.normalised_score(logits, report.norm)
            right = logits.argmax(1) == labels
            report.scores[split, "1", "aurc_normalised"] = selective.aurc(score, right)
            excess = selective.excess_aurc(score, right)
            report.scores[split, "1", "aurc_excess_normalised"] = excess
    return report


def _scores(logits_NK: np.ndarray, labels_N: np.ndarray, bins: int) -> dict[str, float]:
    """accuracy, ECE and its relatives (fractions), NLL (nats), Brier score, AURC (a fraction)."""
    probabilities = softmax(logits_NK)
    confidence, correct = top_label(probabilities, labels_N)
    score = selective.max_probability_score(logits_NK)
    return {
        "accuracy": float(correct.mean()),
        "nll": nll(logits_NK, labels_N),
        "brier": brier(probabilities, labels_N),
        "confidence_gap": confidence_gap(confidence, correct),
        "ece": ece_of(confidence, correct, bins),
        "ece_debiased": debiased_ece(confidence, correct, bins),
        "ece_if_calibrated": ece_floor(confidence, bins),
        "ece_adaptive": adaptive_ece(confidence, correct, bins),
        "ece_classwise": classwise_ece(probabilities, labels_N, bins),
        "mce": mce(confidence, correct, bins),
        "aurc": selective.aurc(score, correct),
        "aurc_excess": selective.excess_aurc(score, correct),
    }


def _known(recipe: str) -> dict[str, PublishedECE]:
    """Published rows of a recipe, the paper's first."""
    tables = {"paper": PAPER_ECE, "public reproduction": REPRODUCTION_ECE}
    return {name: rows[recipe] for name, rows in tables.items() if recipe in rows}


def _groups(reports: Sequence[Report]) -> dict[str, list[Report]]:
    """Networks that differ in the seed only, under the name that people read."""
    found: dict[str, list[Report]] = {}
    for one in sorted(reports, key=lambda one: one.keys.get("eps", 0.0)):
        name = f"eps {one.keys['eps']:g}" if "eps" in one.keys else str(one.keys["model"])
        found.setdefault(name, []).append(one)
    return found


def _without_seed(keys: Row) -> Row:
    return {name: value for name, value in keys.items() if name != "seed"}


def _interval(found: Interval) -> Row:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "interval": found.over if found.low is not None else None,
    }


def _tables(
    study: Config, reports: Sequence[Report], known: dict[str, PublishedECE]
) -> dict[str, list[Row]]:
    groups = _groups(reports)
    tables = {
        "calibration": [
            *(row for name, published in known.items() for row in _published(name, published)),
            *(row for group in groups.values() for row in _estimates(study, group)),
        ],
        "reliability": [row for one in reports for row in _reliability_rows(study, one)],
        "temperatures": [row for one in reports for row in _curve_rows(one)],
        "risk_coverage": [row for one in reports for row in _risk_rows(one)],
    }
    differences = list(_differences(study, reports))
    if differences:
        tables["differences"] = differences
    return tables


def _published(name: str, row: PublishedECE) -> Iterator[Row]:
    for eps, which, metric, value in (
        (0.0, "1", "ece", row.hard),
        (0.0, "fitted", "ece", row.scaled),
        (0.0, "fitted", "temperature", row.temperature),
        (row.eps, "1", "ece", row.smoothed),
    ):
        yield {
            "source": f"{name}, {row.where}",
            "eps": eps,
            "split": "test" if "on test" in row.where else "val",
            "temperature": which,
            "metric": metric,
            **dict.fromkeys(("value", "low", "high", "n", "interval")),
            "value": value,
        }


def _estimates(study: Config, group: Sequence[Report]) -> Iterator[Row]:
    """Rows of calibration.csv: over seeds; debiased ECE over seeds and examples too."""
    keys = {"source": "ours", **_without_seed(group[0].keys)}
    fitted = [one.temperature for one in group if one.temperature]
    if fitted:
        row = keys | {"split": "val", "temperature": "fitted", "metric": "temperature"}
        yield row | _interval(over_seeds(np.array(fitted)))
    for split, which, metric in dict.fromkeys(name for one in group for name in one.scores):
        here = [one for one in group if (split, which, metric) in one.scores]
        values = np.array([one.scores[split, which, metric] for one in here])
        row = keys | {"split": split, "temperature": which, "metric": metric}
        yield row | _interval(over_seeds(values))
        if metric == "ece_debiased":
            statistic = _debiased(study, here, split, which)
            found = over_both_of(statistic, len(here), len(here[0].parts[split][1]))
            if found.low is not None:
                yield row | _interval(found)


def _debiased(study: Config, group: Sequence[Report], split: str, which: str) -> Any:
    tops = []
    for one in group:
        logits, labels = one.parts[split]
        tops.append(top_label(softmax(logits.astype(np.float64) / one.at(which)), labels))
    return lambda seed, kept: debiased_ece(tops[seed][0][kept], tops[seed][1][kept], study.bins)


DIFFERENCES = ("ece_debiased", "nll", "brier", "aurc", "aurc_excess")


def _differences(study: Config, reports: Sequence[Report]) -> Iterator[Row]:
    """Rows of differences.csv: each eps against the hard networks, as they are and scaled."""
    hard = {one.keys["seed"]: one for one in reports if one.keys.get("eps") == 0}
    for group in _groups(reports).values():
        here = {one.keys["seed"]: one for one in group if one.keys.get("eps")}
        seeds = sorted(here.keys() & hard.keys())
        if not seeds:
            continue
        for split in here[seeds[0]].parts:
            for which in ("1", "fitted"):
                both = [seed for seed in seeds if which in hard[seed].ways()]
                for metric in DIFFERENCES if both else ():
                    found = paired(
                        np.array([here[seed].scores[split, "1", metric] for seed in both]),
                        np.array([hard[seed].scores[split, which, metric] for seed in both]),
                    )
                    yield {
                        "eps": here[seeds[0]].keys["eps"],
                        "minus": f"eps 0, T {which}",
                        "split": split,
                        "metric": metric,
                        **_interval(found.difference),
                    }


def _reliability_rows(study: Config, one: Report) -> Iterator[Row]:
    for split, (logits, labels) in one.parts.items():
        for which in one.ways():
            top = top_label(softmax(logits.astype(np.float64) / one.at(which)), labels)
            found = reliability(*top, study.bins)
            band_low, band_high = sampling_band(top[0], study.bins)
            for b in range(study.bins):
                filled = found.n[b] > 0
                yield {
                    **one.keys,
                    "split": split,
                    "temperature": which,
                    "low": float(found.low[b]),
                    "high": float(found.high[b]),
                    "n": int(found.n[b]),
                    "confidence": float(found.confidence[b]) if filled else None,
                    "accuracy": float(found.accuracy[b]) if filled else None,
                    "calibrated_low": float(band_low[b]) if filled else None,
                    "calibrated_high": float(band_high[b]) if filled else None,
                }


def _curve_rows(one: Report) -> Iterator[Row]:
    """NLL and ECE of what is reported at many temperatures; nothing is chosen by them."""
    split = "test" if "test" in one.parts else "val"
    found = curve(*one.parts[split], TEMPERATURES)
    for t, temperature in enumerate(TEMPERATURES):
        yield {
            **one.keys,
            "split": split,
            "temperature": float(temperature),
            "nll": float(found.nll[t]),
            "ece": float(found.ece[t]),
        }


COVERAGES = np.linspace(0.01, 1, 100)


def _risk_rows(one: Report) -> Iterator[Row]:
    split = "test" if "test" in one.parts else "val"
    logits, labels = one.parts[split]
    right = logits.argmax(1) == labels
    scores = {"max_probability": selective.max_probability_score(logits)}
    if one.norm is not None:
        scores["normalised"] = selective.normalised_score(logits, one.norm)
    for name, score in scores.items():
        found = selective.risk_coverage(score, right)
        for coverage in COVERAGES:
            n = max(1, round(coverage * len(right)))
            yield {
                **one.keys,
                "split": split,
                "score": name,
                "coverage": n / len(right),
                "risk": float(found.risk[n - 1]),
            }


def _run_row(one: Trained) -> Row:
    metrics = one.entry.metrics
    return {
        **one.keys,
        "status": one.entry.status,
        "run": one.entry.name,
        "train_accuracy": metrics.get("train", {}).get("accuracy"),
        "test_accuracy": (metrics.get("test") or {}).get("accuracy"),
        "test_ece": (metrics.get("test") or {}).get("ece"),
        "precision": one.entry.config.get("precision"),
    }


def _findings(
    done: Sequence[Trained], reports: Sequence[Report], paper: PublishedECE | None
) -> list[Finding]:
    config = done[0].entry.config
    data = str(config["data.name"])
    claims = [claim for claim in CLAIMS if claim is not UNDERCONFIDENT or data == "mnist"]
    if config.get("loss.spread", "uniform") != "uniform":
        because = "eps is spread over the other classes only; the paper spreads it over all"
        return [untested(claim, None, because) for claim in claims]
    by_eps = {
        eps: {one.keys["seed"]: one for one in reports if one.keys["eps"] == eps}
        for eps in {one.keys["eps"] for one in reports}
    }
    hard, smooth = by_eps.get(0.0, {}), by_eps.get(SMOOTHED, {})
    closed = _gate(done, list(hard.values()))

    def compared(claim: Claim) -> Interval | str:
        """Our estimate, or why there is none."""
        if claim is UNDERCONFIDENT:
            there = by_eps.get(0.1, {}).values()
            eces = [one.scores["test", "1", "ece"] - 0.1 for one in there]
            return over_seeds(np.array(eces)) if eces else "needs runs at eps 0.1"
        if claim is OVERCONFIDENCE:
            gaps = [one.scores["test", "1", "confidence_gap"] for one in hard.values()]
            return over_seeds(np.array(gaps)) if gaps else "needs runs at eps 0"
        if claim is NO_TEMPERATURE:
            fitted = [one.temperature - 1.1 for one in smooth.values() if one.temperature]
            why = "val gives none" if smooth else f"needs runs at eps {SMOOTHED}"
            return over_seeds(np.array(fitted)) if fitted else why
        which = "1" if claim is CALIBRATES else "fitted"
        seeds = sorted(hard.keys() & smooth.keys())
        seeds = [seed for seed in seeds if which in hard[seed].ways()]
        if not seeds:
            return f"needs runs at eps 0{' (with a temperature)' * (which != '1')} and {SMOOTHED}"
        values = [
            np.array([of[seed].scores["test", at, "ece_debiased"] for seed in seeds])
            for of, at in ((smooth, "1"), (hard, which))
        ]
        return paired(*values).difference

    told: dict[Claim, float] = {UNDERCONFIDENT: REPRODUCED_ECE_AT_01 - 0.1}
    if paper is not None:
        told[CALIBRATES] = paper.smoothed - paper.hard
        told[COMPARABLE] = paper.smoothed - paper.scaled
    findings = []
    for claim in claims:
        found, number = compared(claim), told.get(claim)
        if isinstance(found, str):
            findings.append(untested(claim, number, found))
        else:
            gate = "" if claim is UNDERCONFIDENT else closed
            findings.append(decide(claim, found, number, data, gate))
    return findings


def _gate(done: Sequence[Trained], hard: Sequence[Report]) -> str:
    """Why the hard networks have nothing to cure yet; "" where they have."""
    learnt = [one.entry.metrics["train"]["accuracy"] for one in done if one.keys["eps"] == 0]
    if not learnt:
        return ""
    if np.mean(learnt) < LEARNT:
        return (
            f"hard runs are right on {np.mean(learnt):.3f} of their training images, not yet on "
            f"{LEARNT}"
        )
    temperatures = [one.temperature for one in hard if one.temperature]
    if not temperatures:
        return "val gives hard runs no temperature"
    if np.mean(temperatures) < OVERCONFIDENT:
        return (
            f"the temperature of hard runs is {np.mean(temperatures):.2f}, not {OVERCONFIDENT} or "
            f"more: they are not over-confident"
        )
    return ""


COLUMNS = (
    ("1", "ece", "ECE", 4),
    ("fitted", "ece", "ECE at T", 4),
    ("1", "ece_if_calibrated", "if calibrated", 4),
    ("1", "nll", "NLL", 4),
    ("fitted", "nll", "NLL at T", 4),
    ("1", "aurc", "AURC", 4),
    ("1", "aurc_normalised", "normalised", 4),
)


def _summary(reports: Sequence[Report], known: dict[str, PublishedECE]) -> list[list[str]]:
    rows = [["", "seeds", "T", *(title for _, _, title, _ in COLUMNS)]]
    for name, row in known.items():
        label = f"{name}, {row.where}"
        blank = [""] * (len(COLUMNS) - 2)
        hard = [f"{row.temperature:g}", f"{row.hard:.3f}", f"{row.scaled:.3f}"]
        rows.append([f"eps 0 {label}", "", *hard, *blank])
        rows.append([f"eps {row.eps:g} {label}", "", "", f"{row.smoothed:.3f}", "", *blank])
    for name, group in _groups(reports).items():
        split = "test" if "test" in group[0].parts else "val"

        cells = [_text([one.temperature for one in group if one.temperature], 2)]
        for which, metric, _, digits in COLUMNS:
            found = [one.scores.get((split, which, metric)) for one in group]
            cells.append(_text([value for value in found if value is not None], digits))
        rows.append([name, str(len(group)), *cells])
    return rows


def _text(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    found = over_seeds(np.array(values))
    text = f"{found.value:.{digits}f}"
    if found.low is not None and found.high is not None:
        text += f" +- {(found.high - found.low) / 2:.{digits}f}"
    return text


def _notes(study: Config, reports: Sequence[Report]) -> list[str]:
    first = reports[0]
    split = "test" if "test" in first.parts else "val"
    count = len(first.parts[split][1])
    lines = [
        f"on {count:,} images of {split}, {study.bins} bins; +- half of the 95 % interval over "
        f"seeds; AURC by largest probability, and by the normalised logit (Xia et al. 2025)",
        "if calibrated: the ECE that calibrated networks as confident as these would show",
    ]
    if "val" not in first.parts:
        lines.append("no images held out: no temperature is fitted, since never on test")
    elif study.protocol == "paper":
        lines.append(f"T fitted on all of val by {study.fit}; val's own numbers are of these too")
    else:
        lines.append(
            f"T fitted by {study.fit} on one half of val; val's numbers are of the other half"
        )
    lost = [one for one in reports if one.edge is not None]
    if lost:
        names = ", ".join(" ".join(f"{k}={v}" for k, v in one.keys.items()) for one in lost[:4])
        lines.append(
            f"no best temperature (the images it is fitted on ask for an extreme one): {names}"
            f"{', ...' if len(lost) > 4 else ''}; left out of what is at T"
        )
    if len({one.keys.get("seed") for one in reports}) < 2 and "eps" in first.keys:
        lines.append("one seed: nothing can be said of seeds; seeds=5 trains more")
    return lines


def draw(study: Config, results: Sequence[Result]) -> dict[str, Figure]:
    """Figure 2 (reliability), the curves against temperature, and risk against coverage."""
    return _calibration_figures.draw(study.bins, results)
