"""The command `lsexp report`: what has been swept, on one page."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from lsexp import studies
from lsexp.errors import UserError, unknown
from lsexp.report.content import Section, manifests, section
from lsexp.report.pages import as_html, as_markdown
from lsexp.runs.store import replace_file, runs_folder
from lsexp.sweep.manifest import Manifest
from lsexp.sweep.show import Output
from lsexp.text import say

HELP = """\
lsexp report [STUDY ...] [key=value ...]: what has been swept, as one page; trains nothing

  lsexp report                          every study of every sweep: the newest of each kind
  lsexp report calibration projections  these studies
  lsexp report recipe=mnist_mlp         of these recipes, with commas between several

Keys: recipe=, runs_dir=, data_dir=, out_dir= (or LSEXP_OUT_DIR; default: out).
Writes OUT_DIR/report/report.html, which needs no other file and no network, and report.md with its
figures beside it. Studies that share runs are drawn from each other's sweeps.
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
    output, words = Output.split(words)
    chosen = [word for word in words if "=" not in word]
    for name in chosen:
        if name not in studies.names():
            raise unknown(name, "study", studies.names(), "lsexp report --help")
    keys: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in keys:
            raise UserError(f"{name}: is given twice")
        if equals and name not in KEYS:
            close = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; {', '.join(KEYS)} are"
            raise UserError(f"{word}: no key of a report{hint}; `lsexp report --help`")
        if equals:
            keys[name] = value
    runs_dir = runs_folder(keys.get("runs_dir"))
    recipes = keys["recipe"].split(",") if "recipe" in keys else []
    found = manifests(runs_dir, chosen, recipes)
    if not found:
        of = f" of {', '.join([*chosen, *recipes])}" if chosen or recipes else ""
        raise UserError(
            f"report: no sweep{of} in {runs_dir}; `lsexp reproduce` makes one of every study, "
            f"`lsexp sweep STUDY` one",
            exit_code=1,
        )
    command = shlex.join(["lsexp", "report", *words])
    print(*write(found, runs_dir, keys.get("data_dir"), output.folder, command), sep="\n")
    return 0


def write(
    found: Sequence[Manifest],
    runs_dir: Path,
    data_dir: str | None,
    out_dir: Path,
    command: str,
) -> list[Path]:
    """Write both pages of these sweeps; returns their paths. Sweeps with nothing finished are said.

    Raises:
        UserError: nothing is finished, or the folder cannot be written.
    """
    sections: list[Section] = []
    for manifest in found:
        try:
            sections.append(section(manifest, runs_dir, data_dir))
        except UserError as error:
            say(f"lsexp: left out: {error}")
    if not sections:
        raise UserError("report: nothing of these sweeps is finished, see above", exit_code=1)
    folder = out_dir / "report"
    pages = [folder / "report.html", folder / "report.md"]
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        replace_file(pages[0], as_html(sections, command))
        replace_file(pages[1], as_markdown(sections, command))
        names = set()
        for one in sections:
            for figure in one.figures:
                names.add(f"{figure.name}.svg")
                replace_file(folder / "figures" / f"{figure.name}.svg", figure.svg)
        for old in (folder / "figures").glob("*.svg"):
            if old.name not in names:
                old.unlink()
    except OSError as error:
        raise UserError(f"out_dir={out_dir}: {error.strerror or error}", exit_code=1) from error
    return pages
