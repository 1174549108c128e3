"""Table 2 of the paper: accuracy with and without label smoothing; NLL, ECE, Brier beside it.

Shape letters: E values of eps, S seeds, N examples, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lsexp.analysis.calibration import (
    brier_by_example,
    debiased_ece,
    debiased_ece_over_both,
    ece_floor,
    ece_of,
    nll_by_example,
    softmax,
    top_label,
)
from lsexp.analysis.statistics import (
    Interval,
    accuracy_half_width,
    holm,
    over_both,
    over_examples,
    over_seeds,
    paired,
    smallest_visible_difference,
)
from lsexp.config import TrainConfig
from lsexp.figures import ABOVE, COLORS, grid, plain, styled
from lsexp.measure import Question
from lsexp.published import DEFECTS, PAPER_ACCURACY, REPRODUCTION_ACCURACY, papers
from lsexp.studies import (
    ONE_SEED,
    Claim,
    Finding,
    Result,
    Row,
    Run,
    Trained,
    check_lists,
    decide,
    eps_key,
    interval_row,
    other_spread,
    run_row,
    seeds_cell,
    seeds_key,
    title_of,
    untested,
)
from lsexp.text import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "Table 2: accuracy, NLL and ECE against the smoothing"
ORDER = 1
READING = {
    "eps": "Test accuracy, what is won or lost of it seed by seed, NLL and ECE (15 bins) against "
    "the smoothing. Small points are seeds, the line their mean with its 95 % interval: pairs "
    "share initialisation and order, so that differences show what the accuracies hide. Where the "
    "paper has numbers they are beside it, of its own images held out. Label smoothing is said to "
    "leave accuracy as it is, within a point.",
}
OWNED = {"loss.eps": "eps=0,0.1", "seed": "seeds=5, or seeds=0,3,7"}
SHOWN = ("cifar10_alexnet", "cifar100_resnet56")
VIEW = ()
SPLITS = ("val", "test")


@dataclass
class Config:
    eps: list[float] = eps_key([0.0, 0.05, 0.1, 0.2, 0.3])
    seeds: list[int] = seeds_key([0, 1, 2, 3, 4])


UNCHANGED = Claim(
    "accuracy-unchanged",
    "smoothing by 0.1 leaves accuracy within one percentage point of hard labels",
    "Table 2",
    "test accuracy at eps 0.1 minus at eps 0, paired by seed",
    "within",
    margin=0.01,
    factor=100,
    unit="points",
)
CLAIMS = (UNCHANGED,)
"""Declared before any run. Table 2 has -0.1 points on CIFAR-10 and +0.6 on CIFAR-100."""


def runs(study: Config, base: TrainConfig) -> list[Run]:
    """Every eps with every seed, seed by seed, so that comparisons are possible early."""
    check_lists(eps=study.eps, seeds=study.seeds)
    return [
        Run({"eps": eps, "seed": seed}, replace(base, loss=replace(base.loss, eps=eps), seed=seed))
        for seed in study.seeds
        for eps in study.eps
    ]


@dataclass
class Cell:
    """What is finished at one eps: seeds, and per split their scores.

    scores: (split, metric) to float64 [S, N] per example (accuracy, nll, brier); top: split to
    confidence and correctness, [S, N] each.
    """

    eps: float
    seeds: list[int]
    scores: dict[tuple[str, str], np.ndarray]
    top: dict[str, tuple[np.ndarray, np.ndarray]]
    train_accuracy: list[float]


def measurements(_study: Config, _trained: Sequence[Trained]) -> list[Question]:
    """None: the outputs that every run has are enough."""
    return []


def analyze(study: Config, trained: Sequence[Trained], recipe: str) -> Result:
    """Estimates for every eps, differences to the smallest, and what they say of the claims."""
    cells = [
        _cell(eps, [one for one in trained if one.keys["eps"] == eps and one.finished])
        for eps in sorted(study.eps)
    ]
    estimates = [row for cell in cells if cell.seeds for row in _estimates(cell)]
    differences = list(_differences(cells))
    done = [one for one in trained if one.finished]
    known = papers(recipe, done[0].entry.config)
    whole = {
        "runs": [run_row(one) for one in trained],
        "eps": [*_paper_rows(known), *estimates],
    }
    if differences:
        whole["differences"] = differences
    notes = _notes(cells, differences)
    if known in REPRODUCTION_ACCURACY:
        notes.append(f"public reproduction: {DEFECTS[known]}")
    return Result(
        recipe,
        whole,
        [_unchanged(cells, known, done)],
        notes=notes,
        summary=_summary(cells, trained, estimates, differences, known),
        title=title_of(recipe, done[:1]),
        papers=bool(known),
    )


def _cell(eps: float, done: Sequence[Trained]) -> Cell:
    cell = Cell(eps, [one.keys["seed"] for one in done], {}, {}, [])
    cell.train_accuracy = [one.entry.metrics["train"]["accuracy"] for one in done]
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for one in done:
        outputs = one.outputs
        for split in SPLITS:
            if f"{split}.logits" not in outputs:
                continue
            logits, labels = outputs[f"{split}.logits"], outputs[f"{split}.labels"]
            probabilities = softmax(logits)
            confidence, correct = top_label(probabilities, labels)
            for metric, score in (
                ("confidence", confidence),
                ("accuracy", correct.astype(float)),
                ("nll", nll_by_example(logits, labels)),
                ("brier", brier_by_example(probabilities, labels)),
            ):
                found.setdefault((split, metric), []).append(score)
    stacked = {name: np.stack(values) for name, values in found.items()}
    for split in SPLITS:
        if (split, "confidence") in stacked:
            confidence = stacked.pop((split, "confidence"))
            cell.top[split] = (confidence, stacked[split, "accuracy"])
    cell.scores = stacked
    return cell


def _estimates(cell: Cell) -> Iterator[Row]:
    """Rows of eps.csv: each metric with its intervals over seeds, examples and both."""

    def row(split: str, metric: str, found: Interval) -> Row:
        keys = {"source": "ours", "eps": cell.eps, "split": split, "metric": metric}
        return keys | interval_row(found)

    for (split, metric), scores_SN in cell.scores.items():
        yield row(split, metric, over_seeds(scores_SN.mean(1)))
        for interval in (over_examples(scores_SN), over_both(scores_SN)):
            if interval.low is not None:  # else it would be the row above once more
                yield row(split, metric, interval)
    for split, (confidence_SN, correct_SN) in cell.top.items():
        eces = np.array([ece_of(*pair) for pair in zip(confidence_SN, correct_SN, strict=True)])
        yield row(split, "ece", over_seeds(eces))
        yield row(split, "ece_debiased", debiased_ece_over_both(confidence_SN, correct_SN))
        floors = np.array([ece_floor(confidence_N) for confidence_N in confidence_SN])
        yield row(split, "ece_if_calibrated", over_seeds(floors))
    yield row("train", "accuracy", over_seeds(np.array(cell.train_accuracy)))


def _paper_rows(recipe: str) -> list[Row]:
    return [
        {
            "source": f"paper, {number.where}",
            "eps": eps,
            "split": number.split,
            "metric": "accuracy",
            "value": number.value,
            "low": None if number.spread is None else number.value - number.spread,
            "high": None if number.spread is None else number.value + number.spread,
            "n": None,
            "interval": None if number.spread is None else "not stated",
        }
        for eps, number in PAPER_ACCURACY.get(recipe, {}).items()
    ]


def _differences(cells: Sequence[Cell]) -> Iterator[Row]:
    """Rows of differences.csv: every eps against the smallest, paired by seed.

    Holm's correction is over the eps of one metric and split.
    """
    base, *others = cells
    for split, metric in [
        (s, m) for s in SPLITS for m in ("accuracy", "nll", "brier", "ece_debiased")
    ]:
        found = []
        for cell in others:
            seeds = [seed for seed in cell.seeds if seed in base.seeds]
            if seeds and split in base.top and split in cell.top:
                values = [_by_seed(one, split, metric, seeds) for one in (cell, base)]
                found.append((cell, paired(*values)))
        adjusted = holm([pair.p for _, pair in found])
        # What n seeds allow at best: a p that could not fall under .05 would only mislead.
        least = holm([None if pair.p is None else 2 / 2**pair.difference.n for _, pair in found])
        for (cell, pair), p_holm, best in zip(found, adjusted, least, strict=True):
            yield {
                "eps": cell.eps,
                "minus": base.eps,
                "split": split,
                "metric": metric,
                **interval_row(pair.difference),
                "correlation": None if pair.correlation is None else round(pair.correlation, 4),
                "p": pair.p,
                "p_holm": p_holm if best is not None and best <= 0.05 else None,
                **_resolution(cell, base, split, metric),
            }


def _resolution(cell: Cell, base: Cell, split: str, metric: str) -> Row:
    """On how many examples one of two runs of a seed is right, and what difference that shows."""
    if metric != "accuracy":
        return {"disagreement": None, "visible_difference": None}
    seeds = [seed for seed in cell.seeds if seed in base.seeds]
    correct, others = (
        one.top[split][1][[one.seeds.index(seed) for seed in seeds]] for one in (cell, base)
    )
    disagreement = float((correct != others).mean())
    visible = smallest_visible_difference(disagreement, correct.shape[1])
    return {"disagreement": disagreement, "visible_difference": visible}


def _notes(cells: Sequence[Cell], differences: Sequence[Row]) -> list[str]:
    """What a test set of this size leaves open, whatever the number of seeds."""
    done = next(cell for cell in cells if cell.seeds)
    correct_SN = done.top["test"][1]
    count, accuracy = correct_SN.shape[1], float(correct_SN.mean())
    half = 100 * accuracy_half_width(accuracy, count)
    lines = [
        "+- half of the 95 % interval: of accuracy and NLL over seeds and examples, of ECE over "
        "seeds; differences paired by seed, in percentage points",
        f"{count:,} test images leave +-{half:.2f} points of an accuracy open, whatever the seeds",
    ]
    rows = [r for r in differences if (r["split"], r["metric"]) == ("test", "accuracy")]
    if not rows and len(cells) > 1:
        lines.append(f"no differences: they are to eps {cells[0].eps:g}, seed by seed")
    if rows:
        disagreement = float(np.mean([row["disagreement"] for row in rows]))
        visible = 100 * smallest_visible_difference(disagreement, count)
        lines.append(
            f"of two networks of one seed exactly one is right on {100 * disagreement:.1f} % of "
            f"them: one pair shows differences from {visible:.2f} points on"
        )
    if all(len(cell.seeds) < 2 for cell in cells):
        lines.append(ONE_SEED)
    return lines


def _by_seed(cell: Cell, split: str, metric: str, seeds: Sequence[int]) -> np.ndarray:
    rows = [cell.seeds.index(seed) for seed in seeds]
    if metric == "ece_debiased":
        confidence_SN, correct_SN = cell.top[split]
        return np.array([debiased_ece(confidence_SN[row], correct_SN[row]) for row in rows])
    return cell.scores[split, metric][rows].mean(1)


def _unchanged(cells: Sequence[Cell], recipe: str, done: Sequence[Trained]) -> Finding:
    by_eps = {cell.eps: cell for cell in cells if cell.seeds}
    numbers = PAPER_ACCURACY.get(recipe)
    paper = numbers[0.1].value - numbers[0.0].value if numbers else None

    if because := other_spread(done):
        return untested(UNCHANGED, paper, because)
    if not {0.0, 0.1} <= set(by_eps):
        return untested(UNCHANGED, paper, "needs runs at eps 0 and 0.1")
    hard, smooth = by_eps[0.0], by_eps[0.1]
    seeds = [seed for seed in smooth.seeds if seed in hard.seeds]
    if not seeds:
        return untested(UNCHANGED, paper, "needs the same seeds at eps 0 and 0.1")
    found = paired(*(_by_seed(one, "test", "accuracy", seeds) for one in (smooth, hard))).difference
    return decide(UNCHANGED, found, paper, str(done[0].entry.config["data.name"]))


def _summary(
    cells: Sequence[Cell],
    trained: Sequence[Trained],
    estimates: Sequence[Row],
    differences: Sequence[Row],
    recipe: str,
) -> list[list[str]]:
    """The table on the terminal: test scores as mean and half the 95 % interval."""

    def cell_of(eps: float, metric: str, factor: float, digits: int, *, interval: str) -> str:
        rows = [
            row
            for row in estimates
            if (row["eps"], row["split"], row["metric"]) == (eps, "test", metric)
        ]
        row = next((row for row in rows if row["interval"] == interval), rows[0] | {"low": None})
        text = f"{factor * row['value']:.{digits}f}"
        if row["low"] is None:
            return text
        return f"{text} +- {factor * (row['high'] - row['low']) / 2:.{digits}f}"

    header = [
        "eps",
        "seeds",
        "test accuracy %",
        "NLL",
        "ECE",
        f"accuracy % minus eps {cells[0].eps:g}",
        "p (Holm)",
    ]
    rows = [header]
    for eps, number in PAPER_ACCURACY.get(recipe, {}).items():
        spread = "" if number.spread is None else f" +- {100 * number.spread:.1f}"
        value = f"{100 * number.value:.1f}{spread} ({number.split})"
        rows.append([f"{eps:g} paper", "", value, "", "", "", ""])
    for eps, number in REPRODUCTION_ACCURACY.get(recipe, {}).items():
        if eps in {cell.eps for cell in cells}:
            name = f"{eps:g} public reproduction"
            value = f"{100 * number.value:.1f} ({number.split})"
            rows.append([name, "1", value, "", "", "", ""])
    for cell in cells:
        count = seeds_cell(trained, cell.eps)
        if not cell.seeds:
            rows.append([f"{cell.eps:g}", count, "", "", "", "", ""])
            continue
        gap, p = "", ""
        for row in differences:
            if (row["eps"], row["split"], row["metric"]) == (cell.eps, "test", "accuracy"):
                gap = f"{100 * row['value']:+.2f}"
                if row["low"] is not None:
                    gap += f" [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
                p = "" if row["p_holm"] is None else f"{row['p_holm']:.3f}"
        rows.append(
            [
                f"{cell.eps:g}",
                count,
                cell_of(cell.eps, "accuracy", 100, 2, interval="both"),
                cell_of(cell.eps, "nll", 1, 4, interval="both"),
                cell_of(cell.eps, "ece", 1, 4, interval="seeds"),
                gap,
                p,
            ]
        )
    return rows


EACH = {"linestyle": "none", "marker": "o", "markersize": 3, "alpha": 0.5, "color": COLORS[7]}
MEAN = {"color": COLORS[0], "marker": "_", "capsize": 3, "linewidth": 1}
PANELS = (
    ("accuracy", 100.0, "test accuracy (%)"),
    ("nll", 1.0, "test NLL (nats)"),
    ("ece", 1.0, "test ECE (15 bins)"),
)


@styled
def draw(_study: Config, results: Sequence[Result]) -> dict[str, Figure]:
    """Test accuracy, what is won or lost of it, NLL and ECE against eps: a point a seed, the mean
    with its interval."""
    figure, axes_RC = grid(len(results), 1 + len(PANELS), width=3.1)
    for axes, result in zip(axes_RC, results, strict=True):
        first, second, *others = axes
        for axis, panel in zip((first, *others), PANELS, strict=True):
            _draw_panel(axis, result, *panel)
        _draw_differences(second, result)
        runs_done = [row for row in result.tables["runs"] if row["status"] == "finished"]
        seeds = len({row["seed"] for row in runs_done})
        counts = f"{plural(len(runs_done), 'run')}, {plural(seeds, 'seed')}"
        if len(results) == 1:
            figure.suptitle(plain(f"{result.title} ({counts})"))
        else:
            title = plain(f"{result.title} ({counts})")
            axes[0].set_title(title, loc="left", fontsize=8, pad=36)  # above the legend
    return {"eps": figure}


def _draw_differences(axis: Any, result: Result) -> None:
    """Accuracy minus that at the smallest eps, seed by seed: what pairing shows that bars hide."""
    rows = [
        row
        for row in result.tables.get("differences", [])
        if (row["split"], row["metric"]) == ("test", "accuracy")
    ]
    axis.set_visible(bool(rows))
    if not rows:
        return
    base = rows[0]["minus"]
    accuracy = {
        (row["eps"], row["seed"]): 100 * row["test_accuracy"]
        for row in result.tables["runs"]
        if row["status"] == "finished"
    }
    pairs = [
        (eps, value - accuracy[base, seed])
        for (eps, seed), value in accuracy.items()
        if eps != base and (base, seed) in accuracy
    ]
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.plot(*zip(*pairs, strict=True), **EACH, label="a seed")
    errors = [
        [np.nan if row[end] is None else 100 * abs(row[end] - row["value"]) for row in rows]
        for end in ("low", "high")
    ]
    axis.errorbar(
        [row["eps"] for row in rows],
        [100 * row["value"] for row in rows],
        yerr=errors,
        label="mean, 95 % over seeds" if any(row["low"] is not None for row in rows) else "mean",
        **MEAN,
    )
    _tell_counts(axis, {row["eps"]: row["n"] for row in rows})
    axis.set_xlim(left=min(base, 0.0) - 0.05 * rows[-1]["eps"])
    axis.set_xlabel("eps (smoothing)")
    axis.set_ylabel(f"test accuracy minus eps {base:g}\n(points, paired by seed)")
    axis.legend(**ABOVE)


def _draw_panel(axis: Any, result: Result, metric: str, factor: float, label: str) -> None:
    runs_done = [row for row in result.tables["runs"] if row["status"] == "finished"]
    estimates = result.tables["eps"]
    axis.plot(
        [row["eps"] for row in runs_done],
        [factor * row[f"test_{metric}"] for row in runs_done],
        **EACH,
        label="a seed",
    )
    # ECE has no interval over both: resampled examples would bias it.
    over = "seeds" if metric == "ece" else "both"
    rows = [
        row
        for row in estimates
        if row["source"] == "ours" and (row["split"], row["metric"]) == ("test", metric)
    ]
    # One row for each eps: with that interval, else without any.
    means = {row["eps"]: row | {"low": None, "high": None} for row in rows}
    means |= {row["eps"]: row for row in rows if row["interval"] == over}
    values = list(means.values())
    errors = [
        [np.nan if row[end] is None else factor * abs(row[end] - row["value"]) for row in values]
        for end in ("low", "high")
    ]
    said = "seeds and examples" if over == "both" else "seeds"
    bars = any(row["low"] is not None for row in values)
    axis.errorbar(
        [row["eps"] for row in values],
        [factor * row["value"] for row in values],
        yerr=errors,
        label=f"mean, 95 % over {said}" if bars else "mean; no interval from one seed",
        **MEAN,
    )
    paper = [row for row in estimates if row["source"] != "ours" and row["metric"] == metric]
    if paper:
        axis.errorbar(
            [row["eps"] for row in paper],
            [factor * row["value"] for row in paper],
            yerr=[factor * (row["high"] - row["value"]) for row in paper],
            color=COLORS[1],
            linestyle="none",
            marker="D",
            markersize=4,
            capsize=3,
            label="paper (on val)",
        )
    _tell_counts(axis, Counter(row["eps"] for row in runs_done))
    axis.set_xlabel("eps (smoothing)")
    axis.set_ylabel(label)
    axis.legend(**ABOVE)


def _tell_counts(axis: Any, seeds_at: Mapping[float, int]) -> None:
    """The number of seeds at each eps, below what is drawn, where they differ."""
    if len(set(seeds_at.values())) < 2:
        return
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.08 * (high - low), high)
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 6}
    for eps, count in seeds_at.items():
        axis.annotate(f"n={count}", (eps, 0), xycoords=axis.get_xaxis_transform(), **place)
