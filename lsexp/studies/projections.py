"""Figure 1 of the paper: three classes in the plane of their templates, hard and smoothed.

Shape letters: S seeds, N examples, D features, E = D + 1, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lsexp.analysis import projections as geometry
from lsexp.analysis.projections import Plane
from lsexp.analysis.statistics import Interval, over_both_of, over_seeds, paired
from lsexp.config import TrainConfig, key
from lsexp.errors import UserError
from lsexp.figures import COLORS, MARKERS, grid, plain, styled
from lsexp.measure import Measured, Measurement, Question
from lsexp.published import (
    DEFECTS,
    PAPER_ACCURACY,
    PAPER_CLASSES,
    REPRODUCTION_ACCURACY,
    papers,
)
from lsexp.studies import (
    BOTH,
    GATE,
    ONE_SEED,
    Chosen,
    Claim,
    Finding,
    Result,
    Row,
    Trained,
    check_images,
    choose_classes,
    data_and_classes,
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "Figure 1: three classes in the plane of their templates"
ORDER = 2
READING = {
    "projections": "Images of three classes in the plane through their templates (weights and "
    "bias of the last layer; black corners), training and validation, without and with "
    "smoothing, all panels of a row in one scale. Look at how tight a class is, how regular "
    "the triangle of the clusters, how large the picture, and how far validation images bleed "
    "towards the middle.",
}
SHOWN = ("cifar10_alexnet", "cifar100_resnet56")
VIEW = ("classes", "examples", "method", "shown_seed")
SPLITS = ("train", "val")
TEMPLATE: dict[str, Any] = {"edgecolor": "black", "facecolor": "none", "linewidths": 1}
MOST_COLUMNS = 4


@dataclass
class Config:
    eps: list[float] = eps_key(
        [0.0, 0.1], "smoothing of each run, as a list; a pair of panels each"
    )
    seeds: list[int] = seeds_key([0, 1, 2, 3, 4])
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
    gate=GATE,
)
SPREAD = Claim(
    "validation-spreads",
    "under smoothing by 0.1 the clusters of images held out are wider than those of training",
    "Figure 1",
    f"log10 of within/between scatter in the plane at eps 0.1, val minus train; {BOTH}",
    "above",
    unit="(log10)",
    gate=GATE,
)
EQUIDISTANT = Claim(
    "templates-equidistant",
    "smoothing by 0.1 brings the three templates closer to a regular triangle",
    "Figure 1",
    f"log10 of longest by shortest side, {DIFFERENCE}",
    "below",
    unit="(log10)",
    gate=GATE,
)
REGULAR = Claim(
    "clusters-regular",
    "smoothing by 0.1 brings the clusters of training images closer to a regular triangle",
    "Figure 1",
    f"log10 of longest by shortest side of the triangle of the clusters' means in the plane, on "
    f"train, {DIFFERENCE}; declared when runs on digits, MNIST and AlexNet were known",
    "below",
    unit="(log10)",
    gate=GATE,
)
SMALLER = Claim(
    "scale-smaller",
    "smoothing by 0.1 makes the picture smaller",
    "Figure 1",
    f"log10 of the extent in the plane, on train, {DIFFERENCE}",
    "below",
    unit="(log10)",
    gate=GATE,
)
CLAIMS = (TIGHTER, SPREAD, EQUIDISTANT, REGULAR, SMALLER)
"""Declared before any run, but for REGULAR: the paper speaks of the clusters' triangle, and
EQUIDISTANT had taken the templates' for it; and but for the images in SPREAD's interval: all seeds
see the same, and val's are not train's. Gate: hard runs have learnt their training images
(`learnt`); in the paper's figure they have. They are judged with the default classes and number of
images only."""
FEWEST = 10
"""Images of a class, in each split, below which SPREAD is not judged."""


def drawn(eps: Sequence[float]) -> list[float]:
    """Of what a sweep trained, what is drawn if nothing is typed: 0 and 0.1, else the ends."""
    wanted = [0.0, 0.1]
    return wanted if set(wanted) <= set(eps) else sorted({min(eps), max(eps)})


def check(
    study: Config,
    data: str,
    classes: Sequence[str],
    _planned: TrainConfig,
    images: Mapping[str, Sequence[int]],
) -> None:
    """Refuse classes that the data have not, or no images of, and a seed that the study has not.

    Raises:
        UserError: naming the key.
    """
    check_images(_chosen(study, data, classes), images, 1)
    if study.shown_seed is not None and study.shown_seed not in study.seeds:
        raise UserError(
            f"shown_seed={study.shown_seed}: must be one of seeds: "
            f"{', '.join(map(str, study.seeds))}"
        )


def _chosen(study: Config, data: str, classes: Sequence[str]) -> Chosen:
    if len(classes) < 3:
        raise UserError(
            f"projections: {data} has {len(classes)} classes; a plane needs three",
            exit_code=1,
        )
    typed = study.classes or list(PAPER_CLASSES.get(data, classes[:3]))
    return choose_classes(typed, data, classes, count=3)


def _chosen_of(study: Config, trained: Sequence[Trained]) -> Chosen:
    return _chosen(study, *data_and_classes(trained))


def _asked(study: Config, chosen: Chosen, split: str) -> Measurement:
    return Measurement(split, chosen.numbers, study.examples)


def measurements(study: Config, trained: Sequence[Trained]) -> list[Question]:
    """The first `examples` of each class, of train and, where there is one, of val."""
    chosen = _chosen_of(study, trained)
    done = next(one for one in trained if one.finished)
    splits = SPLITS if done.entry.metrics["val"] else SPLITS[:1]
    return [_asked(study, chosen, split) for split in splits]


@dataclass
class Picture:
    """One network.

    Attributes:
        plane: that of `method`; None for t-SNE.
        points: split to coordinates [N, 2], empty for a t-SNE that is not shown; corners: of the
            three templates, [3, 2], empty for t-SNE.
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
    chosen = _chosen_of(study, trained)
    done = [one for one in trained if one.finished]
    seed, pictures, flat = _pictures(study, chosen, done)
    estimates = list(_estimates(pictures))
    tables = {
        "projections": estimates,
        "points": [row for one in pictures for row in _point_rows(chosen, one)],
        "runs": [run_row(one, shown=one.finished and one.keys["seed"] == seed) for one in trained],
    }
    corners = [row for one in pictures for row in _corner_rows(chosen, one)]
    if corners:
        tables["templates"] = corners
    known = papers(recipe, done[0].entry.config)
    return Result(
        recipe,
        tables,
        _findings(study, done, pictures),
        summary=_summary(known, estimates, trained),
        notes=[*_notes(study, chosen, done, known), *(f"{line}; left out" for line in flat)],
        title=f"{title_of(recipe, done)}, seed {seed}",
        papers=bool(known),
    )


METHODS = {
    "paper": "plane through the templates (the paper's)",
    "templates_pca": "PCA in the span of the templates",
    "tsne": "t-SNE of the features (no scale)",
}


def _pictures(
    study: Config, chosen: Chosen, done: Sequence[Trained]
) -> tuple[int, list[Picture], list[str]]:
    """The seed that is drawn, all pictures, and why others have none.

    Raises:
        UserError: there are none, or none of the seed asked for.
    """
    flat: list[str] = []
    left = list(done)
    while left:
        seed, found = _shown_seed(study, left), []
        for one in left:
            try:
                shown = one.keys["seed"] == seed
                found.append((one, _picture(study, chosen, one, shown=shown)))
            except ValueError as error:
                flat.append(f"{one.entry.name}: {error}")
        pictures = [picture for _, picture in found]
        if any(one.keys["seed"] == seed for one in pictures):
            return seed, pictures, flat
        left = [one for one, _ in found] if study.shown_seed is None else []
    raise UserError(f"projections: {flat[0]}", exit_code=1)


def _shown_seed(study: Config, done: Sequence[Trained]) -> int:
    """The seed that is drawn: the one asked for, else the first of those with most eps.

    Raises:
        UserError: the one asked for is not trained.
    """
    seeds = sorted({one.keys["seed"] for one in done})
    if study.shown_seed is not None:
        if study.shown_seed not in seeds:
            raise UserError(
                f"shown_seed={study.shown_seed}: must be one of those trained: "
                f"{', '.join(map(str, seeds))}"
            )
        return study.shown_seed
    count = {seed: sum(one.keys["seed"] == seed for one in done) for seed in seeds}
    return max(seeds, key=lambda seed: (count[seed], -seed))


def _picture(study: Config, chosen: Chosen, one: Trained, *, shown: bool) -> Picture:
    """A network's picture and numbers; its t-SNE (slow, and without numbers) only to be shown.

    Raises:
        ValueError: there is no such picture of it.
    """
    measured = _by_split(one)
    some = measured["train"]
    templates_KE = geometry.templates(some.weight_KD, some.bias_K)
    three_3E = templates_KE[list(chosen.numbers)]
    everywhere = {s: geometry.activations(m.features_ND) for s, m in measured.items()}
    plane: Plane | None = None
    points: dict[str, np.ndarray] = {}
    corners = np.empty((0, 2))
    if study.method == "paper":
        plane = geometry.plane_of(three_3E)
    elif study.method == "templates_pca":
        plane = geometry.principal_plane(three_3E, everywhere["train"])
    elif shown:
        flat = geometry.tsne(np.concatenate([m.features_ND for m in measured.values()]))
        ends = np.cumsum([len(m.labels_N) for m in measured.values()])[:-1]
        points = dict(zip(measured, np.split(flat, ends), strict=True))
    if plane is not None:
        points = {s: geometry.project(plane, found) for s, found in everywhere.items()}
        corners = geometry.project(plane, three_3E)
    picture = Picture(one.keys, measured, plane, points, corners, {})
    picture.numbers = dict(_numbers(chosen, picture, templates_KE, everywhere))
    return picture


def _by_split(one: Trained) -> dict[str, Measured]:
    return {a.split: found for a, found in one.measured.items() if isinstance(a, Measurement)}


def _ratio(within: float, between: float) -> float:
    """Infinite, or NaN, where classes lie on each other."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(within) / np.float64(between))


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
    yield ("", "side_ratio"), _ratio(lengths.max(), lengths.min())
    for split, found in picture.measured.items():
        points_NE, labels_N = points_by_split[split], found.labels_N
        within, between = geometry.scatter(points_NE, labels_N)
        yield (split, "scatter_ratio"), _ratio(within, between)
        if picture.plane is not None:
            flat_N2 = picture.points[split]
            within, between = geometry.scatter(flat_N2, labels_N)
            yield (split, "scatter_ratio_plane"), _ratio(within, between)
            yield (split, "extent_plane"), float(np.sqrt(flat_N2.var(0).sum()))
            yield (split, "variance_kept"), geometry.kept(picture.plane, points_NE)
            means_32 = np.stack([flat_N2[labels_N == k].mean(0) for k in chosen.numbers])
            apart = geometry.sides(means_32)
            yield (split, "clusters_side_ratio"), _ratio(apart.max(), apart.min())
        far_NK = geometry.distances(points_NE, templates_KE)
        own_NK = np.eye(len(templates_KE), dtype=bool)[labels_N]
        others_NJ = far_NK[~own_NK].reshape(len(far_NK), -1)
        yield (split, "distance_own"), float(far_NK[own_NK].mean())
        yield (split, "distance_other"), float(others_NJ.mean())
        yield (split, "distance_other_spread"), float((others_NJ.std(1) / others_NJ.mean(1)).mean())


def _estimates(pictures: Sequence[Picture]) -> Iterator[Row]:
    """Rows of projections.csv: each number at each eps, over seeds."""
    for eps in sorted({one.keys["eps"] for one in pictures}):
        here = [one for one in pictures if one.keys["eps"] == eps]
        for split, metric in here[0].numbers:
            values = np.array([one.numbers[split, metric] for one in here])
            values = values[np.isfinite(values)]  # n tells of how many seeds
            row = {"eps": eps, "split": split, "metric": metric}
            if len(values):
                yield row | interval_row(over_seeds(values))


def _point_rows(chosen: Chosen, one: Picture) -> Iterator[Row]:
    names = dict(zip(chosen.numbers, chosen.names, strict=True))
    for split, found in one.measured.items():
        predicted = found.logits_NK.argmax(1)
        points = one.points.get(split, np.empty((0, 2))).tolist()
        in_order = sorted(range(len(points)), key=lambda i: chosen.numbers.index(found.labels_N[i]))
        for i in in_order:
            x, y = points[i]
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


def _findings(study: Config, done: Sequence[Trained], pictures: Sequence[Picture]) -> list[Finding]:
    config = done[0].entry.config
    usual = Config()
    hard = {one.keys["seed"]: one for one in pictures if one.keys["eps"] == 0}
    smooth = {one.keys["seed"]: one for one in pictures if one.keys["eps"] == 0.1}
    seeds = sorted(hard.keys() & smooth.keys())
    because = ""
    if study.method != usual.method:
        because = "the claims are of method=paper"
    elif study.classes is not None or study.examples != usual.examples:
        because = f"the claims are of the default classes, {usual.examples} images of each"
    elif spread := other_spread(done):
        because = spread
    elif not seeds:
        because = "needs runs at eps 0 and 0.1 of the same seed"
    if because:
        return [untested(claim, None, because) for claim in CLAIMS]
    closed = learnt(done)

    def logs(of: dict[int, Picture], split: str, metric: str) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log10([of[seed].numbers[split, metric] for seed in seeds])

    ratio, extent = "scatter_ratio_plane", "extent_plane"
    compared = {
        TIGHTER: (logs(smooth, "train", ratio), logs(hard, "train", ratio)),
        EQUIDISTANT: (logs(smooth, "", "side_ratio"), logs(hard, "", "side_ratio")),
        REGULAR: tuple(logs(of, "train", "clusters_side_ratio") for of in (smooth, hard)),
        SMALLER: (logs(smooth, "train", extent), logs(hard, "train", extent)),
    }
    findings = []
    for claim in CLAIMS:
        found: Interval | str = "a side or a cluster has no extent at all"
        if claim is SPREAD:
            found = _spread([smooth[seed] for seed in seeds])
        elif np.isfinite(compared[claim]).all():
            found = paired(*compared[claim]).difference
        if isinstance(found, str):
            findings.append(untested(claim, None, found))
        else:
            findings.append(decide(claim, found, None, str(config["data.name"]), closed))
    return findings


def _spread(pictures: Sequence[Picture]) -> Interval | str:
    """log10 of within/between scatter in the plane, val minus train, or why it is not known.

    Over seeds and images: all seeds see the same images, and those of val are not those of train.
    """
    if "val" not in pictures[0].measured:
        return "there are no images held out"
    labels_N = np.concatenate([pictures[0].measured[split].labels_N for split in SPLITS])
    held_N = np.arange(len(labels_N)) >= len(pictures[0].measured["train"].labels_N)
    for held in (False, True):
        if np.unique(labels_N[held_N == held], return_counts=True)[1].min() < FEWEST:
            return f"needs {FEWEST} images of each class, of train and of those held out"
    points_SN2 = [np.concatenate([one.points[split] for split in SPLITS]) for one in pictures]

    def difference(seed: int, kept: np.ndarray) -> float:
        ratios = []
        for held in (True, False):
            here = kept[held_N[kept] == held]
            ratios.append(_ratio(*geometry.scatter(points_SN2[seed][here], labels_N[here])))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.subtract(*np.log10(ratios)))

    try:  # groups of one image: larger ones are drawn at random, and the verdict may hang on that
        return over_both_of(difference, len(pictures), len(labels_N), groups=len(labels_N))
    except ValueError:
        return "a cluster has hardly any extent"


COLUMNS = (
    ("scatter_ratio_plane", "within/between", 3),
    ("scatter_ratio", "in all dims", 3),
    ("extent_plane", "extent", 3),
    ("variance_kept", "variance kept", 3),
    ("distance_own", "to own template", 3),
    ("distance_other", "to others", 3),
    ("distance_other_spread", "their spread", 2),
    ("clusters_side_ratio", "clusters' sides", 3),
)


def _summary(recipe: str, estimates: Sequence[Row], trained: Sequence[Trained]) -> list[list[str]]:
    def cell(eps: float, split: str, metric: str, digits: int) -> str:
        for row in estimates:
            if (row["eps"], row["split"], row["metric"]) == (eps, split, metric):
                text = f"{row['value']:.{digits}g}"
                if row["low"] is not None:
                    text += f" +- {(row['high'] - row['low']) / 2:.2g}"
                return text
        return ""

    titles = [title for _, title, _ in COLUMNS]
    rows = [["eps", "split", "seeds", "accuracy %", *titles, "templates'"]]
    blank = [""] * (len(titles) + 1)
    shown = sorted({one.keys["eps"] for one in trained})
    for eps, number in PAPER_ACCURACY.get(recipe, {}).items():
        if eps in shown:
            spread = "" if number.spread is None else f" +- {100 * number.spread:.1f}"
            value = f"{100 * number.value:.1f}{spread}"
            rows.append([f"{eps:g} paper", number.split, "", value, *blank])
    for eps, number in REPRODUCTION_ACCURACY.get(recipe, {}).items():
        if eps in shown:
            name, value = f"{eps:g} public reproduction", f"{100 * number.value:.1f}"
            rows.append([name, number.split, "1", value, *blank])
    for eps in shown:
        here = {row["split"] for row in estimates if row["eps"] == eps}
        for split in [s for s in SPLITS if s in here] or [""]:
            cells = [cell(eps, split, metric, digits) for metric, _, digits in COLUMNS]
            cells.append(cell(eps, "", "side_ratio", 3))
            right = [
                100 * one.entry.metrics[split]["accuracy"]
                for one in trained
                if split and one.finished and one.keys["eps"] == eps
            ]
            cells.insert(0, mean_cell(right, 2))
            rows.append([f"{eps:.12g}", split, seeds_cell(trained, eps), *cells])
    return rows


def _notes(study: Config, chosen: Chosen, done: Sequence[Trained], known: str) -> list[str]:
    few = ""
    for split, found in _by_split(done[0]).items():
        counts = [int((found.labels_N == k).sum()) for k in chosen.numbers]
        if min(counts) < study.examples:
            few += f" ({split} has {', '.join(map(str, counts))})"
    lines = [
        f"{', '.join(chosen.names)}; {study.examples} images of each{few}; {METHODS[study.method]}",
        "within/between: mean squared distance to the mean of the class, by that of these means "
        "to theirs, in the plane and in all dimensions; +- half of the 95 % interval over seeds",
        "their spread: standard deviation of an image's distances to the other templates, by their "
        "mean; sides: longest by shortest, of the triangle of the clusters' means in the plane and "
        "of the templates'",
        "accuracy: of all images of the split",
    ]
    if known in REPRODUCTION_ACCURACY:
        lines.append(
            f"neither the paper nor the public reproduction has numbers of this figure; accuracy "
            f"of the latter: {DEFECTS[known]}"
        )
    if len({one.keys["seed"] for one in done}) < 2:
        lines.append(ONE_SEED)
    return lines


@styled
def draw(study: Config, results: Sequence[Result]) -> dict[str, Figure]:
    """A row a recipe; a pair of panels, train and val, an eps. One scale in a row."""
    from matplotlib.legend_handler import HandlerTuple

    rows = []
    for result in results:
        points, corners = _of_shown_seed(result)
        splits = [s for s in SPLITS if any(row["split"] == s for row in points)]
        all_eps = sorted({row["eps"] for row in points})
        rows.append((points, corners, [(eps, split) for eps in all_eps for split in splits]))
    columns = min(MOST_COLUMNS, max(len(places) for _, _, places in rows))
    lines = [-(-len(places) // columns) for _, _, places in rows]
    figure, axes_RC = grid(sum(lines), columns, width=2.5, height=2.8)
    figure.suptitle(f"Three classes: {METHODS[study.method]}")
    for result, (points, corners, places), count in zip(results, rows, lines, strict=True):
        axes = [axis for line in axes_RC[:count] for axis in line]
        axes_RC = axes_RC[count:]
        names = list(dict.fromkeys(row["class"] for row in points))
        for axis, (eps, split) in zip(axes, places, strict=False):
            here = [r for r in points if (r["eps"], r["split"]) == (eps, split)]
            there = [r for r in corners if r["eps"] == eps]
            _draw_points(axis, names, here, there)
            axis.set_title(f"{'validation' if split == 'val' else 'training'}, eps {eps:.12g}")
            if study.method == "tsne":
                axis.set_xticks([])
                axis.set_yticks([])
            else:
                axis.set_xlabel("activation, along both axes", fontsize=7)
                _set_window(axis, [*points, *corners])
                _enlarge(axis, names, here, there, [*points, *corners])
        for axis in axes[len(places) :]:
            axis.set_visible(False)
        handles, titles = axes[0].get_legend_handles_labels()
        if corners:
            marks = (axes[0].scatter([], [], marker=mark, s=30, **TEMPLATE) for mark in MARKERS[:3])
            handles.append(tuple(marks))
            titles.append("templates")
        together = {tuple: HandlerTuple(ndivide=None, pad=0.2)}
        axes[0].legend(handles, titles, fontsize=6, loc="best", handler_map=together)
        axes[0].set_ylabel(plain(result.title).replace(", ", "\n"), fontsize=7)
    return {"projections": figure}


def _of_shown_seed(result: Result) -> tuple[list[Row], list[Row]]:
    """Points and templates of the networks that are drawn."""
    shown = {(row["eps"], row["seed"]) for row in result.tables["runs"] if row["shown"]}
    found = [
        [row for row in result.tables.get(name, []) if (row["eps"], row["seed"]) in shown]
        for name in ("points", "templates")
    ]
    return found[0], found[1]


def _draw_points(
    axis: Any, names: Sequence[str], points: Sequence[Row], corners: Sequence[Row]
) -> None:
    """Images as small marks, the templates as large ones on a triangle."""
    closed = [*corners, *corners[:1]]
    axis.plot([r["x"] for r in closed], [r["y"] for r in closed], color="0.4", linewidth=0.8)
    for number, name in enumerate(names):
        here = [row for row in points if row["class"] == name]
        style = {"marker": MARKERS[number], "color": COLORS[number]}
        at = [row["x"] for row in here], [row["y"] for row in here]
        axis.scatter(*at, s=7, alpha=0.6, linewidths=0, zorder=2, label=_named(name), **style)
        for row in corners:
            if row["class"] == name:
                axis.scatter(row["x"], row["y"], s=40, marker=MARKERS[number], zorder=3, **TEMPLATE)


def _named(name: str) -> str:
    """A class for a legend: some are mere numbers."""
    return f"class {name}" if name.isdecimal() else plain(name)


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


INSETS = (0.42, 0.36, 0.3)
"""Sides that an enlarged picture may have, in parts of the panel."""


def _enlarge(
    axis: Any,
    names: Sequence[str],
    points: Sequence[Row],
    corners: Sequence[Row],
    everything: Sequence[Row],
) -> None:
    """A picture that the common scale makes small, once more, in a corner that it leaves free."""
    x, y, half = _window([*points, *corners])
    whole_x, whole_y, whole = _window(everything)
    at_N2 = np.array([[row["x"] - whole_x, row["y"] - whole_y] for row in [*points, *corners]])
    at_N2 = at_N2 / (2 * whole) + 0.5  # in parts of the panel
    free = [
        (left, bottom, side)
        for side in INSETS
        for left, bottom in itertools.product((0.0, 1 - side), repeat=2)
        if side * whole > 1.6 * half and not _covers(left, bottom, side, at_N2)
    ]
    if not free:
        return
    left, bottom, side = free[0]
    inset = axis.inset_axes((left, bottom, side, side))
    _draw_points(inset, names, points, corners)
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


def _covers(left: float, bottom: float, side: float, at_N2: np.ndarray) -> bool:
    """Whether a square, with some margin, lies over any of these places."""
    low = np.array([left, bottom]) - 0.03
    inside_N2 = (at_N2 > low) & (at_N2 < low + side + 0.06)
    return bool(inside_N2.all(axis=1).any())
