"""Figure 5 of the paper: what students learn from teachers, hard ones softened by a temperature and
smoothed ones as they are.

Much of it is disputed (Shen et al. 2021, Chandrasegaran et al. 2022), so that every protocol can be
asked for: the keys of `loss=distillation` are those of the students. Student s learns from teacher
s. Shape letters: S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lsexp.analysis import collapse
from lsexp.analysis.distillation import gamma, wrong_class_agreement
from lsexp.analysis.information import Information
from lsexp.analysis.statistics import Interval, over_seeds, paired
from lsexp.config import DistillationConfig, MLPConfig, TrainConfig, key
from lsexp.errors import UserError
from lsexp.figures import ABOVE, COLORS, beside, grid, plain, styled
from lsexp.measure import Draws, Measurement, Question, Views
from lsexp.published import (
    DEFECTS,
    PAPER_STUDENT,
    REPRODUCTION_STUDENTS,
    TEACHERS,
    TOY_ERRORS,
    papers,
)
from lsexp.studies import (
    GATE,
    ONE_SEED,
    Claim,
    Finding,
    Result,
    Row,
    Run,
    Trained,
    check_lists,
    data_and_classes,
    decide,
    eps_key,
    information,
    interval_row,
    learnt,
    mean_cell,
    other_spread,
    run_row,
    seeds_key,
    title_of,
    untested,
)
from lsexp.studies._teaching import (
    BASELINE,
    DISPUTED,
    STUDENT,
    STUDENTS,
    TEACHER,
    labels_of,
    protocol_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "Figure 5: students of hard and of smoothed teachers"
ORDER = 4
READING = {
    "distillation": "Above, teachers' accuracy against their smoothing. Below, students' "
    "against gamma, the effective smoothing of what they learnt from: labels smoothed "
    "alike, hard teachers at the temperatures beside the points, and smoothed teachers at "
    "temperature 1. Bars reach from the lowest seed to the highest, as in the paper.",
    "grid": "Students of every teacher at every temperature, and the difference to the hard "
    "teacher at the same temperature, on which the literature disagrees.",
}
SHOWN = ("cifar10_distill",)
OWNED = {
    "loss.eps": "eps=0,0.15",
    "loss.temperature": "temperatures=1,4",
    "loss.teacher": "eps=0,0.15, which trains the teachers; `lsexp train` takes one",
    "loss.teacher_step": "eps=0,0.15, whose ends teach; `lsexp train` takes snapshots",
    "seed": "seeds=5, or seeds=0,3,7",
}
VIEW = ()
SCATTER_IMAGES = 100
"""Training images of each class by which teachers' clusters are measured."""


@dataclass
class Config:
    eps: list[float] = eps_key(
        [0.0, 0.15, 0.3, 0.45, 0.6, 0.75],
        "smoothing of teachers, and of baseline students; with 0, as a list",
    )
    temperatures: list[float] = key(
        [1.0, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0],
        "of the hard teacher's probabilities, as a list",
        more_than=0,
    )
    seeds: list[int] = seeds_key([0, 1, 2])
    grid: str = key(
        "figure",
        "figure: smoothed teachers teach at temperature 1; full: every teacher at every "
        "temperature, on which the literature disagrees",
        choices=("figure", "full"),
    )


HARD_HELPS = Claim(
    "hard-teachers-help",
    "students of hard teachers are better than without a teacher",
    "Figure 5",
    "test accuracy at the temperature that is best on val, minus that of baseline students on hard "
    "labels, paired by seed",
    "above",
    factor=100,
    unit="points",
    gate=GATE,
)
HARD_ALWAYS_HELP = Claim(
    "hard-teachers-help-always",
    "students of hard teachers are better than without a teacher at every temperature",
    "Figure 5",
    "test accuracy at the temperature that is worst on val, minus that of baseline students on "
    "hard labels, paired by seed",
    "above",
    factor=100,
    unit="points",
    gate=GATE,
)
SMOOTHED_AGAINST_BASELINE = Claim(
    "smoothed-teachers-do-not-help",
    "students of smoothed teachers are worse than students on smoothed labels",
    "Figure 5",
    "test accuracy at temperature 1 minus that of baseline students of the same eps, mean over eps "
    "above 0, paired by seed",
    "below",
    factor=100,
    unit="points",
    disputed_by=DISPUTED,
    gate=GATE,
)
NO_BETTER = 0.0025
"""Of accuracy: a quarter of the point within which Table 2 is unchanged."""
SMOOTHED_NO_BETTER = Claim(
    "smoothed-teachers-no-better",
    "students of smoothed teachers are no better than students on smoothed labels, by 0.25 points "
    "at most",
    "Figure 5",
    "test accuracy at temperature 1 minus that of baseline students of the same eps, mean over eps "
    "above 0, paired by seed, minus 0.25 points",
    "below",
    factor=100,
    unit="points",
    disputed_by=DISPUTED,
    gate=GATE,
)
SMOOTHED_AGAINST_HARD = Claim(
    "smoothed-teachers-teach-worse",
    "students of smoothed teachers are worse than students of hard ones",
    "Figure 5",
    "test accuracy at temperature 1 and the eps that is best on val (above 0), minus that of the "
    "students of the hard teacher at the temperature that is best on val, paired by seed",
    "below",
    factor=100,
    unit="points",
    disputed_by=DISPUTED,
    gate=GATE,
)
CLAIMS = (
    HARD_HELPS,
    HARD_ALWAYS_HELP,
    SMOOTHED_AGAINST_BASELINE,
    SMOOTHED_NO_BETTER,
    SMOOTHED_AGAINST_HARD,
)
"""Declared before any run, but the second and the fourth on 28 November 2026: after those of MNIST
and the digits, and one student on CIFAR-10 (seed 0, temperature 4). Gate of all: hard teachers have
learnt their training images (`learnt`).

The second is the paper's, whose students of hard teachers all lie above those without one; the
first asks less. The fourth and the third are its "no better, and sometimes worse"."""
PAPERS_LOSS = {
    "loss.match": "cross_entropy",
    "loss.beta": 1.0,
    "loss.student_temperature": "1",
    "loss.t_squared": False,
}
"""Of Figure 5: what is found with another says so where its place in the paper stands."""


PARTNER = "teacher"


def recipe_for(recipe: str) -> str:
    """The recipe of students of networks of this one."""
    return STUDENTS.get(recipe, recipe)


def partner(_study: Config, base: TrainConfig, recipe: str) -> str:
    """The recipe of the teachers; by default that of the students."""
    own = base.loss.teachers if isinstance(base.loss, DistillationConfig) else None
    return own or recipe


def runs(study: Config, base: TrainConfig, taught: TrainConfig) -> list[Run]:
    """Teachers, baseline students and students, seed by seed; a teacher before its students.

    Args:
        base: of the students; taught: of the teachers.

    Raises:
        UserError: a list that is empty or has something twice, or no eps 0.
    """
    check_lists(eps=study.eps, temperatures=study.temperatures, seeds=study.seeds)
    if 0 not in study.eps:
        raise UserError(
            f"eps={','.join(f'{value:g}' for value in study.eps)}: must have 0, the hard teacher"
        )
    protocol, labels = protocol_of(base.loss), labels_of(base.loss)
    temperatures = [1.0] if protocol.match == "logits" else study.temperatures
    found = []
    for seed in study.seeds:
        for eps in study.eps:
            config = replace(taught, loss=replace(taught.loss, eps=eps), seed=seed)
            dropout = protocol.teachers_dropout
            if dropout is not None and eps == 0:
                if not isinstance(config.model, MLPConfig):
                    raise UserError("loss.teachers_dropout: goes with teachers that are MLPs")
                config = replace(config, model=replace(config.model, dropout=dropout))
            teacher = Run(_keys(TEACHER, eps, None, seed), config)
            found.append(teacher)
            alone = replace(base, loss=replace(labels, eps=eps), seed=seed)
            if protocol.match == "logits":
                # Its rate is made for squared distances, at which cross-entropy learns ten times
                # too slowly: whoever has no teacher is trained as teachers are.
                alone = replace(alone, optim=taught.optim)
            found.append(Run(_keys(BASELINE, eps, None, seed), alone))
            for temperature in temperatures if eps == 0 or study.grid == "full" else [1.0]:
                loss = replace(protocol, temperature=temperature)
                if temperature == 1:  # where it does nothing, it is one experiment
                    loss = replace(loss, t_squared=False, student_temperature="1")
                keys = _keys(STUDENT, eps, temperature, seed)
                found.append(Run(keys, replace(base, loss=loss, seed=seed), teacher))
    return found


def _keys(role: str, eps: float, temperature: float | None, seed: int) -> Row:
    return {"role": role, "eps": eps, "temperature": temperature, "seed": seed}


def measured(keys: Row) -> bool:
    """Whether a run of these keys is measured: teachers are."""
    return bool(keys["role"] == TEACHER)


def measurements(_study: Config, trained: Sequence[Trained]) -> list[Question]:
    """What teachers say of the students' images, how far their clusters scatter, and their
    information."""
    draws = _draws(trained)
    more = [] if draws is None else [draws]
    return [_views(trained), Measurement("train", None, SCATTER_IMAGES), *more]


def _draws(trained: Sequence[Trained]) -> Draws | None:
    """The draws of `information` at its defaults; None of teachers who saw images in one way."""
    done = [one for one in trained if one.finished and one.keys["role"] == TEACHER]
    if not done or not information.augmented(done[0].entry.config):
        return None
    return information.draws_of_the_end(*data_and_classes(done))


def _views(trained: Sequence[Trained]) -> Views:
    done = [one for one in trained if one.finished]
    students = [one for one in done if one.keys["role"] != TEACHER]
    config = (students or done)[0].entry.config  # teachers train on the same images
    names = ("data.split", "data.split_seed", "data.train_size")
    split, seed, size = (config[name] for name in names)
    return Views(split, seed, size, flip=False)


@dataclass
class Point:
    """Runs of one place in the figure, by seed.

    Attributes:
        gamma_S: effective smoothing of what the students saw, NaN where that is not measured.
        scores: (split, metric) to [S].
    """

    role: str
    eps: float
    temperature: float | None
    seeds: list[int]
    gamma_S: np.ndarray
    scores: dict[tuple[str, str], np.ndarray]

    def value(self, split: str, metric: str = "accuracy") -> float:
        return float(self.scores[split, metric].mean())

    def of(self, seeds: Sequence[int], split: str = "test") -> np.ndarray:
        """Accuracy of these seeds."""
        values_S: np.ndarray = self.scores[split, "accuracy"]
        return values_S[[self.seeds.index(seed) for seed in seeds]]


METRICS = ("accuracy", "nll", "ece")


def analyze(study: Config, trained: Sequence[Trained], recipe: str) -> Result:
    """The four curves, why they are so, and what they say of the claims."""
    done = [one for one in trained if one.finished]
    points = list(_points(trained))
    lacking = _lacking(trained, points)
    hard = [one for one in points if (one.role, one.eps) == (STUDENT, 0)]
    no_hard = [place for place in lacking if place[:2] == (STUDENT, 0)]
    chosen, worst = _best(hard, no_hard), _best(hard, no_hard, worst=True)
    students = [one for one in done if one.keys["role"] != TEACHER]
    tables: dict[str, list[Row]] = {
        "distillation": [row for point in points for row in _point_rows(point)],
        "teachers": list(_teacher_rows(trained)),
        "runs": [run_row(one) for one in trained],
    }
    if study.grid == "full":
        tables["grid"] = list(_grid_rows(points))
    known = _as_the_papers(recipe, done)
    toy = list(_toy_rows(known, points))
    if toy:
        tables["toy"] = toy
    return Result(
        recipe,
        {name: rows for name, rows in tables.items() if rows},
        _findings(done, points, lacking, (chosen, worst), known),
        summary=_summary(known, trained, points, chosen),
        notes=[
            *_notes(study, trained, tables["teachers"], toy),
            *([f"public reproduction: {DEFECTS[known]}"] if known in DEFECTS else []),
        ],
        title=title_of(recipe, students or done),
        papers=bool(known),
    )


def _as_the_papers(recipe: str, done: Sequence[Trained]) -> str:
    """The recipe, if students and teachers are the paper's."""
    if recipe not in TEACHERS:
        return ""
    for one in done:
        of = TEACHERS[recipe] if one.keys["role"] == TEACHER else recipe
        if not papers(of, one.entry.config):
            return ""
    return recipe


def _points(trained: Sequence[Trained]) -> Iterator[Point]:
    """Places of which a run is finished, in the order of the figure."""
    views = _views(trained)
    said = {
        (one.keys["eps"], one.keys["seed"]): one.measured[views]
        for one in trained
        if one.finished and one.keys["role"] == TEACHER
    }
    places = {
        (one.keys["role"], one.keys["eps"], one.keys["temperature"] or 0.0): None for one in trained
    }
    order = {role: number for number, role in enumerate((TEACHER, BASELINE, STUDENT))}
    for role, eps, temperature in sorted(places, key=lambda place: (order[place[0]], *place[1:])):
        here = [
            one
            for one in trained
            if one.finished
            and (one.keys["role"], one.keys["eps"]) == (role, eps)
            and (one.keys["temperature"] or 0.0) == temperature
        ]
        if not here:
            continue
        gammas = []
        for one in here:
            answer = said.get((eps, one.keys["seed"]))
            if role == BASELINE:
                gammas.append(float(one.entry.metrics["targets"]["eps_uniform"]))
            elif answer is None:  # it was removed since
                gammas.append(float("nan"))
            else:
                of_teacher = gamma(answer.logits_NK, answer.labels_N, temperature or 1.0)
                gammas.append(_share(one) * of_teacher)
        scores = {
            (split, metric): np.array([one.entry.metrics[split][metric] for one in here])
            for split in ("val", "test")
            if all(one.entry.metrics[split] for one in here)
            for metric in METRICS
        }
        seeds = [one.keys["seed"] for one in here]
        yield Point(role, eps, temperature or None, seeds, np.array(gammas), scores)


def _share(one: Trained) -> float:
    """How much of what a student learns from is its teacher: `loss.beta`, the rest being labels,
    whose gamma is 0. Matched logits are no distribution to mix: of these the teacher's counts."""
    config = one.entry.config
    mixes = one.keys["role"] == STUDENT and config.get("loss.match") == "cross_entropy"
    return float(config.get("loss.beta", 1.0)) if mixes else 1.0


Place = tuple[str, float, float | None]
"""Role, eps and temperature."""


def _lacking(trained: Sequence[Trained], points: Sequence[Point]) -> list[Place]:
    """Places of which no run is finished."""
    asked = [(one.keys["role"], one.keys["eps"], one.keys["temperature"]) for one in trained]
    there = {(one.role, one.eps, one.temperature) for one in points}
    return [place for place in dict.fromkeys(asked) if place not in there]


def _best(points: Sequence[Point], lacking: Sequence[Place], *, worst: bool = False) -> Point | str:
    """The one of these that is best (or worst) on val over the seeds that all have, the first of
    equals; the only one there is; or why none is, such as that others are lacking."""
    if lacking:
        return _needs(lacking)
    if len(points) == 1:
        return points[0]
    if not points:
        return "needs students of it"
    if any(("val", "accuracy") not in one.scores for one in points):
        return "nothing can be chosen without val images"
    seeds = set.intersection(*(set(one.seeds) for one in points))
    if not seeds:
        return "needs the same seeds everywhere"
    sign = -1 if worst else 1
    return max(points, key=lambda one: sign * one.of(sorted(seeds), "val").mean())


def _needs(lacking: Sequence[Place]) -> str:
    listed = [
        f"{NAMES[role]}, eps {eps:g}" + ("" if temperature is None else f", T {temperature:g}")
        for role, eps, temperature in lacking
    ]
    return f"none is finished of: {'; '.join(listed)}"


def _point_rows(point: Point) -> Iterator[Row]:
    keys = {"role": point.role, "eps": point.eps, "temperature": point.temperature}
    known = point.gamma_S[np.isfinite(point.gamma_S)]
    keys["gamma"] = float(known.mean()) if known.size else None
    for (split, metric), values_S in point.scores.items():
        ends = {"min": float(values_S.min()), "max": float(values_S.max())}
        yield {
            **keys,
            "split": split,
            "metric": metric,
            **interval_row(over_seeds(values_S)),
            **ends,
        }


def _teacher_rows(trained: Sequence[Trained]) -> Iterator[Row]:
    """What makes a teacher, by eps and seed."""
    views, draws = _views(trained), _draws(trained)
    done = [one for one in trained if one.finished and one.keys["role"] == TEACHER]
    hard = {one.keys["seed"]: one for one in done if one.keys["eps"] == 0}
    for one in done:
        said, clusters = (
            one.measured[views],
            one.measured[Measurement("train", None, SCATTER_IMAGES)],
        )
        other = hard.get(one.keys["seed"])
        agreement = None
        if other is not None and said.logits_NK.shape[1] > 2:
            agreement = wrong_class_agreement(
                said.logits_NK, other.measured[views].logits_NK, said.labels_N
            )
        try:
            scatter: float | None = collapse.nc1(clusters.features_ND, clusters.labels_N)
        except collapse.Degenerate:
            scatter = None
        kept = None if draws is None else _information(one, draws)
        test = one.entry.metrics["test"]
        yield {
            "eps": one.keys["eps"],
            "seed": one.keys["seed"],
            "test_accuracy": test["accuracy"],
            "test_ece": test["ece"],
            "train_accuracy": one.entry.metrics["train"]["accuracy"],
            "gamma": gamma(said.logits_NK, said.labels_N),
            "information": None if kept is None else kept.total,
            "within_class_information": None if kept is None else kept.within,
            "nc1": scatter,
            "wrong_class_agreement": agreement,
        }


def _information(one: Trained, draws: Draws) -> Information | None:
    """None where its images look alike in every draw, and nothing can be said."""
    try:
        return information.of_the_end(one, draws)
    except information.LookAlike:
        return None


def _grid_rows(points: Sequence[Point]) -> Iterator[Row]:
    """Students of smoothed teachers minus those of hard ones, at the same temperature."""
    students = [one for one in points if one.role == STUDENT]
    hard = {one.temperature: one for one in students if one.eps == 0}
    for one in students:
        other = hard.get(one.temperature)
        if one.eps > 0 and other is not None:
            found = _paired(one, other)
            if found is not None:
                keys = {"eps": one.eps, "temperature": one.temperature}
                yield {**keys, "metric": "test accuracy minus eps 0", **interval_row(found)}


def _paired(one: Point, other: Point) -> Interval | None:
    seeds = sorted(set(one.seeds) & set(other.seeds))
    return paired(one.of(seeds), other.of(seeds)).difference if seeds else None


def _toy_rows(recipe: str, points: Sequence[Point]) -> Iterator[Row]:
    """Errors of the paper's MNIST toy beside ours, in percent."""
    for known in TOY_ERRORS.get(recipe, ()):
        here = [one for one in points if (one.role, one.eps) == (known.role, known.eps)]
        if here:
            errors_S = 100 * (1 - here[0].scores["test", "accuracy"])
            row = {"role": known.role, "teacher_eps": known.eps, "metric": "test error, percent"}
            others = {"paper": known.paper, "public_reproduction": known.reproduction}
            yield {**row, **interval_row(over_seeds(errors_S)), **others}


def _findings(
    done: Sequence[Trained],
    points: Sequence[Point],
    lacking: Sequence[Place],
    extremes: tuple[Point | str, Point | str],
    known: str,
) -> list[Finding]:
    """Args:
    extremes: students of the hard teacher at the temperature that is best on val, and worst.
    """
    best, worst = extremes
    config = done[0].entry.config
    claims, told = [one._replace(where=one.where + _other_loss(done)) for one in CLAIMS], {}
    toy = {one.eps: one.paper for one in TOY_ERRORS.get(known, ()) if one.role == STUDENT}
    if toy:
        place = CLAIMS.index(SMOOTHED_AGAINST_HARD)
        claims[place] = claims[place]._replace(where="section 4")
        told[claims[place].name] = (toy[0.0] - toy[0.1]) / 100
    if because := other_spread(done):
        return [untested(claim, told.get(claim.name), because) for claim in claims]
    of = {(one.role, one.eps, one.temperature): one for one in points}
    hard_labels = of.get((BASELINE, 0.0, None))
    smoothed = [one for one in points if (one.role, one.temperature) == (STUDENT, 1.0) and one.eps]
    no_smoothed = [one for one in lacking if (one[0], one[2]) == (STUDENT, 1.0) and one[1]]
    best_smoothed = _best(smoothed, no_smoothed)
    found: dict[str, Interval | str] = {}
    for claim, hard in ((HARD_HELPS, best), (HARD_ALWAYS_HELP, worst)):
        if isinstance(hard, str):
            found[claim.name] = f"the hard teacher: {hard}"
        elif hard_labels is None:
            found[claim.name] = "needs baseline students at eps 0"
        else:
            found[claim.name] = _mean_paired([(hard, hard_labels)])
    no_baseline = [one for one in lacking if one[0] == BASELINE and one[1]]
    apart = (
        _needs([*no_smoothed, *no_baseline])
        if no_smoothed or no_baseline
        else _mean_paired([(one, of[BASELINE, one.eps, None]) for one in smoothed])
    )
    found[SMOOTHED_AGAINST_BASELINE.name] = apart
    found[SMOOTHED_NO_BETTER.name] = apart if isinstance(apart, str) else _less(apart, NO_BETTER)
    if isinstance(best, str):
        found[SMOOTHED_AGAINST_HARD.name] = f"the hard teacher: {best}"
    elif isinstance(best_smoothed, str):
        found[SMOOTHED_AGAINST_HARD.name] = f"smoothed teachers: {best_smoothed}"
    else:
        found[SMOOTHED_AGAINST_HARD.name] = _mean_paired([(best_smoothed, best)])
    data = str(config["data.name"])
    closed = learnt([one for one in done if one.keys["role"] == TEACHER])
    return [
        untested(claim, told.get(claim.name), one)
        if isinstance(one := found[claim.name], str)
        else decide(claim, one, told.get(claim.name), data, closed)
        for claim in claims
    ]


def _less(found: Interval, margin: float) -> Interval:
    low, high = (None if end is None else end - margin for end in (found.low, found.high))
    return found._replace(value=found.value - margin, low=low, high=high)


def _other_loss(done: Sequence[Trained]) -> str:
    """What of the students' loss is not the paper's, to stand behind "Figure 5"; "" for nothing."""
    found = {
        name: one.entry.config[name]
        for one in done
        if one.keys["role"] == STUDENT
        for name, papers in PAPERS_LOSS.items()
        if one.entry.config.get(name, papers) != papers
    }
    told = ", ".join(f"{name}={value}".replace("True", "true") for name, value in found.items())
    return f", with another loss: {told}" if told else ""


def _mean_paired(pairs: Sequence[tuple[Point, Point]]) -> Interval | str:
    """Mean over pairs of their differences, paired by seed."""
    if not pairs:
        return "needs students of smoothed teachers at temperature 1"
    seeds = sorted(set.intersection(*(set(part.seeds) for pair in pairs for part in pair)))
    if not seeds:
        return "needs the same seeds everywhere"
    ours_S, theirs_S = (np.mean([pair[k].of(seeds) for pair in pairs], axis=0) for k in (0, 1))
    return paired(ours_S, theirs_S).difference


NAMES = {TEACHER: "teacher", BASELINE: "no teacher", STUDENT: "student"}


def _published(recipe: str, eps: set[float]) -> Iterator[list[str]]:
    """Rows of the summary with others' numbers: the paper's first."""

    def row(who: str, eps: str, gamma: str, test: str, val: str = "") -> list[str]:
        seeds = "1" if who.startswith("public") else ""
        return [who, eps, "", seeds, gamma, test, val, "", ""]

    toy = TOY_ERRORS.get(recipe, ())
    for known in toy:
        test = f"{100 - known.paper:.2f}"
        yield row(f"paper, {NAMES[known.role]}", f"{known.eps:g}", "", test)
    alone = PAPER_STUDENT.get(recipe)
    if alone is not None:
        val = f"{100 * alone.value:.1f} +- {100 * (alone.spread or 0):.1f}"
        yield row(f"paper, no teacher ({alone.where})", "0", "0", "", val)
    for known in toy:
        test = f"{100 - known.reproduction:.2f}"
        yield row(f"public reproduction, {NAMES[known.role]}", f"{known.eps:g}", "", test)
    for name, places in REPRODUCTION_STUDENTS.get(recipe, {}).items():
        for place, accuracy in places:
            hard = name == "hard teacher"
            if hard or place in eps:
                who, of = f"public reproduction, {name}", "0" if hard else f"{place:g}"
                yield row(who, of, f"{place:g}", f"{100 * accuracy:.1f}")


def _summary(
    recipe: str, trained: Sequence[Trained], points: Sequence[Point], best: Point | str
) -> list[list[str]]:
    header = ["", "eps", "T", "seeds", "gamma", "test accuracy %", "val %", "NLL", "ECE"]
    rows = [header, *_published(recipe, {one.eps for one in points})]
    for one in points:
        known = [value for value in one.gamma_S if np.isfinite(value)]
        rows.append(
            [
                NAMES[one.role] + (" (best T)" if one is best else ""),
                f"{one.eps:.12g}",
                "" if one.temperature is None else f"{one.temperature:.12g}",
                f"{len(one.seeds)}{_failed(trained, one)}",
                mean_cell(known, 3),
                mean_cell((100 * one.scores["test", "accuracy"]).tolist(), 2),
                *([f"{100 * one.value('val'):.2f}"] if ("val", "accuracy") in one.scores else [""]),
                f"{one.value('test', 'nll'):.4f}",
                f"{one.value('test', 'ece'):.4f}",
            ]
        )
    return rows


def _failed(trained: Sequence[Trained], point: Point) -> str:
    place = (point.role, point.eps, point.temperature)
    names = ("role", "eps", "temperature")
    count = sum(
        one.entry.status == "failed" and tuple(one.keys[name] for name in names) == place
        for one in trained
    )
    return f" ({count} failed)" if count else ""


def _notes(
    study: Config, trained: Sequence[Trained], taught: Sequence[Row], toy: Sequence[Row]
) -> list[str]:
    lines = [
        "+- half of the 95 % interval over seeds; student s learns from teacher s, so that those "
        "of one teacher share its luck",
        "gamma: effective smoothing of a teacher at its temperature, over the students' training "
        "images, times its share of the loss (loss.beta); of students without a teacher, that of "
        "their labels",
    ]
    for eps in sorted({row["eps"] for row in taught}):
        here = [row for row in taught if row["eps"] == eps]
        alike = mean_cell([row["wrong_class_agreement"] for row in here], 2)
        kept = mean_cell([row["within_class_information"] for row in here], 2)
        lines.append(
            f"teachers of eps {eps:.12g}: ECE {mean_cell([row['test_ece'] for row in here], 3)}, "
            f"clusters NC1 {mean_cell([row['nc1'] for row in here], 3)}"
            + (f", I(X;Y|C) {kept} nats" if kept else "")
            + (f", wrong classes ranked as by the hard one: rho {alike}" if alike and eps else "")
        )
    if any(one.entry.config.get("loss.match") == "logits" for one in trained):
        lines.append(
            "students that match logits have a rate of their own, and for gamma that of their "
            "teacher; those without one are trained at the rate of the teachers"
        )
    draws = _draws(trained)
    if draws is not None and any(row["information"] is not None for row in taught):
        _, classes = data_and_classes([one for one in trained if one.keys["role"] == TEACHER])
        pair = " and ".join(classes[k] for k in draws.classes)
        lines.append(
            f"I(X;Y|C): of the end of training, {draws.examples} images at most of {pair} each, "
            f"{draws.draws} draws, as sweep information has it"
        )
    for row in toy:
        half = "" if row["low"] is None else f" +- {(row['high'] - row['low']) / 2:.2f}"
        lines.append(
            f"MNIST toy, {row['role']}, teacher's eps {row['teacher_eps']:g}: test error "
            f"{row['value']:.2f}{half} %, paper {row['paper']:.2f} %, public reproduction "
            f"{row['public_reproduction']:.2f} %"
        )
    return [*lines, ONE_SEED] if len(study.seeds) < 2 else lines


class Curve(NamedTuple):
    """label: in the legend; offset: of what stands beside a point, in points of type, so that those
    of curves that lie on each other do not."""

    name: str
    label: str
    color: str
    line: str
    marker: str
    offset: tuple[int, int]


CURVES = (
    Curve(TEACHER, "teachers", COLORS[0], "-", "s", (3, 4)),
    Curve(BASELINE, "students without a teacher, eps beside", COLORS[5], "-", "o", (-12, -9)),
    Curve("hard", "students of hard teachers, T beside", COLORS[1], "--", "^", (3, -10)),
    Curve(
        "smoothed", "students of smoothed teachers, T 1, eps beside", COLORS[0], "--", "D", (3, 4)
    ),
)


@styled
def draw(study: Config, results: Sequence[Result]) -> dict[str, Figure]:
    """Accuracy against gamma: teachers above, students below; with grid=full, the grid too."""
    figure, axes_RC = grid(2, len(results), width=5.2, height=2.4, heights=[0.7, 1.4])
    for column, result in enumerate(results):
        above, below = axes_RC[0][column], axes_RC[1][column]
        rows = [
            row
            for row in result.tables["distillation"]
            if (row["split"], row["metric"]) == ("test", "accuracy") and row["gamma"] is not None
        ]
        for curve in CURVES:
            if curve.name == TEACHER:
                _draw_curve(above, rows, curve._replace(label=_teachers(result)))
            else:
                _draw_curve(below, rows, curve)
        known = result.recipe if result.papers else ""
        marks = zip("x+1", REPRODUCTION_STUDENTS.get(known, {}).items(), strict=False)
        for mark, (name, places) in marks:
            x, y = zip(*places, strict=True)
            label = f"public reproduction, {name}"
            below.plot(x, [100 * part for part in y], mark, color="0.6", markersize=5, label=label)
        above.set_title(plain(result.title), loc="left", fontsize=8, pad=16)  # above the legend
        right = max(axis.get_xlim()[1] for axis in (above, below))
        for axis in (above, below):
            axis.set_ylabel("test accuracy (%)")
            axis.set_xlim(-0.05 * right, right)  # what is at 0 is seen whole
            if axis.get_legend_handles_labels()[0]:
                axis.legend(**ABOVE)
        above.set_xlabel("eps of the teacher")
        below.set_xlabel("gamma, the effective smoothing of what was learnt from")
    figures = {"distillation": figure}
    if study.grid == "full":
        figures["grid"] = _draw_grid(results)
    return figures


def _teachers(result: Result) -> str:
    """What they are, in the legend: the figure's title is of the students."""
    runs = [row for row in result.tables["runs"] if row["role"] == TEACHER]
    of = {(r["recipe"], r["steps"]) for r in runs if r["status"] == "finished" and r["steps"]}
    told = ", ".join(f"{plain(str(recipe))}, {steps:,} steps" for recipe, steps in sorted(of))
    return f"teachers ({told}), eps beside" if told else "teachers, eps beside"


def _draw_curve(axis: Any, rows: Sequence[Row], curve: Curve) -> None:
    """Means with bars from the lowest to the highest seed, as the paper draws them."""
    name, color = curve.name, curve.color
    if name in (TEACHER, BASELINE):
        here = [row for row in rows if row["role"] == name]
        here = [{**row, "gamma": row["eps"]} for row in here] if name == TEACHER else here
    else:
        students = [row for row in rows if row["role"] == STUDENT]
        here = [row for row in students if (row["eps"] == 0) == (name == "hard")]
        here = [row for row in here if name == "hard" or row["temperature"] == 1]
    here = sorted(here, key=lambda row: row["gamma"])
    if not here:
        return
    x = [row["gamma"] for row in here]
    y, low, high = (np.array([100 * row[end] for row in here]) for end in ("value", "min", "max"))
    count = f"{curve.label} (n = {min(row['n'] for row in here)})"
    axis.errorbar(
        x, y, [y - low, high - y], color=color, linestyle=curve.line, linewidth=1.2,
        marker=curve.marker, markersize=3, capsize=2, label=count,
    )  # fmt: skip
    for row, place, height in zip(here, x, y, strict=True):
        text = f"{row['temperature']:g}" if name == "hard" else f"{row['eps']:g}"
        beside(axis, text, (place, height), curve.offset, color)


def _draw_grid(results: Sequence[Result]) -> Figure:
    """Students' accuracy over the teacher's eps and temperature, and minus that of hard ones."""
    figure, axes_RC = grid(len(results), 2, width=4.6, height=3.4)
    for axes, result in zip(axes_RC, results, strict=True):
        axes[0].annotate(
            plain(result.title), (0, 1.12), xycoords="axes fraction", fontsize=8, ha="left"
        )
        rows = [
            row
            for row in result.tables["distillation"]
            if (row["role"], row["split"], row["metric"]) == (STUDENT, "test", "accuracy")
        ]
        if not rows:
            continue
        eps = sorted({row["eps"] for row in rows})
        temperatures = sorted({row["temperature"] for row in rows})
        cells = np.full((len(eps), len(temperatures)), np.nan)
        for row in rows:
            place = eps.index(row["eps"]), temperatures.index(row["temperature"])
            cells[place] = 100 * row["value"]
        away = np.full_like(cells, np.nan)
        for row in result.tables.get("grid", []):
            away[eps.index(row["eps"]), temperatures.index(row["temperature"])] = 100 * row["value"]
        seeds = min(row["n"] for row in rows)
        furthest = np.nanmax(np.abs(away)) if np.isfinite(away).any() else 1.0
        for axis, values, title, look in (
            (axes[0], cells, f"test accuracy of students (%), n = {seeds}", {"cmap": "cividis"}),
            (
                axes[1],
                away,
                "minus that of hard teachers' at the same temperature (points)",
                {"cmap": "PuOr", "vmin": -furthest, "vmax": furthest},
            ),
        ):
            shown = axis.imshow(values, aspect="auto", origin="lower", **look)
            figure.colorbar(shown, ax=axis)
            axis.set_xticks(range(len(temperatures)), [f"{value:g}" for value in temperatures])
            axis.set_yticks(range(len(eps)), [f"{value:g}" for value in eps])
            axis.set_xlabel("temperature of the teacher")
            axis.set_ylabel("eps of the teacher")
            axis.set_title(title, fontsize=8)
            axis.grid(visible=False)
            if np.isnan(values[0]).all() and np.isfinite(values).any():
                axis.set_ylim(bottom=0.5)
            for (i, k), value in np.ndenumerate(values):
                if np.isfinite(value):
                    box = {"facecolor": "white", "alpha": 0.6, "pad": 0.6, "lw": 0}
                    text = f"{value:.2f}"
                    axis.text(k, i, text, ha="center", va="center", fontsize=6, bbox=box)
    return figure
