"""Figure 1 of the paper: three classes in the plane of their templates, hard and smoothed.

Shape letters: S seeds, N examples, D features, E = D + 1, K classes.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lsexp.analysis import projections as geometry
from lsexp.analysis.projections import Plane
from lsexp.analysis.statistics import Interval, over_seeds, paired
from lsexp.config import key
from lsexp.errors import UserError
from lsexp.figures import COLORS, grid, styled
from lsexp.measure import Measured, Measurement
from lsexp.published import PAPER_CLASSES
from lsexp.studies import LEARNT, Claim, Finding, Result, Row, Trained, decide, untested
from lsexp.studies.eps import OWNED as OWNED
from lsexp.studies.eps import runs as runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "Figure 1: three classes in the plane of their templates"
VIEW = ("classes", "examples", "method", "shown_seed")
SPLITS = ("train", "val")
MARKERS = ("o", "^", "s")


@dataclass
class Config:
    eps: list[float] = key(
        [0.0, 0.1], "smoothing of each run, as a list; a pair of panels each", at_least=0, below=1
    )
    seeds: list[int] = key(
        [0, 1, 2, 3, 4], "how many seeds, or which, as a list", at_least=0, below=2**31
    )
    classes: list[str] | None = key(
        None,
        "three classes by name or number, as a list; null: the paper's for CIFAR, elsewhere the "
        "first three",
    )
    examples: int = key(
        100, "images of each class, as drawn (the paper's 100) and measured", at_least=2
    )
    method: str = key(
        "paper",
        "paper: the plane through the three templates; templates_pca: the directions of most "
        "variance in the span of the three; tsne: t-SNE of the features",
        choices=("paper", "templates_pca", "tsne"),
    )
    shown_seed: int | None = key(
        None, "whose network is drawn; null: the first that is trained at every eps", at_least=0
    )


DIFFERENCE = "at eps 0.1 minus at eps 0, paired by seed"
TIGHTER = Claim(
    "clusters-tighter",
    "smoothing by 0.1 tightens the clusters of training images",
    "Figure 1",
    f"log10 of within/between scatter in the plane, on train, {DIFFERENCE}",
    "below",
    unit="(log10)",
)
SPREAD = Claim(
    "validation-spreads",
    "under smoothing by 0.1 the clusters of images held out are wider than those of training",
    "Figure 1",
    "log10 of within/between scatter in the plane at eps 0.1, val minus train",
    "above",
    unit="(log10)",
)
EQUIDISTANT = Claim(
    "templates-equidistant",
    "smoothing by 0.1 brings the three templates closer to a regular triangle",
    "Figure 1",
    f"log10 of longest by shortest side, {DIFFERENCE}",
    "below",
    unit="(log10)",
)
SMALLER = Claim(
    "scale-smaller",
    "smoothing by 0.1 makes the picture smaller",
    "Figure 1",
    f"log10 of the extent in the plane, on train, {DIFFERENCE}",
    "below",
    unit="(log10)",
)
CLAIMS = (TIGHTER, SPREAD, EQUIDISTANT, SMALLER)
"""Declared before any run. Gate: hard runs have learnt their training images (`LEARNT`); in the
paper's figure they have."""


def drawn(eps: Sequence[float]) -> list[float]:
    """Of what a sweep trained, what is drawn if nothing is typed: 0 and 0.1, else the ends."""
    wanted = [0.0, 0.1]
    return wanted if set(wanted) <= set(eps) else sorted({min(eps), max(eps)})


class Chosen(NamedTuple):
    """The three classes: number and name."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


def _chosen(study: Config, trained: Sequence[Trained]) -> Chosen:
    """What `classes=` means for the data of these runs.

    Raises:
        UserError: not three different classes, or none of that name.
    """
    metrics = next(one for one in trained if one.finished).entry.metrics
    names, data = metrics["classes"], metrics["config"]["data.name"]
    if len(names) < 3:
        raise UserError(
            f"plot projections: {data} has {len(names)} classes; a plane needs three",
            exit_code=1,
        )
    typed = study.classes or list(PAPER_CLASSES.get(data, names[:3]))
    found = []
    for word in typed:
        if word in names:
            found.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            found.append(int(word))
        else:
            close = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            listed = f" ({', '.join(names)})" if len(names) <= 20 else ""
            raise UserError(
                f"classes={','.join(typed)}: {data} has no class {word}{hint}; it has "
                f"{len(names)}, by name{listed} or number, 0 to {len(names) - 1}"
            )
    if len(found) != 3 or len(set(found)) != 3:
        raise UserError(f"classes={','.join(typed)}: must be three different classes")
    return Chosen(tuple(found), tuple(names[k] for k in found))


def _asked(study: Config, chosen: Chosen, split: str) -> Measurement:
    return Measurement(split, chosen.numbers, study.examples)


def measurements(study: Config, trained: Sequence[Trained]) -> list[Measurement]:
    """The first `examples` of each class, of train and, where there is one, of val."""
    chosen = _chosen(study, trained)
    done = next(one for one in trained if one.finished)
    splits = SPLITS if done.entry.metrics["val"] else SPLITS[:1]
    return [_asked(study, chosen, split) for split in splits]


@dataclass
class Picture:
    """One network.

    Attributes:
        plane: that of `method`; None for t-SNE.
        points: split to coordinates [N, 2]; corners: of the three templates, [3, 2], empty for
            t-SNE.
        numbers: (split, metric) to value; split "" for those of the templates.
    """

    keys: Row
    measured: dict[str, Measured]
    plane: Plane | None
    points: dict[str, np.ndarray]
    corners: np.ndarray
    numbers: dict[tuple[str, str], float]


def analyze(study: Config, trained: Sequence[Trained], recipe: str) -> Result:
    """Pictures of all networks, and what is measured on them."""
    chosen = _chosen(study, trained)
    done = [one for one in trained if one.finished]
    config = done[0].entry.config
    pictures = [_picture(study, chosen, one) for one in done]
    seed = _shown_seed(study, pictures)
    estimates = list(_estimates(pictures))
    tables = {
        "projections": estimates,
        "points": [row for one in pictures for row in _point_rows(chosen, one)],
        "runs": [_run_row(one, shown=one.keys["seed"] == seed) for one in trained],
    }
    corners = [row for one in pictures for row in _corner_rows(chosen, one)]
    if corners:
        tables["templates"] = corners
    title = f"{recipe}, budget {config['budget']}, seed {seed}"
    return Result(
        recipe,
        tables,
        _findings(study, done, pictures),
        summary=_summary(estimates, trained),
        notes=_notes(study, chosen, done),
        title=title,
    )


METHODS = {
    "paper": "plane through the templates (the paper's)",
    "templates_pca": "PCA in the span of the templates",
    "tsne": "t-SNE of the features (no scale)",
}


def _shown_seed(study: Config, pictures: Sequence[Picture]) -> int:
    """The seed that is drawn.

    Raises:
        UserError: the one asked for is not trained.
    """
    seeds = sorted({one.keys["seed"] for one in pictures})
    if study.shown_seed is not None:
        if study.shown_seed not in seeds:
            raise UserError(
                f"shown_seed={study.shown_seed}: must be one of those trained: "
                f"{', '.join(map(str, seeds))}"
            )
        return study.shown_seed
    count = {seed: sum(one.keys["seed"] == seed for one in pictures) for seed in seeds}
    return max(seeds, key=lambda seed: (count[seed], -seed))


def _picture(study: Config, chosen: Chosen, one: Trained) -> Picture:
    measured = {asked.split: found for asked, found in one.measured.items()}
    some = measured["train"]
    templates_KE = geometry.templates(some.weight_KD, some.bias_K)
    three_3E = templates_KE[list(chosen.numbers)]
    points_by_split = {s: geometry.activations(m.features_ND) for s, m in measured.items()}
    plane: Plane | None = None
    corners = np.empty((0, 2))
    try:
        if study.method == "paper":
            plane = geometry.plane_of(three_3E)
        elif study.method == "templates_pca":
            plane = geometry.principal_plane(three_3E, points_by_split["train"])
    except ValueError as error:
        raise UserError(f"{one.entry.name}: {error}", exit_code=1) from error
    if plane is None:
        together = np.concatenate([m.features_ND for m in measured.values()])
        flat = geometry.tsne(together)
        ends = np.cumsum([len(m.labels_N) for m in measured.values()])[:-1]
        points = dict(zip(measured, np.split(flat, ends), strict=True))
    else:
        points = {s: geometry.project(plane, p) for s, p in points_by_split.items()}
        corners = geometry.project(plane, three_3E)
    picture = Picture(one.keys, measured, plane, points, corners, {})
    picture.numbers = dict(_numbers(chosen, picture, templates_KE, points_by_split))
    return picture


def _numbers(
    chosen: Chosen,
    picture: Picture,
    templates_KE: np.ndarray,
    points_by_split: dict[str, np.ndarray],
) -> Iterator[tuple[tuple[str, str], float]]:
    lengths = geometry.sides(templates_KE[list(chosen.numbers)])
    pairs = itertools.combinations(chosen.names, 2)
    for (first, second), length in zip(pairs, lengths, strict=True):
        yield ("", f"side {first}-{second}"), float(length)
    yield ("", "side_ratio"), float(lengths.max() / lengths.min())
    for split, found in picture.measured.items():
        points_NE, labels_N = points_by_split[split], found.labels_N
        within, between = geometry.scatter(points_NE, labels_N)
        yield (split, "scatter_ratio"), within / between
        if picture.plane is not None:
            flat_N2 = picture.points[split]
            within, between = geometry.scatter(flat_N2, labels_N)
            yield (split, "scatter_ratio_plane"), within / between
            yield (split, "extent_plane"), float(np.sqrt(flat_N2.var(0).sum()))
            yield (split, "variance_kept"), geometry.kept(picture.plane, points_NE)
        far_NK = geometry.distances(points_NE, templates_KE)
        own_NK = np.eye(len(templates_KE), dtype=bool)[labels_N]
        others_NJ = far_NK[~own_NK].reshape(len(far_NK), -1)
        yield (split, "distance_own"), float(far_NK[own_NK].mean())
        yield (split, "distance_other"), float(others_NJ.mean())
        yield (split, "distance_other_spread"), float((others_NJ.std(1) / others_NJ.mean(1)).mean())


def _interval_row(found: Interval) -> Row:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "interval": found.over if found.low is not None else None,
    }


def _estimates(pictures: Sequence[Picture]) -> Iterator[Row]:
    """Rows of projections.csv: each number at each eps, over seeds."""
    for eps in sorted({one.keys["eps"] for one in pictures}):
        here = [one for one in pictures if one.keys["eps"] == eps]
        for split, metric in here[0].numbers:
            values = np.array([one.numbers[split, metric] for one in here])
            row = {"eps": eps, "split": split, "metric": metric}
            if np.isfinite(values).all():
                yield row | _interval_row(over_seeds(values))


def _point_rows(chosen: Chosen, one: Picture) -> Iterator[Row]:
    names = dict(zip(chosen.numbers, chosen.names, strict=True))
    for split, found in one.measured.items():
        predicted = found.logits_NK.argmax(1)
        for i, (x, y) in enumerate(one.points[split].tolist()):
            yield {
                **one.keys,
                "split": split,
                "class": names[int(found.labels_N[i])],
                "index": int(found.indices_N[i]),
                "x": x,
                "y": y,
                "right": bool(predicted[i] == found.labels_N[i]),
            }


def _corner_rows(chosen: Chosen, one: Picture) -> Iterator[Row]:
    for name, (x, y) in zip(chosen.names, one.corners.tolist(), strict=False):
        yield {**one.keys, "class": name, "x": x, "y": y}


def _run_row(one: Trained, *, shown: bool) -> Row:
    metrics = one.entry.metrics
    return {
        **one.keys,
        "status": one.entry.status,
        "run": one.entry.name,
        "shown": shown and one.finished,
        "train_accuracy": metrics.get("train", {}).get("accuracy"),
        "test_accuracy": (metrics.get("test") or {}).get("accuracy"),
        "precision": one.entry.config.get("precision"),
    }


def _findings(study: Config, done: Sequence[Trained], pictures: Sequence[Picture]) -> list[Finding]:
    config = done[0].entry.config
    if study.method != "paper":
        because = "the claims are of method=paper"
        return [untested(claim, None, because) for claim in CLAIMS]
    if config.get("loss.spread", "uniform") != "uniform":
        because = "eps is spread over the other classes only; the paper spreads it over all"
        return [untested(claim, None, because) for claim in CLAIMS]
    hard = {one.keys["seed"]: one for one in pictures if one.keys["eps"] == 0}
    smooth = {one.keys["seed"]: one for one in pictures if one.keys["eps"] == 0.1}
    seeds = sorted(hard.keys() & smooth.keys())
    if not seeds:
        because = "needs runs at eps 0 and 0.1 of the same seed"
        return [untested(claim, None, because) for claim in CLAIMS]
    learnt = np.mean([o.entry.metrics["train"]["accuracy"] for o in done if o.keys["eps"] == 0])
    closed = ""
    if learnt < LEARNT:
        closed = (
            f"hard runs are right on {learnt:.3f} of their training images, not yet on {LEARNT}"
        )

    def logs(of: dict[int, Picture], split: str, metric: str) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log10([of[seed].numbers[split, metric] for seed in seeds])

    ratio, extent = "scatter_ratio_plane", "extent_plane"
    compared = {
        TIGHTER: (logs(smooth, "train", ratio), logs(hard, "train", ratio)),
        EQUIDISTANT: (logs(smooth, "", "side_ratio"), logs(hard, "", "side_ratio")),
        SMALLER: (logs(smooth, "train", extent), logs(hard, "train", extent)),
    }
    if "val" in smooth[seeds[0]].measured:
        compared[SPREAD] = (logs(smooth, "val", ratio), logs(smooth, "train", ratio))
    findings = []
    for claim in CLAIMS:
        if claim not in compared:
            findings.append(untested(claim, None, "there are no images held out"))
        elif not np.isfinite(compared[claim]).all():
            findings.append(untested(claim, None, "a cluster has no extent at all"))
        else:
            found = paired(*compared[claim]).difference
            findings.append(decide(claim, found, None, str(config["data.name"]), closed))
    return findings


COLUMNS = (
    ("scatter_ratio_plane", "within/between", 3),
    ("scatter_ratio", "in all dims", 3),
    ("extent_plane", "extent", 3),
    ("distance_own", "to own template", 3),
    ("distance_other", "to others", 3),
    ("variance_kept", "variance kept", 3),
)


def _summary(estimates: Sequence[Row], trained: Sequence[Trained]) -> list[list[str]]:
    def cell(eps: float, split: str, metric: str, digits: int) -> str:
        for row in estimates:
            if (row["eps"], row["split"], row["metric"]) == (eps, split, metric):
                text = f"{row['value']:.{digits}g}"
                if row["low"] is not None:
                    text += f" +- {(row['high'] - row['low']) / 2:.2g}"
                return text
        return ""

    rows = [["eps", "split", "seeds", *(title for _, title, _ in COLUMNS), "sides' ratio"]]
    for eps in sorted({one.keys["eps"] for one in trained}):
        count = sum(one.finished and one.keys["eps"] == eps for one in trained)
        splits = [s for s in SPLITS if any(r["split"] == s for r in estimates)] if count else [""]
        for split in splits:
            cells = [cell(eps, split, metric, digits) for metric, _, digits in COLUMNS]
            rows.append([f"{eps:g}", split, str(count), *cells, cell(eps, "", "side_ratio", 3)])
    return rows


def _notes(study: Config, chosen: Chosen, done: Sequence[Trained]) -> list[str]:
    found = next(iter(done[0].measured.values()))
    counts = [int((found.labels_N == k).sum()) for k in chosen.numbers]
    few = "" if min(counts) == study.examples else f" (train has {', '.join(map(str, counts))})"
    lines = [
        f"{', '.join(chosen.names)}; {study.examples} images of each{few}; {METHODS[study.method]}",
        "within/between: mean squared distance to the mean of the class, by that of these means "
        "to theirs; +- half of the 95 % interval over seeds",
    ]
    if len({one.keys["seed"] for one in done}) < 2:
        lines.append("one seed: nothing can be said of seeds; seeds=5 trains more")
    return lines


@styled
def draw(study: Config, results: Sequence[Result]) -> dict[str, Figure]:
    """A row a recipe; a pair of panels, train and val, an eps. One scale in a row."""
    shown = [_of_shown_seed(result) for result in results]
    pairs = [sorted({row["eps"] for row in points}) for points, _ in shown]
    columns = 2 * max(map(len, pairs))
    figure, axes_RC = grid(len(results), columns, width=2.5, height=3.0)
    figure.suptitle(f"Three classes: {METHODS[study.method]}")
    for axes, result, of_seed, all_eps in zip(axes_RC, results, shown, pairs, strict=True):
        points, corners = of_seed
        splits = [s for s in SPLITS if any(row["split"] == s for row in points)]
        places = [(eps, split) for eps in all_eps for split in splits]
        for axis, (eps, split) in zip(axes, places, strict=False):
            here = [r for r in points if (r["eps"], r["split"]) == (eps, split)]
            there = [r for r in corners if r["eps"] == eps]
            _draw_points(axis, here, there)
            axis.set_title(f"{'validation' if split == 'val' else 'training'}, eps {eps:g}")
            if study.method == "tsne":
                axis.set_xticks([])
                axis.set_yticks([])
            else:
                axis.set_xlabel("activation", fontsize=7)
                _set_window(axis, [*points, *corners])
                _enlarge(axis, here, there, [*points, *corners])
        for axis in axes[len(places) :]:
            axis.set_visible(False)
        axes[0].legend(fontsize=7, loc="best")
        axes[0].set_ylabel(result.title.replace(", ", "\n"), fontsize=7)
    return {"projections": figure}


def _of_shown_seed(result: Result) -> tuple[list[Row], list[Row]]:
    """Points and templates of the networks that are drawn."""
    shown = {(row["eps"], row["seed"]) for row in result.tables["runs"] if row["shown"]}
    found = [
        [row for row in result.tables.get(name, []) if (row["eps"], row["seed"]) in shown]
        for name in ("points", "templates")
    ]
    return found[0], found[1]


def _draw_points(axis: Any, points: Sequence[Row], corners: Sequence[Row]) -> None:
    """Images as small marks, the templates as large ones on a triangle."""
    closed = [*corners, *corners[:1]]
    axis.plot([r["x"] for r in closed], [r["y"] for r in closed], color="0.4", linewidth=0.8)
    for number, name in enumerate(dict.fromkeys(row["class"] for row in (corners or points))):
        here = [row for row in points if row["class"] == name]
        style = {"marker": MARKERS[number], "color": COLORS[number]}
        at = [row["x"] for row in here], [row["y"] for row in here]
        axis.scatter(*at, s=7, alpha=0.6, linewidths=0, zorder=2, label=name, **style)
        for row in corners:
            if row["class"] == name:
                style = {"marker": MARKERS[number], "edgecolor": "black", "facecolor": "none"}
                axis.scatter(row["x"], row["y"], s=40, linewidths=1, zorder=3, **style)


def _window(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Centre (x, y) of a square that holds all rows, and half of its side."""
    x, y = (np.array([row[name] for row in rows]) for name in ("x", "y"))
    half = 0.54 * max(float(np.ptp(x)), float(np.ptp(y)))
    return float(x.min() + x.max()) / 2, float(y.min() + y.max()) / 2, half


def _set_window(axis: Any, rows: Sequence[Row]) -> None:
    x, y, half = _window(rows)
    axis.set_xlim(x - half, x + half)
    axis.set_ylim(y - half, y + half)
    axis.set_box_aspect(1)


SMALL = 0.4
"""Pictures below this part of their window are shown enlarged beside."""


def _enlarge(
    axis: Any, points: Sequence[Row], corners: Sequence[Row], everything: Sequence[Row]
) -> None:
    """A picture that the common scale makes small, once more, in the corner where there is room."""
    x, y, half = _window([*points, *corners])
    whole_x, whole_y, whole = _window(everything)
    if half > SMALL * whole:
        return
    side = 0.42
    left = 0.0 if x > whole_x else 1 - side
    bottom = 0.0 if y > whole_y else 1 - side
    inset = axis.inset_axes((left, bottom, side, side))
    _draw_points(inset, points, corners)
    half *= 1.1  # whole marks
    inset.set_xlim(x - half, x + half)
    inset.set_ylim(y - half, y + half)
    inset.set_xticks([])
    inset.set_yticks([])
    inset.grid(visible=False)
    for spine in inset.spines.values():
        spine.set_visible(True)
        spine.set_color("0.6")
    times = f"\N{MULTIPLICATION SIGN} {side * whole / half:.2g}"
    inset.text(0.97, 0.96, times, fontsize=7, ha="right", va="top", transform=inset.transAxes)
    axis.indicate_inset_zoom(inset, edgecolor="0.6")
