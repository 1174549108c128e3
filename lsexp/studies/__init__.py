"""Studies: the units in which a reader of the paper thinks, one module each.

A module of this package is a study (if its name begins with no _); `lsexp sweep <name>`,
`lsexp plot <name>` and the report know none by name. It holds

    HELP                         one line: which figure or table
    ORDER                        its place in a report
    READING                      figure to how it is read
    Config                       dataclass of the study's own keys, declared by `config.key`
    OWNED                        keys of a run that the study sets, and what to type instead
    VIEW                         those of its own keys that choose no runs
    runs(study, base)            the runs that must have been trained, from the config of one
    CLAIMS                       declared before any run
    measurements(study, trained) what to measure on each, beyond the outputs that every run has
    analyze(study, trained, recipe)  tables and findings; no files, no torch; None: too little
    draw(study, results)         the figures by name; a row, or a few, for each recipe

and, where it makes sense,

    check(study, data, classes, planned, images)  refuse what could not be drawn, before training;
                                 images: split to how many it has of each class
    drawn(eps)                   of the eps of another study's sweep, those that it draws
    analyze_file(study, path)    the same of anybody's logits; FILE: what the file holds
    PARTNER                      teacher, student: another kind of run, beside those of the recipe
    partner(study, base, recipe) name of its recipe, whose config `runs` gets too; None: there are
                                 none, and NEEDED says what it takes
    recipe_for(recipe)           its recipe, where a user names that of the other studies
    measured(keys)               whether a run of these keys is to be measured, where not all are
    SHOWN                        recipes whose networks the paper has in this place, of all claims

configs/study/<name>.yaml holds the defaults of its keys. Studies that share the function `runs`
(that of eps) share its sweeps: what was trained for one is drawn by all.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from lsexp.analysis.statistics import Direction, Interval, over_seeds, verdict
from lsexp.config import TrainConfig, key
from lsexp.errors import UserError, unknown
from lsexp.measure import Question
from lsexp.runs.catalog import Entry, load_outputs
from lsexp.text import plural, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def eps_key(usual: list[float], doc: str = "smoothing of each run, as a list") -> Any:
    """A study's key `eps`."""
    return key(usual, doc, at_least=0, below=1)


def seeds_key(usual: list[int]) -> Any:
    """A study's key `seeds`, for which one number says how many."""
    return key(usual, "how many seeds, or which, as a list", at_least=0, below=2**31)


class Run(NamedTuple):
    """A run that a study needs: its keys in the study's tables ({"eps": .1, "seed": 0}).

    teacher: of a student, another run of the same study.
    """

    keys: Row
    config: TrainConfig
    teacher: Run | None = None


@dataclass
class Trained:
    """A run of a study as it stands.

    Attributes:
        keys: those of its `Run`.
        entry: its folder; the status tells whether it is finished, or missing.
        measured: what the study asked to be measured, where it is finished.
    """

    keys: Row
    entry: Entry
    measured: Mapping[Question, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.entry.status == "finished"

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Logits, labels and indices of val and test of a finished run, as `load_outputs`."""
        return load_outputs(self.entry.path)


class Claim(NamedTuple):
    """What the paper says, declared before the runs.

    Attributes:
        where: place in the paper.
        statistic: what of ours it is judged by.
        direction: "above" or "below" 0, or "within" the margin.
        margin: in the statistic's unit.
        factor, unit: how its values are told to people.
        disputed_by: who found otherwise, if anybody.
        gate: what must hold of hard runs for the claim to say anything, "" for nothing.
    """

    name: str
    text: str
    where: str
    statistic: str
    direction: Direction
    margin: float = 0.0
    factor: float = 1.0
    unit: str = ""
    disputed_by: str = ""
    gate: str = ""


@dataclass
class Finding:
    """A claim beside our estimate: value, interval over n, the paper's value, and the verdict.

    verdict: supported, contradicted, inconclusive, or not tested; because: why, where it says
    nothing by itself; over: what the interval is over, "seeds" or "both" (images too), "" without.
    """

    claim: Claim
    value: float | None
    low: float | None
    high: float | None
    n: int
    paper: float | None
    verdict: str
    because: str = ""
    over: str = ""


@dataclass
class Result:
    """What a study found with one recipe.

    Attributes:
        recipe: its name.
        tables: file name to rows, tidy.
        summary: the table on the terminal, its header first; notes: lines below it.
        title: what the figure is of.
        papers: whether data and network are the paper's, at whatever budget.
    """

    recipe: str
    tables: dict[str, list[Row]]
    findings: list[Finding]
    summary: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    title: str = ""
    papers: bool = False


class Study(Protocol):
    """What a module of this package offers."""

    HELP: str
    ORDER: int
    READING: dict[str, str]
    Config: type
    OWNED: dict[str, str]
    VIEW: tuple[str, ...]
    CLAIMS: Sequence[Claim]
    runs: Callable[..., list[Run]]
    measurements: Callable[[Any, Sequence[Trained]], list[Question]]
    analyze: Callable[[Any, Sequence[Trained], str], Result | None]
    draw: Callable[[Any, Sequence[Result]], dict[str, Figure]]


SEEDS_ON_CIFAR, SEEDS_ELSEWHERE = 3, 10
"""How many decide a claim; where runs are cheap, more are asked."""
LEARNT, OVERCONFIDENT = 0.95, 1.3
"""What the gate asks of hard runs: accuracy on clean training images, temperature fitted on val."""
GATE = f"hard runs are right on {100 * LEARNT:.0f} % of their training images"


ONE_SEED = "one seed: nothing can be said of seeds; seeds=5 trains more"
BOTH = "over seeds and images (until 27 November 2026 over seeds alone, which share images)"


def interval_row(found: Interval) -> Row:
    """An estimate in a table, with what its interval is over, if it has one."""
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "interval": found.over if found.low is not None else None,
    }


def mean_cell(values: Sequence[float | None], digits: int) -> str:
    """Mean over seeds and half its interval; (k) behind it where only k of them have a value."""
    found = [value for value in values if value is not None]
    if not found:
        return ""
    interval = over_seeds(np.array(found))
    text = rounded(interval.value, digits)
    if interval.low is not None and interval.high is not None:
        text += f" +- {rounded((interval.high - interval.low) / 2, digits)}"
    return text if len(found) == len(values) else f"{text} ({len(found)})"


def seeds_cell(trained: Sequence[Trained], eps: float) -> str:
    """How many seeds of an eps are finished, and how many failed."""
    status = [one.entry.status for one in trained if one.keys["eps"] == eps]
    failed = status.count("failed")
    return f"{status.count('finished')}" + (f" ({failed} failed)" if failed else "")


def title_of(recipe: str, done: Sequence[Trained]) -> str:
    """What was really trained, for a figure: keys that were typed may change a recipe's budget."""
    config, images = done[0].entry.config, done[0].entry.metrics["train"].get("images")
    steps, data = config.get("train.steps"), str(config.get("data.name", ""))
    length = f" ({steps:,} steps, {images:,} images)" if steps and images else ""
    if data in ("npz", "imagefolder"):  # what it is called stands in the name of the run
        data = done[0].entry.name.partition("-")[0]
    on = "" if recipe.startswith(data) else f" on {data}"
    return f"{recipe}{on}, budget {config['budget']}{length}"


def run_row(one: Trained, **more: Any) -> Row:
    """A row of runs.csv: what was trained, unfinished ones included, and where it comes from."""
    metrics = one.entry.metrics
    row = {**one.keys, "status": one.entry.status, "run": one.entry.name, **more}
    row["recipe"] = one.entry.config.get("recipe")
    for split in ("val", "test"):
        for metric in ("accuracy", "nll", "ece", "brier"):
            row[f"{split}_{metric}"] = (metrics.get(split) or {}).get(metric)
    train, provenance = metrics.get("train", {}), metrics.get("provenance", {})
    row["train_accuracy"] = train.get("accuracy")
    row["budget"] = one.entry.config.get("budget")
    row["steps"], row["images"] = metrics.get("steps"), train.get("images")
    row["train_size"] = one.entry.config.get("data.train_size")
    row["precision"] = one.entry.config.get("precision")
    row["seconds"] = metrics.get("seconds")
    # A run may have gone on elsewhere, or with other code.
    parts = provenance.get("segments", [])
    there = [part["environment"] for part in parts] or [provenance]
    on_cpu = [each for each in there if each.get("device") == "cpu"]
    row["cpu_class"] = _in_turn(each.get("cpu_class") for each in on_cpu)
    row["threads"] = provenance.get("threads")
    for name in ("torch", "device"):
        row[name] = _in_turn(each.get(name) for each in there)
    row["kernels"] = provenance.get("kernels", "deterministic") if provenance else None
    code = [part.get("git") for part in parts] or [provenance.get("git")]
    row["commit"] = _in_turn(
        git and f"{git['commit']}{' (dirty)' if git['dirty'] else ''}" for git in code
    )
    # Folders are of the machine, not of the run.
    words = [
        word
        for word in provenance.get("command", [])
        if word.partition("=")[0] not in ("out_dir", "runs_dir", "data_dir")
    ]
    row["command"] = shlex.join(words) if provenance else None
    return row


KINDS = {
    "precision": "precisions",
    "device": "devices",
    "cpu_class": "classes of CPU",
    "torch": "versions of torch",
    "kernels": "kernels",
}
"""Columns of runs.csv in which runs that are compared had better be alike."""


def _in_turn(values: Iterable[str | None]) -> str | None:
    """What the processes that trained a run had: each once, in their order; None for nothing."""
    return ", then ".join(dict.fromkeys(value for value in values if value)) or None


def mixed(trained: Sequence[Trained]) -> list[str]:
    """Lines on what finished runs of one recipe do not share beside what was asked: how numbers are
    rounded, and on what."""
    rows = [run_row(one) for one in trained if one.finished]
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        for name, what in KINDS.items():
            values = (row[name] for row in rows if row["recipe"] == recipe)
            counts = Counter(str(value) for value in values if value is not None)
            if len(counts) > 1:
                told = ", ".join(f"{count} of {value}" for value, count in counts.most_common())
                lines.append(
                    f"mixed {what}: of {recipe} {told}; differences between runs are of these too"
                )
    return lines


def other_spread(trained: Iterable[Trained]) -> str:
    """Why these do not test the paper's claims; "" where they spread eps over all classes, as the
    paper. Hard runs are the same either way, whatever they were asked for with."""
    smoothed = [one.entry.config for one in trained if one.keys["eps"] != 0]
    if all(config.get("loss.spread", "uniform") == "uniform" for config in smoothed):
        return ""
    return "eps is spread over the other classes only; the paper spreads it over all"


def learnt(trained: Sequence[Trained]) -> str:
    """Why hard runs cannot be said to have learnt their training images; "" where they have."""
    right = [o.entry.metrics["train"]["accuracy"] for o in trained if o.keys["eps"] == 0]
    if not right:
        return "needs runs at eps 0"
    if np.mean(right) < LEARNT:
        return f"hard runs are right on {np.mean(right):.3f} of their training images, not {LEARNT}"
    return ""


class Chosen(NamedTuple):
    """Classes of a study: their numbers and names."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]


def choose_classes(typed: Sequence[str], data: str, classes: Sequence[str], count: int) -> Chosen:
    """What `classes=` means for a data set with these classes: names, or numbers.

    Raises:
        UserError: not `count` different classes, or none of that name.
    """
    names, found = list(classes), []
    for word in typed:
        if word in names:
            found.append(names.index(word))
        # Python refuses to read a number of thousands of digits.
        elif word.isdecimal() and len(word) < 10 and int(word) < len(names):
            found.append(int(word))
        else:
            close = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            listed = f" ({', '.join(names)})" if len(names) <= 20 else ""
            raise UserError(
                f"classes={','.join(typed)}: {data} has no class {word}{hint}; it has "
                f"{len(names)}, by name{listed} or number, 0 to {len(names) - 1}"
            )
    if len(found) != count or len(set(found)) != count:
        words = {2: "two", 3: "three"}
        here = ", ".join(names[number] for number in found)
        taken = "" if here == ", ".join(typed) else f", not {here}"
        raise UserError(
            f"classes={','.join(typed)}: must be {words[count]} different classes{taken}"
        )
    return Chosen(tuple(found), tuple(names[k] for k in found))


def check_images(chosen: Chosen, images: Mapping[str, Sequence[int]], fewest: int) -> None:
    """Refuse classes of which a split has fewer images than a study needs.

    Args:
        images: split to how many it has of each class; a split without any is not looked at.

    Raises:
        UserError: naming the split and the class.
    """
    for split, counts in images.items():
        for number, name in zip(chosen.numbers, chosen.names, strict=True):
            if counts[number] < fewest and any(counts):
                raise UserError(
                    f"classes={','.join(chosen.names)}: {split} has "
                    f"{plural(counts[number], 'image')} of class {name}, and {fewest} of each are "
                    f"needed; choose other classes with classes=, or more images with "
                    f"data.train_size= or another data.split="
                )


def data_and_classes(trained: Sequence[Trained]) -> tuple[str, list[str]]:
    """Name of the data set of these runs, and of its classes."""
    done = next(one for one in trained if one.finished)
    # Runs of an early version do not tell: their classes go by number.
    classes = done.entry.metrics.get("classes")
    if classes is None:
        classes = [str(k) for k in range(done.outputs["test.logits"].shape[1])]
    return str(done.entry.metrics["config"]["data.name"]), list(classes)


def check_lists(**lists: Sequence[float]) -> None:
    """Refuse keys of a study that hold nothing, or something twice (fractions: to six digits).

    Raises:
        UserError: naming the key.
    """
    for name, values in lists.items():
        if not values:
            raise UserError(f"{name}=[]: must hold at least one")
        # As names of runs and tables have them.
        shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        twice = [text for text in shown if shown.count(text) > 1]
        if twice:
            raise UserError(f"{name}={','.join(map(str, values))}: {twice[0]} is there twice")


def untested(claim: Claim, paper: float | None, because: str) -> Finding:
    return Finding(claim, None, None, None, 0, paper, "not tested", because)


def decide(
    claim: Claim, found: Interval, paper: float | None, data: str, closed: str = ""
) -> Finding:
    """The finding of a claim from our estimate.

    Args:
        data: name of the data set, which says how many seeds decide.
        closed: why the claim's gate does not hold; the estimate is told all the same.
    """
    said: str = verdict(found, claim.direction, claim.margin)
    least = SEEDS_ON_CIFAR if data.startswith("cifar") else SEEDS_ELSEWHERE
    because = ""
    if closed:
        said, because = "not tested", closed
    elif found.n < least:
        said, because = "inconclusive", f"decided from {least} seeds on"
    elif found.low is None:
        because = "the values are all alike: no interval"
    elif said == "inconclusive":
        because = "the interval reaches to both sides"
    over = "" if found.low is None else found.over
    return Finding(claim, *found[:4], paper, said, because, over)


def names() -> list[str]:
    """All studies, without importing one."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def ordered() -> list[str]:
    """All studies in the order of a report."""
    return sorted(names(), key=lambda name: int(study(name, "").ORDER))


def study(name: str, command: str) -> Any:
    """The study of that name.

    Raises:
        UserError: there is none; `command` is what lists them.
    """
    if name not in names():
        raise unknown(name, "study", names(), f"{command} --help")
    return importlib.import_module(f"{__name__}.{name}")
