"""The command `lsexp report`: what has been swept, on one page."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from lsexp import compose, studies
from lsexp.errors import UserError, unknown
from lsexp.files import clear, replace_file
from lsexp.report.content import Section, left_out, manifests, section
from lsexp.report.pages import as_html, as_markdown
from lsexp.runs.store import runs_folder
from lsexp.sweep.command import Found
from lsexp.sweep.manifest import Manifest
from lsexp.sweep.show import Output, results_of
from lsexp.text import say, taken

HELP = """\
lsexp report [STUDY ...] [key=value ...]: what has been swept, as one page; trains nothing

  lsexp report                          every study of every sweep, those of one kind together
  lsexp report calibration projections  these studies
  lsexp report recipe=mnist_mlp         of these recipes, with commas between several

Keys: recipe=, runs_dir=, data_dir=, out_dir= (or LSEXP_OUT_DIR; default: out).
Writes OUT_DIR/report/report.html, which needs no other file and no network, and report.md with its
figures beside it; of some studies or recipes to a folder named after them, OUT_DIR/report-NAME.
Studies that share runs are drawn from each other's sweeps.
"""
KEYS = ("recipe", "runs_dir", "data_dir")


def run(words: list[str]) -> int:
    """The words after `lsexp report`; the exit code."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    for word in words:
        if word.startswith("figure.format="):
            raise UserError(f"{word}: a report's figures are SVG; leave it out")
    command = shlex.join(["lsexp", "report", *words])
    output, words = Output.split(words)
    chosen = list(dict.fromkeys(word for word in words if "=" not in word))
    for name in chosen:
        if name not in studies.names():
            raise unknown(name, "study", studies.names(), "lsexp report --help")
    keys, others = taken(words, KEYS)
    for word in (word for word in others if "=" in word):
        close = difflib.get_close_matches(word.partition("=")[0], KEYS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; {', '.join(KEYS)} are"
        raise UserError(f"{word}: no key of a report{hint}; `lsexp report --help`")
    for name, value in keys.items():
        if not all(value.split(",") if name == "recipe" else [value]):
            raise UserError(f"{name}={value} must name something; `lsexp report --help`")
    runs_dir = runs_folder(keys.get("runs_dir"))
    recipes = list(dict.fromkeys(keys["recipe"].split(","))) if "recipe" in keys else []
    found = manifests(runs_dir, chosen, recipes)
    if not found:
        of = f" of {', '.join([*chosen, *recipes])}" if chosen or recipes else ""
        raise UserError(
            f"report: no sweep{of} in {runs_dir}; `lsexp reproduce` makes one of every study, "
            f"`lsexp sweep STUDY` one",
            exit_code=1,
        )
    told = {one for study, manifest in found for one in (study, *_recipes(study, manifest))}
    for one in [*chosen, *recipes]:
        if one not in told:
            say(f"lsexp: no sweep of {one} in {runs_dir}")
    drawn: list[Found] = []
    for study, manifest in found:
        module, manifest = studies.study(study, "lsexp report"), manifest.where(words)
        try:
            results = results_of(module, manifest, runs_dir, keys.get("data_dir"))
            drawn.append((study, manifest, results))
        except UserError as error:
            say(f"lsexp: left out: {error}")
            drawn.append((study, manifest, error))
    named = [one for one in (*chosen, *recipes) if one in told]
    folder = output.folder / "-".join(["report", *named]).replace("/", "_")
    print(*write(drawn, folder, command), sep="\n")
    return 0


def _recipes(study: str, manifest: Manifest) -> set[str]:
    """Recipes by which a sweep may be asked for."""
    of = {part.chosen["recipe"] for part in manifest.parts}
    module = studies.study(study, "")
    names = compose.options("recipe", None)
    return of | {name for name in names if getattr(module, "recipe_for", str)(name) in of}


def write(found: Sequence[Found], folder: Path, command: str) -> list[Path]:
    """Write both pages of what sweeps found to a folder; returns their paths.

    Raises:
        UserError: nothing was found, or the folder cannot be written.
    """
    sections: list[Section] = []
    missing: list[str] = []
    taken: set[str] = set()
    for study, manifest, results in found:
        if isinstance(results, UserError):
            missing.append(str(results))
        else:
            sections.append(section(study, manifest, results, taken))
            missing += left_out(manifest, results)
    if not sections:
        raise UserError("report: nothing of these sweeps is finished, see above", exit_code=1)
    pages = [folder / "report.html", folder / "report.md"]
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        replace_file(pages[0], as_html(sections, command, missing))
        replace_file(pages[1], as_markdown(sections, command, missing))
        names = set()
        for one in sections:
            for figure in one.figures:
                names.add(f"{figure.name}.svg")
                replace_file(folder / "figures" / f"{figure.name}.svg", figure.svg)
        for old in (folder / "figures").glob("*.svg"):
            if old.name not in names:
                old.unlink(missing_ok=True)
        clear(folder, folder / "figures")
    except OSError as error:
        raise UserError(
            f"out_dir={folder.parent}: {error.strerror or error}", exit_code=1
        ) from error
    return pages
