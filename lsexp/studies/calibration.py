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
    debiased_ece_over_both,
    ece_floor,
    ece_of,
    mce,
    nll,
    reliability,
    sampling_band,
    softmax,
    top_label,
)
from lsexp.analysis.statistics import Interval, over_both, over_both_of, over_seeds, paired
from lsexp.analysis.temperature import By, curve, fit_temperature, halves
from lsexp.config import key
from lsexp.measure import Question, read_logits
from lsexp.published import BY_HAND, DEFECTS, PAPER_ECE, REPRODUCTION_ECE, PublishedECE, papers
from lsexp.studies import (
    BOTH,
    GATE,
    ONE_SEED,
    OVERCONFIDENT,
    Claim,
    Finding,
    Result,
    Row,
    Trained,
    _calibration_figures,
    decide,
    eps_key,
    interval_row,
    learnt,
    mean_cell,
    other_spread,
    run_row,
    seeds_cell,
    seeds_key,
    title_of,
    untested,
)
from lsexp.studies.eps import OWNED as OWNED
from lsexp.studies.eps import runs as runs
from lsexp.text import places, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "Table 3, Figure 2: ECE and reliability, hard, temperature-scaled and smoothed"
ORDER = 3
READING = {
    "calibration": "Reliability: accuracy of the images in each bin of confidence, below it, on a "
    "logarithmic scale, the share of images there. On the diagonal confidence is worth what it "
    "says, under it the network is over-confident, above it less sure than it could be. Grey: what "
    "sampling alone would give a calibrated network.",
    "temperatures": "NLL and ECE against the temperature that divides the logits. Where the lowest "
    "point lies at 1 a network is calibrated as it is; right of it it is over-confident, left of "
    "it less sure than it could be, as smoothing makes networks that were calibrated.",
    "risk_coverage": "Error among the images that are kept when the least sure are refused, by "
    "the largest probability and by the normalised logit: lower is better, and what "
    "smoothing may lose.",
}
SHOWN = ("cifar100_resnet56",)
VIEW = ("protocol", "fit", "bins")
FILE = "val_logits, val_labels, test_logits, test_labels"
SPLITS = ("val", "test")
TEMPERATURES = np.geomspace(0.25, 4, 61)
"""Of the curves."""
SMOOTHED = 0.05
"""The eps of Table 3 on CIFAR-100: that of the claims."""


@dataclass
class Config:
    eps: list[float] = eps_key([0.0, 0.05, 0.1, 0.2, 0.3])
    seeds: list[int] = seeds_key([0, 1, 2, 3, 4])
    protocol: str = key(
        "halves",
        "halves: temperature is fitted on one half of val, val is reported on the other; paper: "
        "both on all of val, as the paper seems to have done",
        choices=("halves", "paper"),
    )
    fit: str = key("nll", "what the temperature makes smallest: nll or ece", choices=("nll", "ece"))
    bins: int = key(BINS, "of equal width, for ECE and the diagrams", at_least=1, at_most=1000)


FEWEST = 20
"""Images of val below which no temperature is fitted."""

OVERCONFIDENCE = Claim(
    "hard-overconfident",
    "networks trained on hard labels are over-confident",
    "Figure 2",
    f"mean confidence minus accuracy on test at eps 0; {BOTH}",
    "above",
    factor=100,
    unit="points",
    gate=GATE,
)
CALIBRATES = Claim(
    "smoothing-calibrates",
    "smoothing by 0.05 lowers ECE",
    "Table 3, CIFAR-100",
    "debiased ECE on test at eps 0.05 minus at eps 0, paired by seed",
    "below",
    gate=f"{GATE}, and need a temperature of {OVERCONFIDENT} or more",
)
COMPARABLE = Claim(
    "as-temperature-scaling",
    "smoothing by 0.05 calibrates no worse than temperature scaling, by 0.01 of ECE at most",
    "Table 3, CIFAR-100",
    "debiased ECE on test at eps 0.05 minus at eps 0 with its temperature, paired by seed, "
    "minus 0.01",
    "below",
    gate=f"{GATE}, and need a temperature of {OVERCONFIDENT} or more",
)
NO_TEMPERATURE = Claim(
    "smoothed-need-none",
    "the temperature of networks smoothed by 0.05 is below or near 1: at most 1.1",
    "Table 3, CIFAR-100 (reported at T = 1)",
    "temperature fitted on val at eps 0.05, minus 1.1; over seeds and images (until 28 November "
    "2026 over seeds alone, which share images)",
    "below",
    gate=f"{GATE}, and need a temperature of {OVERCONFIDENT} or more",
)
UNDERCONFIDENT = Claim(
    "mnist-underconfident",
    "on MNIST, where hard networks are calibrated, smoothing by 0.1 takes about 0.1 of confidence",
    "public reproduction, MNIST (ECE 0.002 hard, 0.102 at eps 0.1)",
    f"accuracy minus mean confidence on test at eps 0.1, minus 0.1; {BOTH}",
    "within",
    margin=0.03,
    gate="the data are MNIST, and hard runs are as confident as they are accurate, within 0.02",
)
CLAIMS = (OVERCONFIDENCE, CALIBRATES, COMPARABLE, NO_TEMPERATURE, UNDERCONFIDENT)
"""Declared before any run, but for the images in the intervals of the first, the fourth and the
last: all seeds see the same. Judged with temperatures fitted by NLL on half of val, and 15 bins.

Gates: hard runs have learnt their training images (`learnt`), for the first; and need a temperature
of at least `OVERCONFIDENT` for the next three: before, there is nothing to cure. For the last,
which is of MNIST only: hard runs are within `CALIBRATED` of their accuracy."""
CALIBRATED = 0.02
GROUPS = 20
"""Of images, of which the jackknife of a temperature leaves out one at a time."""


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
        edge: how far it ran, then: next to 0, or far above 1.
        parts: split to the logits and labels that are reported.
        fitted: those that the temperature is fitted on.
        scores: (split, "1" or "fitted", metric) to value.
        norm: p of the normalised score.
    """

    keys: Row
    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    fitted: tuple[np.ndarray, np.ndarray] | None = None
    temperature: float | None = None
    edge: float | None = None
    norm: int | None = None
    scores: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def at(self, which: str) -> float:
        """The temperature that "1" or "fitted" names."""
        return self.temperature if which == "fitted" and self.temperature else 1.0

    def ways(self) -> tuple[str, ...]:
        return ("1", "fitted") if self.temperature else ("1",)


def measurements(_study: Config, _trained: Sequence[Trained]) -> list[Question]:
    """None: the logits that every run leaves are enough."""
    return []


def analyze(study: Config, trained: Sequence[Trained], recipe: str) -> Result:
    """The table, diagrams and curves of all networks, and what they say of the claims."""
    done = sorted((o for o in trained if o.finished), key=lambda o: (o.keys["eps"], o.keys["seed"]))
    reports = []
    for one in done:
        found = one.outputs
        splits = [split for split in SPLITS if f"{split}.logits" in found]
        outputs = {s: (found[f"{s}.logits"], found[f"{s}.labels"]) for s in splits}
        reports.append(_report(study, Network(one.keys, outputs)))
    counts = {eps: seeds_cell(trained, eps) for eps in sorted({o.keys["eps"] for o in trained})}
    notes = _notes(study, reports)
    if done[0].keys["eps"]:
        notes.append("no runs at eps 0: no differences to hard networks")
    same = papers(recipe, done[0].entry.config)
    known = _known(same)
    if same in REPRODUCTION_ECE:
        notes.append(f"public reproduction: {DEFECTS[same]}; {BY_HAND}")
    return Result(
        recipe,
        {**_tables(study, reports, known), "runs": [run_row(one) for one in trained]},
        _findings(study, done, reports, PAPER_ECE.get(same)),
        summary=_summary(reports, known, counts),
        notes=notes,
        title=f"{title_of(recipe, done)}, {_of(reports)}",
        papers=bool(same),
    )


def analyze_file(study: Config, path: Path) -> Result:
    """The same for anybody's network; `path` as in `measure.read_logits`."""
    network = Network({"model": path.stem}, read_logits(path))
    reports = [_report(study, network)]
    return Result(
        path.stem,
        _tables(study, reports, {}),
        [],
        summary=_summary(reports, {}, {path.stem: ""}),
        notes=_notes(study, reports),
        title=f"{path.stem}, {_of(reports)}",
    )


def _report(study: Config, network: Network) -> Report:
    outputs = dict(network.outputs)
    report = Report(network.keys, outputs)
    if "val" in outputs and len(outputs["val"][1]) >= FEWEST:
        logits, labels = outputs["val"]
        fitted, reported = halves(labels)
        if study.protocol == "paper":
            fitted = reported = np.arange(len(labels))
        report.fitted = logits[fitted], labels[fitted]
        by: By = "nll" if study.fit == "nll" else "ece"
        best = fit_temperature(*report.fitted, by, study.bins)
        if best.at_edge:
            report.edge = best.value
        else:
            report.temperature = best.value
        if logits.shape[1] > 2:  # of two classes, a normalised logit is always the same
            report.norm = selective.choose_p(*report.fitted)
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


def _eps(eps: float) -> str:
    return f"eps {eps:.12g}"


def _name(keys: Row) -> str:
    """What networks that differ in the seed only are called."""
    return _eps(keys["eps"]) if "eps" in keys else str(keys["model"])


def _groups(reports: Sequence[Report]) -> dict[str, list[Report]]:
    """Networks that differ in the seed only, by name."""
    found: dict[str, list[Report]] = {}
    for one in reports:
        found.setdefault(_name(one.keys), []).append(one)
    return found


def _reported(report: Report) -> str:
    """The split that tables and figures are of."""
    return "test" if "test" in report.parts else "val"


def _of(reports: Sequence[Report]) -> str:
    """Split, images and seeds, for a title."""
    split = _reported(reports[0])
    counts = {len(group) for group in _groups(reports).values()}
    few = "" if len(counts) == 1 else f"{min(counts)} to "
    images = f"{len(reports[0].parts[split][1]):,} images of {split}"
    seeded = "seed" in reports[0].keys
    return f"{images}, {few}{plural(max(counts), 'seed')}" if seeded else images


def _without_seed(keys: Row) -> Row:
    return {name: value for name, value in keys.items() if name != "seed"}


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
        "temperatures": [row for one in reports for row in _curve_rows(study, one)],
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
        *((eps, "1", "ece", value) for eps, value in row.smoothed.items()),
    ):
        yield {
            "source": f"{name}, {row.where}",
            "eps": eps,
            "split": row.split,
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
        yield row | interval_row(over_seeds(np.array(fitted)))
    for split, which, metric in dict.fromkeys(name for one in group for name in one.scores):
        here = [one for one in group if (split, which, metric) in one.scores]
        values = np.array([one.scores[split, which, metric] for one in here])
        row = keys | {"split": split, "temperature": which, "metric": metric}
        yield row | interval_row(over_seeds(values))
        if metric == "ece_debiased" and len(here[0].parts[split][1]) > 1:
            found = _debiased(study, here, split, which)
            if found.low is not None:
                yield row | interval_row(found)


def _debiased(study: Config, group: Sequence[Report], split: str, which: str) -> Interval:
    tops = []
    for one in group:
        logits, labels = one.parts[split]
        tops.append(top_label(softmax(logits.astype(np.float64) / one.at(which)), labels))
    confidence_SN, correct_SN = (np.stack(part) for part in zip(*tops, strict=True))
    return debiased_ece_over_both(confidence_SN, correct_SN, study.bins)


DIFFERENCES = ("ece_debiased", "nll", "brier", "aurc", "aurc_excess")


def _differences(study: Config, reports: Sequence[Report]) -> Iterator[Row]:
    """Rows of differences.csv: each eps against the hard networks, as they are and scaled, and
    both scaled."""
    hard = {one.keys["seed"]: one for one in reports if one.keys.get("eps") == 0}
    for group in _groups(reports).values():
        here = {one.keys["seed"]: one for one in group if one.keys.get("eps")}
        seeds = sorted(here.keys() & hard.keys())
        if not seeds:
            continue
        for split in here[seeds[0]].parts:
            for ours, theirs in (("1", "1"), ("1", "fitted"), ("fitted", "fitted")):
                both = [s for s in seeds if ours in here[s].ways() and theirs in hard[s].ways()]
                for metric in DIFFERENCES if both else ():
                    found = paired(
                        np.array([here[seed].scores[split, ours, metric] for seed in both]),
                        np.array([hard[seed].scores[split, theirs, metric] for seed in both]),
                    )
                    yield {
                        "eps": here[seeds[0]].keys["eps"],
                        "temperature": ours,
                        "minus": f"eps 0, T {theirs}",
                        "split": split,
                        "metric": metric,
                        **interval_row(found.difference),
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


def _curve_rows(study: Config, one: Report) -> Iterator[Row]:
    """NLL and ECE of what is reported at many temperatures; nothing is chosen by them."""
    split = _reported(one)
    found = curve(*one.parts[split], TEMPERATURES, study.bins)
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
    split = _reported(one)
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


def _findings(
    study: Config,
    done: Sequence[Trained],
    reports: Sequence[Report],
    paper: PublishedECE | None,
) -> list[Finding]:
    config = done[0].entry.config
    data = str(config["data.name"])
    told: dict[Claim, float] = {}
    if paper is not None:
        told[CALIBRATES] = paper.smoothed[SMOOTHED] - paper.hard
        told[COMPARABLE] = paper.smoothed[SMOOTHED] - paper.scaled - 0.01
    usual, because = Config(), ""
    if any(getattr(study, name) != getattr(usual, name) for name in VIEW):
        because = f"the claims are of fit=nll, protocol=halves and bins={BINS}"
    else:
        because = other_spread(done)
    gates = _gates(done, reports)
    findings = []
    for claim in CLAIMS:
        if claim is UNDERCONFIDENT and data != "mnist":
            continue
        found = because or _compared(claim, reports)
        if isinstance(found, str):
            findings.append(untested(claim, told.get(claim), found))
        else:
            findings.append(decide(claim, found, told.get(claim), data, gates[claim]))
    return findings


def _compared(claim: Claim, reports: Sequence[Report]) -> Interval | str:
    """Our estimate for a claim, or why there is none."""
    by_eps: dict[float, dict[int, Report]] = {}
    for one in reports:
        by_eps.setdefault(one.keys["eps"], {})[one.keys["seed"]] = one
    hard, smooth = by_eps.get(0.0, {}), by_eps.get(SMOOTHED, {})
    if claim in (OVERCONFIDENCE, UNDERCONFIDENT):
        eps, sign, less = (0.0, 1, 0.0) if claim is OVERCONFIDENCE else (0.1, -1, 0.1)
        parts = [one.parts["test"] for one in by_eps.get(eps, {}).values()]
        if not parts:
            return f"needs runs at eps {eps:g}"
        gaps_SN = np.stack([_gap(logits_NK, labels_N) for logits_NK, labels_N in parts])
        return over_both(sign * gaps_SN - less)
    if claim is NO_TEMPERATURE:
        fitted = [one.temperature for one in smooth.values() if one.temperature]
        if not smooth:
            return f"needs runs at eps {SMOOTHED}"
        if len(fitted) < len(smooth):
            return f"val gives a temperature for {len(fitted)} of {len(smooth)} seeds only"
        return _temperature_over_both(list(smooth.values()))
    seeds = sorted(hard.keys() & smooth.keys())
    if not seeds:
        return f"needs runs at eps 0 and {SMOOTHED} of the same seed"
    which = "1" if claim is CALIBRATES else "fitted"
    without = [seed for seed in seeds if which not in hard[seed].ways()]
    if without:
        return f"val gives {len(without)} of {len(seeds)} hard runs no temperature"
    values = [
        np.array([of[seed].scores["test", at, "ece_debiased"] for seed in seeds])
        for of, at in ((smooth, "1"), (hard, which))
    ]
    return over_seeds(values[0] - values[1] - (0.01 if claim is COMPARABLE else 0))


def _temperature_over_both(smooth: Sequence[Report]) -> Interval:
    """Of the temperatures less 1.1: seeds are fitted on the same images of val."""
    fitted = [one.fitted for one in smooth if one.fitted is not None]

    def less(seed: int, kept_N: np.ndarray) -> float:
        logits_NK, labels_N = fitted[seed]
        return fit_temperature(logits_NK[kept_N], labels_N[kept_N]).value - 1.1

    return over_both_of(less, len(fitted), len(fitted[0][1]), GROUPS)


def _gap(logits_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Confidence of each example, minus 1 where it is right [N]."""
    confidence_N, correct_N = top_label(softmax(logits_NK.astype(np.float64)), labels_N)
    return confidence_N - correct_N


def _gates(done: Sequence[Trained], reports: Sequence[Report]) -> dict[Claim, str]:
    """For each claim why its gate is closed; "" where it is open."""
    hard = [one for one in reports if one.keys["eps"] == 0]
    not_learnt = closed = calibrated = learnt(done)
    if hard:
        closed = not_learnt or _nothing_to_cure(hard)
        gap = abs(np.mean([one.scores["test", "1", "confidence_gap"] for one in hard]))
        calibrated = ""
        if gap > CALIBRATED:
            calibrated = f"hard runs are not calibrated here: confidence is off by {gap:.3f}"
    return {
        OVERCONFIDENCE: not_learnt,
        **dict.fromkeys((CALIBRATES, COMPARABLE, NO_TEMPERATURE), closed),
        UNDERCONFIDENT: calibrated,
    }


def _nothing_to_cure(hard: Sequence[Report]) -> str:
    """Why hard runs are not known to be over-confident; "" where they are."""
    found = [one.temperature for one in hard if one.temperature is not None]
    if len(found) < len(hard):
        return f"val gives {len(hard) - len(found)} of {len(hard)} hard runs no temperature"
    if np.mean(found) < OVERCONFIDENT:
        return (
            f"the temperature of hard runs is {np.mean(found):.2f}, not {OVERCONFIDENT} or more: "
            f"there is nothing to cure"
        )
    return ""


COLUMNS = (
    ("1", "ece", "ECE", 4),
    ("fitted", "ece", "ECE at T", 4),
    ("1", "ece_if_calibrated", "if calibrated", 4),
    ("1", "nll", "NLL", 4),
    ("fitted", "nll", "NLL at T", 4),
    ("1", "aurc", "AURC", 5),
    ("1", "aurc_normalised", "normalised", 5),
)


def _summary(
    reports: Sequence[Report], known: dict[str, PublishedECE], counts: dict[Any, str]
) -> list[list[str]]:
    """The table on the terminal; a row for each of `counts`, what it is called (of eps, its value)
    and how many seeds."""
    split = _reported(reports[0])
    rows = [[split, "seeds", "T", *(title for _, _, title, _ in COLUMNS)]]
    for name, row in known.items():
        on, seeds = row.split, "" if name == "paper" else "1"
        blank = [""] * (len(COLUMNS) - 2)
        hard = [f"{row.temperature:g}", f"{row.hard:.3f}", f"{row.scaled:.3f}"]
        who = f"paper, {row.where}" if name == "paper" else name
        rows.append([f"eps 0 {who} ({on})", seeds, *hard, *blank])
        for eps, value in row.smoothed.items():
            if eps in counts or name == "paper":
                what = f"{_eps(eps)} {who} ({on})"
                rows.append([what, seeds, "", f"{value:.3f}", "", *blank])
    groups = _groups(reports)
    for named, count in counts.items():
        name = _eps(named) if isinstance(named, (int, float)) else named
        group = groups.get(name, [])
        temperatures = [one.temperature for one in group]
        least = min((one for one in temperatures if one is not None), default=1.0)
        cells = [mean_cell(temperatures, places(least, 2))]
        for which, metric, _, digits in COLUMNS:
            cells.append(
                mean_cell([one.scores.get((split, which, metric)) for one in group], digits)
            )
        rows.append([name, count, *cells])
    return rows


def _notes(study: Config, reports: Sequence[Report]) -> list[str]:
    first = reports[0]
    split = _reported(first)
    count = len(first.parts[split][1])
    over = "; +- half of the 95 % interval over seeds" if "eps" in first.keys else ""
    lines = [
        f"on {count:,} images of {split}, {plural(study.bins, 'bin')}{over}; AURC by largest "
        f"probability, and by the normalised logit (Xia et al. 2025)",
        "if calibrated: the ECE that calibrated networks as confident as these would show",
    ]
    if "val" not in first.parts:
        lines.append("no images held out: no temperature is fitted, since never on test")
    elif first.temperature is None and first.edge is None:
        lines.append(f"val has fewer than {FEWEST} images: no temperature is fitted")
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
            f"no best temperature on the images it is fitted on: {names}"
            f"{', ...' if len(lost) > 4 else ''}; left out of what is at T, (k) tells how many stay"
        )
    if len({one.keys.get("seed") for one in reports}) < 2 and "eps" in first.keys:
        lines.append(ONE_SEED)
    return lines


def draw(study: Config, results: Sequence[Result]) -> dict[str, Figure]:
    """Figure 2 (reliability), the curves against temperature, and risk against coverage."""
    return _calibration_figures.draw(study.bins, results)
