"""The figures of calibration.py, drawn from its tables: a row, or two, for each recipe.

Shape letters: S seeds, T temperatures or coverages.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lsexp.figures import COLORS, grid, legend_below, logarithmic, plain, series_style, styled
from lsexp.studies import Result, Row
from lsexp.text import places, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = "eps 0.05"
"""Which smoothed networks Figure 2 shows, where there are any of these."""
FEW = 10
"""Bins of fewer images, on average over seeds, are shown without a gap."""


@styled
def draw(bins: int, results: Sequence[Result]) -> dict[str, Figure]:
    """All of them, by name."""
    return {
        "calibration": _draw_reliability(bins, results),
        "temperatures": _draw_temperatures(results),
        "risk_coverage": _draw_risk(results),
    }


def _name(row: Row) -> str:
    return f"eps {row['eps']:.12g}" if "eps" in row else str(row["model"])


def _title(result: Result) -> str:
    """On several lines, for the side of a row."""
    return _wrapped(plain(result.title).split(", "), 40)


def _wrapped(lines: Sequence[str], longest: int) -> str:
    """Lines of so many characters at most: names of files may be long."""
    return "\n".join(textwrap.fill(line, longest) for line in lines)


def _reported(result: Result) -> list[Row]:
    """Bins of the split that is shown: test, where there is one."""
    rows = result.tables["reliability"]
    split = "test" if any(row["split"] == "test" for row in rows) else "val"
    return [row for row in rows if row["split"] == split]


def _columns(result: Result) -> list[tuple[str, list[Row], str]]:
    """Networks of Figure 2: title, bins, and "1" or "fitted"."""
    rows = _reported(result)
    names = list(dict.fromkeys(_name(row) for row in rows))
    first, others = names[0], names[1:]
    wanted = [(first, "1"), (first, "fitted")]
    if others:
        wanted.append((SMOOTHED if SMOOTHED in others else others[0], "1"))
    found = []
    for name, which in wanted:
        bins = [row for row in rows if (_name(row), row["temperature"]) == (name, which)]
        if bins:
            ece = _mean(result, name, bins[0]["split"], which, "ece")
            at = ""
            if which == "fitted":
                best = _mean(result, name, "val", which, "temperature")
                at = f", at T = {rounded(best, places(best, 2))}"
            found.append((f"{plain(name)}{at}\nECE {ece:.3f}", bins, which))
    return found


def _mean(result: Result, name: str, split: str, which: str, metric: str) -> float:
    """Of ours, over seeds."""
    wanted = (split, which, metric)
    return next(
        float(row["value"])
        for row in result.tables["calibration"]
        if row["source"] == "ours"
        and _name(row) == name
        and (row["split"], row["temperature"], row["metric"]) == wanted
    )


def _draw_reliability(bins: int, results: Sequence[Result]) -> Figure:
    columns = max(len(_columns(result)) for result in results)
    heights = [1.0, 0.4] * len(results)
    figure, axes_RC = grid(len(heights), columns, width=2.7, height=2.8, heights=heights)
    for number, result in enumerate(results):
        upper, lower = axes_RC[2 * number], axes_RC[2 * number + 1]
        for axis in (*upper, *lower):
            axis.set_visible(False)
        for above, below, (title, rows, _) in zip(upper, lower, _columns(result), strict=False):
            above.set_visible(True)
            below.set_visible(True)
            _draw_diagram(above, rows, bins)
            _draw_counts(below, rows, bins)
            above.set_title(_wrapped(title.split("\n"), 32), fontsize=9)
        upper[0].set_ylabel("accuracy")
        _name_row(upper[0], result)
        lower[0].set_ylabel("share of\nimages", fontsize=7)
    named: dict[str, Any] = {}
    for axis in itertools.chain(*axes_RC):
        named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    legend_below(figure, list(named.values()), list(named), columns=3, fontsize=7)
    return figure


def _name_row(axis: Any, result: Result) -> None:
    """The recipe, beside the first panel of its row."""
    place = {"ha": "center", "va": "center", "rotation": "vertical", "transform": axis.transAxes}
    axis.text(-0.42, 0.5, _title(result), fontsize=7, **place)


def _by_bin(rows: Sequence[Row], bins: int) -> Iterator[tuple[Sequence[Row], list[Row]]]:
    """Rows of each bin over the seeds, and those of them that hold examples."""
    for b in range(bins):
        here = rows[b::bins]
        yield here, [row for row in here if row["n"]]


def _draw_diagram(axis: Any, rows: Sequence[Row], bins: int) -> None:
    """Accuracy in each bin, seeds pooled; the range that sampling gives one calibrated network."""
    points = []
    for _, filled in _by_bin(rows, bins):
        if filled:
            n = np.array([row["n"] for row in filled])
            columns = ("confidence", "accuracy", "calibrated_low", "calibrated_high")
            means = [np.average([r[name] for r in filled], weights=n) for name in columns]
            points.append([*means, n.mean()])
    confidence, accuracy, low, high, count = np.array(points).T
    axis.vlines(
        confidence, low, high, color="0.85", linewidth=6,
        label="of one calibrated network, 95 %",
    )  # fmt: skip
    axis.plot([0, 1], [0, 1], color="0.3", linewidth=0.8, linestyle="--", label="calibrated")
    many = count >= FEW
    axis.vlines(
        confidence[many], confidence[many], accuracy[many], color=COLORS[1], linewidth=1.2,
        label="gap",
    )  # fmt: skip
    style = {"color": COLORS[0], "markersize": 4, "linewidth": 1}
    axis.plot(confidence[many], accuracy[many], "o-", label="accuracy, seeds pooled", **style)
    if not many.all():
        style |= {"markerfacecolor": "none", "label": f"of fewer than {FEW} images a seed"}
        axis.plot(confidence[~many], accuracy[~many], "o", **style)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_box_aspect(1)
    axis.tick_params(labelbottom=False)


def _draw_counts(axis: Any, rows: Sequence[Row], bins: int) -> None:
    total = sum(row["n"] for row in rows)
    for here, _ in _by_bin(rows, bins):
        share = sum(row["n"] for row in here) / total
        left, width = here[0]["low"], here[0]["high"] - here[0]["low"]
        axis.bar(left, share, width, align="edge", color="0.6", edgecolor="white", linewidth=0.5)
    axis.set_xlim(0, 1)
    axis.set_yscale("log")
    axis.set_ylim(0.5 / total, 1)
    axis.set_box_aspect(0.35)
    axis.set_xlabel("confidence")


def _mean_curve(rows: Sequence[Row], at: str, of: str) -> tuple[np.ndarray, np.ndarray]:
    """Of several seeds at the same places: these, and the mean over seeds."""
    places: dict[float, list[float]] = {}
    for row in rows:
        places.setdefault(row[at], []).append(row[of])
    return np.array(list(places)), np.array([np.mean(values) for values in places.values()])


LEAST = 1e-5
"""NLL and ECE that a logarithmic axis shows; less, or none, is drawn there."""


def _draw_temperatures(results: Sequence[Result]) -> Figure:
    figure, axes_RC = grid(len(results), 2)
    for axes, result in zip(axes_RC, results, strict=True):
        rows = result.tables["temperatures"]
        split = rows[0]["split"]
        fitted = {
            _name(row): row["value"]
            for row in result.tables["calibration"]
            if row["source"] == "ours"
            and row["temperature"] == "fitted"
            and (row["split"], row["metric"]) == ("val", "temperature")
        }
        for axis, metric, label in zip(
            axes, ("nll", "ece"), (f"{split} NLL (nats)", f"{split} ECE"), strict=True
        ):
            top = 0.0
            for number, name in enumerate(dict.fromkeys(_name(row) for row in rows)):
                here = [row for row in rows if _name(row) == name]
                at_T, mean_T = _mean_curve(here, "temperature", metric)
                top = max(top, float(mean_T.max()))
                style = series_style(number)
                best = fitted.get(name)
                title = plain(name) + (
                    "" if best is None else f", T = {rounded(best, places(best, 2))}"
                )
                axis.plot(at_T, np.maximum(mean_T, LEAST), label=title, **style)
                if best is not None:  # one beyond the axis lies at its edge
                    dot = np.interp(np.log(best), np.log(at_T), np.maximum(mean_T, LEAST))
                    place = np.clip(best, at_T[0], at_T[-1])
                    axis.plot(place, dot, "o", color=style["color"], markersize=5, clip_on=False)
            axis.axvline(1, color="0.5", linewidth=0.8)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("temperature (dots: means fitted on val)")
            axis.set_ylabel(label)
            if top > LEAST:
                logarithmic(axis)
        axes[0].legend(fontsize=7)
        axes[0].set_title(plain(result.title), loc="left", fontsize=8)
    return figure


SHOWN_RISK = 0.02
"""Of the largest error: the figure begins where a curve reaches it; before, there is nothing."""


def _draw_risk(results: Sequence[Result]) -> Figure:
    figure, axes_RC = grid(len(results), 2)
    titles = {
        "max_probability": "by largest probability",
        "normalised": "by normalised logit (Xia et al. 2025)",
    }
    for axes, result in zip(axes_RC, results, strict=True):
        rows = result.tables["risk_coverage"]
        curves = []
        for axis, (score, title) in zip(axes, titles.items(), strict=True):
            of_score = [row for row in rows if row["score"] == score]
            axis.set_visible(bool(of_score))
            for number, name in enumerate(dict.fromkeys(_name(row) for row in of_score)):
                here = [row for row in of_score if _name(row) == name]
                coverage_T, risk_T = _mean_curve(here, "coverage", "risk")
                curves.append((coverage_T, 100 * risk_T))
                axis.plot(*curves[-1], label=plain(name), **series_style(number))
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("coverage (fraction of images kept)")
        coverages, risks = np.concatenate(curves, axis=1)
        top = float(risks.max())
        begins = float(coverages[risks >= SHOWN_RISK * top].min())
        for axis in axes:
            axis.set_ylim(0, 1.05 * top or 1)
            axis.set_xlim(np.floor(10 * begins - 1e-9) / 10, 1.01)
        axes[0].set_ylabel(f"{_title(result)}\nerror of those kept (%)", fontsize=8)
        axes[0].legend(fontsize=7)
    return figure
