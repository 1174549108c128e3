"""What a report says, before it is a page: a section for each study and sweep of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsexp import compose, studies
from lsexp.config import TrainConfig
from lsexp.errors import UserError
from lsexp.figures import drawn
from lsexp.studies import Claim, Finding, Result, Row
from lsexp.sweep.manifest import Manifest, all_with_runs, experiments, together
from lsexp.sweep.naming import name_of, own_folder, typed_of
from lsexp.sweep.show import completing, estimate_of
from lsexp.sweep.work import label
from lsexp.text import plural, say

PIXELS = 1.4
"""Of a page, for a point of a figure."""


class Table(NamedTuple):
    """Cells as people read them, the header apart."""

    header: list[str]
    rows: list[list[str]]


class Drawn(NamedTuple):
    """A figure.

    Attributes:
        name: of its file, without ending.
        svg: the element, its identifiers made unique on a page.
        alt: what it shows, for those who do not see it; reading: how to read it.
    """

    name: str
    svg: str
    alt: str
    reading: str


class Judged(NamedTuple):
    """A claim with what was found, as text.

    asked: what the statistic must be, and where; estimate: ours; paper: its, "" where it has none;
    whose: of `WHOSE`.
    """

    verdict: str
    text: str
    where: str
    statistic: str
    asked: str
    estimate: str
    paper: str
    because: str
    disputed_by: str
    whose: str


@dataclass
class OfRecipe:
    """What a section says of one recipe.

    Attributes:
        about: the first sentence of the recipe's file.
        reduced: what is less than in the paper; "" where nothing is.
        missing: runs that are not finished, and what to do about them, "" without any.
        ran: the table of what was run.
    """

    recipe: str
    title: str
    about: str
    table: Table
    notes: list[str]
    claims: list[Judged]
    ran: Table
    reduced: str
    missing: str


WHOSE = {
    "yes": "The paper's network where the paper has it",
    "of another place": "The paper's network in a table or figure that the paper has of another",
    "no": "Networks that are not the paper's, of which a verdict says what holds there",
}
"""Whether the paper has what a claim was judged on: data and network, in this place."""


@dataclass
class Section:
    """A study of one sweep.

    Attributes:
        anchor: its identifier on the page.
        command: what draws it.
        typed: what sets its runs apart from those of the recipe, "" for nothing.
    """

    study: str
    title: str
    anchor: str
    command: str
    typed: str
    figures: list[Drawn] = field(default_factory=list)
    recipes: list[OfRecipe] = field(default_factory=list)


def manifests(
    runs_dir: Path, chosen: Sequence[str], recipes: Sequence[str]
) -> list[tuple[str, Manifest]]:
    """Sweeps to report: of each study, in the order of the paper, those of each kind together.

    Those of which no run is there any more are left out, and said.

    Args:
        chosen: names of studies; none: all.
        recipes: only of these, or of what teaches or learns from these; none: of all.
    """
    found, gone = [], []
    for name in studies.ordered():
        if chosen and name not in chosen:
            continue
        module = studies.study(name, "lsexp report")
        kinds: dict[str, list[Manifest]] = {}
        wanted = {*recipes, *map(getattr(module, "recipe_for", str), recipes)}
        for manifest in all_with_runs(name, module, runs_dir):
            of = [part.chosen["recipe"] for part in manifest.parts]
            if (wanted and not wanted & set(of)) or not all(part.runs for part in manifest.parts):
                continue
            if any((runs_dir / run).exists() for run in manifest.names()):
                kinds.setdefault(name_of(module, manifest, of), []).append(manifest)
            else:
                gone.append(shlex.join(["lsexp", "sweep", manifest.study, *manifest.words]))
        of_one = [one for alike in kinds.values() for one in experiments(alike, runs_dir)]
        found += [(name, together(name, alike)) for alike in of_one]
    if gone:
        commands = [f"`{one}`" for one in dict.fromkeys(gone)]
        more = ", ..." if len(commands) > 3 else ""
        say(f"left out, none of its runs is there: {', '.join(commands[:3])}{more}")
    return found


def section(study: str, manifest: Manifest, results: Sequence[Result], taken: set[str]) -> Section:
    """A study of one sweep.

    Args:
        taken: anchors of other sections, to which its own is added.
    """
    module = studies.study(study, "lsexp report")
    name = name_of(module, manifest, [part.chosen["recipe"] for part in manifest.parts])
    plain = re.sub(r"[^A-Za-z0-9]+", "-", f"{study}-{name}").strip("-").lower()
    plain = plain[:180]  # figures have files of this name
    names = itertools.chain([plain], (f"{plain}-{count}" for count in itertools.count(2)))
    anchor = next(one for one in names if one not in taken)
    taken.add(anchor)
    typed = " ".join([*typed_of(manifest), *manifest.apart])
    found = Section(study, module.HELP, anchor, _command(study, manifest), typed)
    folder = own_folder(manifest.words)
    where = [] if folder is None else [f"--config-dir={folder}"]
    found.recipes = [_of_recipe(study, result, manifest, where) for result in results]
    config = module.Config(**manifest.parts[0].keys)
    for number, (figure_name, figure) in enumerate(module.draw(config, results).items()):
        what = figure_name.replace("_", " ")
        title = f"{module.HELP} ({what}). {_alternative(found.recipes, findings=number == 0)}"
        reading = module.READING.get(figure_name, "")
        svg = _svg(figure, f"{anchor}-{figure_name}")
        found.figures.append(Drawn(f"{anchor}-{figure_name}", svg, title, reading))
    return found


def _alternative(recipes: Sequence[OfRecipe], *, findings: bool) -> str:
    """What a figure shows, for those who do not see it: whose it is, and what was found."""
    lines = []
    for part in recipes:
        claims = part.claims if findings else []
        said = [f"{one.text}: {one.verdict}, {one.estimate}" for one in claims]
        lines.append(". ".join([part.title, *said]))
    return ". ".join(lines)


def left_out(manifest: Manifest, results: Sequence[Result]) -> list[str]:
    """Recipes of a sweep of which nothing is finished."""
    drawn = {result.recipe for result in results}
    return [
        f"{part.chosen['recipe']}: none of {plural(len(part.runs), 'run')} is finished; "
        f"{completing(manifest, retry=False)}"
        for part in manifest.parts
        if part.chosen["recipe"] not in drawn
    ]


def _command(study: str, manifest: Manifest) -> str:
    """What draws a study again: its own sweep, or a plot from the sweep that it shares; a line for
    each sweep whose runs are drawn together."""
    return "\n".join(dict.fromkeys(_of_one(study, one) for one in manifest.sweeps()))


def _of_one(study: str, manifest: Manifest) -> str:
    if study == manifest.study:
        return shlex.join(["lsexp", "sweep", study, *manifest.words])
    theirs = {item.name for item in fields(studies.study(manifest.study, "").Config)}
    words = [word for word in manifest.words if word.partition("=")[0] not in theirs | {"workers"}]
    keys = manifest.parts[0].keys
    lists = [f"{name}={','.join(f'{v:.12g}' for v in keys[name])}" for name in ("eps", "seeds")]
    # One seed: `seeds=0` would be none.
    lists[1] += "," if len(keys["seeds"]) == 1 else ""
    return shlex.join(["lsexp", "plot", study, *words, *lists])


def _svg(figure: Any, prefix: str) -> str:
    """The figure as an element for a page, its identifiers with a prefix of their own."""
    text = drawn(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    tag, rest = text.split(">", 1)  # of its size the page keeps what it may fill at most
    width = round(PIXELS * float(re.search(r'viewBox="0 0 ([\d.]+)', tag)[1]))  # type: ignore[index]
    return re.sub(r' (width|height)="[^"]*"', "", tag) + f' style="max-width:{width}px">' + rest


def _of_recipe(study: str, result: Result, manifest: Manifest, where: list[str]) -> OfRecipe:
    runs = result.tables["runs"]
    header, *rows = result.summary or [[]]
    left = [row for row in runs if row["status"] != "finished"]
    missing = ""
    if left:
        names = ", ".join(_name(row) for row in left[:6])
        status = {row["status"] for row in left}
        of = [row["run"] for row in left]
        remedy = f"{completing(manifest, retry='failed' in status, names=of)} trains them"
        if "damaged" in status:
            remedy += ", those that are damaged after lsexp runs repair"
        if "stale" in status:
            remedy += ", those that are stale after lsexp runs rm"
        missing = f"{len(left)} of {plural(len(runs), 'run')} missing: {names}"
        missing += f"{', ...' if len(left) > 6 else ''}; {remedy}"
    return OfRecipe(
        result.recipe,
        result.title,
        "" if _of_another(manifest.words) else _about(result.recipe, where),
        _without_empty(Table(header, rows)),
        result.notes,
        [_judged(one, whose(study, result, one)) for one in result.findings],
        _ran(runs),
        _reduced(runs, where, papers=result.papers),
        missing,
    )


def whose(study: str, result: Result, finding: Finding) -> str:
    """Which of `WHOSE` a claim was judged on."""
    if not result.papers:
        return "no"
    shown = getattr(studies.study(study, "lsexp report"), "SHOWN", ())
    here = result.recipe in shown or finding.paper is not None
    return "yes" if here else "of another place"


def _of_another(words: Sequence[str]) -> bool:
    """Whether data or network were typed: what the recipe's file says of them is not so then."""
    return any(re.match(r"(data|model)[.=]", word) for word in words)


def _without_empty(table: Table) -> Table:
    """The table without columns in which nothing stands."""
    kept = [k for k, name in enumerate(table.header) if any(row[k] for row in table.rows)]
    return Table([table.header[k] for k in kept], [[row[k] for k in kept] for row in table.rows])


KEYS = ("role", "eps", "temperature", "step", "seed")


def _name(row: Row) -> str:
    status = "" if row["status"] == "missing" else f" ({row['status']})"
    return label({name: row[name] for name in KEYS if name in row}) + status


def _judged(one: Finding, whose: str) -> Judged:
    claim = one.claim
    paper = "" if one.paper is None else f"{claim.factor * one.paper:+.3g} {claim.unit}".strip()
    return Judged(
        one.verdict,
        claim.text,
        claim.where,
        claim.statistic,
        _asked(claim),
        estimate_of(one),
        paper,
        one.because,
        claim.disputed_by,
        whose,
    )


def _asked(claim: Claim) -> str:
    """What the statistic must be.

    >>> _asked(Claim("a", "b", "c", "d", "within", 0.01, 100, "points"))
    'within 1 points of 0'
    >>> _asked(Claim("a", "b", "c", "d", "below", 0.1, unit="nats"))
    'below -0.1 nats'
    """
    margin, unit = claim.factor * claim.margin, f" {claim.unit}" if claim.unit else ""
    gate = f", where {claim.gate}" if claim.gate else ""
    if claim.direction == "within":
        return f"within {margin:g}{unit} of 0{gate}"
    sign = "-" if claim.direction == "below" and margin else ""
    return f"{claim.direction} {sign}{margin:g}{unit}{gate}"


def _ran(runs: Sequence[Row]) -> Table:
    """Finished runs by what they have in common."""
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for row in runs:
        if row["status"] == "finished":
            same = ("recipe", "budget", "steps", "images", "device", "cpu_class", "precision")
            kernels = row.get("kernels") or "deterministic"
            key = (row.get("role"), *(row[name] for name in (*same, "threads", "torch")), kernels)
            kinds.setdefault(key, []).append(row)
    taught = any(row.get("temperature") is not None for row in runs)
    on_cpu = all(row["device"] == "cpu" for row in runs if row["status"] == "finished")
    header = ["what", "runs", "seeds", "eps", *(["temperature"] if taught else [])]
    header += ["steps", "images", "budget", "device", "precision"]
    rows = []
    for (
        role,
        recipe,
        budget,
        steps,
        images,
        device,
        cpu,
        precision,
        threads,
        torch,
        kernels,
    ), here in kinds.items():
        seeds = sorted({row["seed"] for row in here})
        seconds = [float(row["seconds"]) for row in here]
        commits = sorted({_short(row["commit"]) for row in here if row["commit"]})
        rows.append(
            [
                f"{recipe}{f', {role}' if role else ''}",
                str(len(here)),
                _list(seeds),
                _values(here, "eps"),
                *([_values(here, "temperature")] if taught else []),
                f"{steps:,}",
                f"{images:,}" if images else "",
                str(budget),
                f"{device} ({cpu})" if device == "cpu" else str(device),
                f"{precision}, {plural(threads, 'thread')}"
                f"{'' if kernels == 'deterministic' else f', {kernels} kernels'}",
                f"{np.median(seconds):,.0f}",
                f"{sum(seconds) * (threads if device == 'cpu' else 1) / 3600:,.2f}"
                f"{'' if on_cpu else ' of cores' if device == 'cpu' else ' of a GPU, shared'}",
                str(torch),
                ", ".join(commits),
            ]
        )
    hours = "hours of cores" if on_cpu else "hours"
    return Table([*header, "seconds a run (median)", hours, "PyTorch", "commit"], rows)


def _values(rows: Sequence[Row], name: str) -> str:
    """Those that a key has in these rows."""
    found = {row[name] for row in rows} - {None}
    return ", ".join(f"{value:g}" for value in sorted(found))


def _short(commit: str) -> str:
    return f"{commit[:7]}{' (changed)' if 'dirty' in commit else ''}"


def _list(seeds: Sequence[int]) -> str:
    if list(seeds) == list(range(len(seeds))) and len(seeds) > 2:
        return f"0 to {len(seeds) - 1}"
    return ", ".join(map(str, seeds))


def _about(recipe: str, where: list[str]) -> str:
    """The first sentence of a recipe's file."""
    folders = [Path(word.partition("=")[2]) for word in where]
    for folder in [compose.configs_folder(), *folders]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return compose.first_sentence((folder / "recipe" / f"{recipe}.yaml").read_text())
    return ""


def _reduced(runs: Sequence[Row], where: list[str], *, papers: bool) -> str:
    """What is less than in the paper."""
    said = []
    for name in dict.fromkeys(row["recipe"] for row in runs if row["status"] == "finished"):
        here = [r for r in runs if (r["recipe"], r["status"]) == (name, "finished")]
        paper = _as_in_the_paper(name, *where)
        if paper is None:
            continue
        whole, steps = paper.train.steps, min(row["steps"] for row in here)
        less = []
        if paper.train.epochs is None and steps < whole:
            less.append(f"{steps:,} of the paper's {whole:,} steps")
        sizes = [row["images"] for row in here if row["train_size"] is not None]
        if paper.data.train_size is None and sizes:
            less.append(f"{min(sizes):,} training images instead of all")
        said += [f"{name}: {', '.join(less)}"] if less else []
    own = "" if papers else "The paper has no such network. "
    return own + (f"Reduced: {'; '.join(said)}." if said else "")


@functools.cache
def _as_in_the_paper(recipe: str, *where: str) -> TrainConfig | None:
    """None: the paper has no such budget. Kept, since several sections are of one recipe."""
    with contextlib.suppress(UserError):
        [(config, _)] = compose.train_configs([f"recipe={recipe}", "budget=paper", *where])
        return config
    return None


def overview(sections: Sequence[Section]) -> Iterator[tuple[Section, OfRecipe, Judged]]:
    """Every claim of a report."""
    for one in sections:
        for part in one.recipes:
            for claim in part.claims:
                yield one, part, claim
