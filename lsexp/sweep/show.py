"""Finished runs to tables, findings and figures: on the terminal, and as files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsexp import studies
from lsexp.errors import UserError
from lsexp.figures import FORMATS, write_figure, write_table
from lsexp.files import clear
from lsexp.measure import measure
from lsexp.runs.catalog import Entry, is_run, read_run
from lsexp.runs.store import Damaged, RunFolder, snapshot_path
from lsexp.studies import Finding, Result, Trained
from lsexp.sweep.manifest import Manifest, Part
from lsexp.sweep.naming import lasting, name_of
from lsexp.sweep.work import label
from lsexp.text import plural, say, table, taken, user_path


@dataclass
class Output:
    """Where and how figures are written: `out_dir=` and `figure.format=`, `words` as typed."""

    folder: Path
    formats: list[str]
    words: list[str]

    @staticmethod
    def split(words: list[str]) -> tuple[Output, list[str]]:
        """Take what concerns the output out of `words`."""
        typed, others = taken(words, ("out_dir", "figure.format"))
        formats = typed.get("figure.format", "png").split(",")
        for one in formats:
            if one not in FORMATS:
                raise UserError(f"figure.format={one}: must be {' or '.join(FORMATS)}")
        place = typed.get("out_dir", os.environ.get("LSEXP_OUT_DIR") or "out")
        folder = user_path("out_dir", place)
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):  # before hours of training
            raise UserError(f"out_dir={folder}: {nearest} is no folder that can be written")
        return Output(folder, formats, [f"{key}={value}" for key, value in typed.items()]), others


def show(
    module: Any, manifest: Manifest, runs_dir: Path, output: Output, data_dir: str | None
) -> list[Result]:
    """Analyse what is finished, print tables and findings, write figures and tables."""
    results = results_of(module, manifest, runs_dir, data_dir)
    name = name_of(module, manifest, [result.recipe for result in results])
    config = module.Config(**manifest.parts[0].keys)
    tell(module, config, results, output.folder / study_of(module) / name, output.formats)
    return results


def study_of(module: Any) -> str:
    """Its name."""
    name: str = module.__name__
    return name.rpartition(".")[2]


def results_of(
    module: Any, manifest: Manifest, runs_dir: Path, data_dir: str | None
) -> list[Result]:
    """What a study finds in the runs that are finished, by recipe; says what is missing.

    Raises:
        UserError: none is finished.
    """
    study = study_of(module)
    results = []
    for part in manifest.parts:
        found = _analyzed(module, study, manifest, part, runs_dir, data_dir)
        results += [] if found is None else [found]
    if not results:
        runs = sum(len(part.runs) for part in manifest.parts)
        raise UserError(
            f"plot {study}: none of its {plural(runs, 'run')} is finished with what it needs; "
            f"`{completing(manifest, retry=False)}` trains them",
            exit_code=1,
        )
    return results


def completing(manifest: Manifest, *, retry: bool, names: Collection[str] = ()) -> str:
    """The command that trains what is missing; several, where its runs are of several sweeps.

    names: of the runs that are missing; none: any may be.
    """
    again = ["retry_failed=true"] if retry else []
    return "; ".join(
        shlex.join(["lsexp", "sweep", one.study, *lasting(one.words), *one.aside, *again])
        for one in manifest.sweeps()
        if not names or one.names() & {*names}
    )


def tell(
    module: Any, study: Any, results: Sequence[Result], folder: Path, formats: Sequence[str]
) -> None:
    """Print tables and findings; write figures and tables to `folder`."""
    several = len(results) > 1
    for result in results:
        if several:
            print(result.title)
        print(table(result.summary, left=1))
        print("", *result.notes, "", sep="\n")
        for finding in result.findings:
            print(_line(finding))
        print(flush=True)
    tables: dict[str, list[studies.Row]] = {}
    for result in results:
        findings = [_row(finding) for finding in result.findings]
        for name, rows in {**result.tables, "findings": findings}.items():
            of_recipe = [{"recipe": result.recipe, **row} for row in rows] if several else rows
            tables.setdefault(name, []).extend(of_recipe)
    written = []
    try:
        for name, figure in module.draw(study, results).items():
            written += write_figure(figure, folder / name, formats)
        for name, rows in tables.items():
            if rows:
                written.append(write_table(rows, folder / f"{name}.csv"))
        for old in set(folder.glob("*.csv")) - set(written):  # of a sweep with more in it
            old.unlink(missing_ok=True)
        clear(folder)
    except OSError as error:
        raise UserError(
            f"out_dir={folder.parents[1]}: {error.strerror or error}", exit_code=1
        ) from error
    print(*written, sep="\n")


def _analyzed(
    module: Any,
    study: str,
    manifest: Manifest,
    part: Part,
    runs_dir: Path,
    data_dir: str | None,
) -> Result | None:
    """What a study finds in the runs of one recipe that are finished; says what is missing.

    None where none is.
    """
    trained = [Trained(run["keys"], _entry(runs_dir / run["name"])) for run in part.runs]
    for one in trained:
        what = one.entry.status
        if what in ("finished", "damaged"):
            try:
                _check(one.entry)
            except Damaged as error:
                one.entry.status = "damaged"
                say(f"{study}: left out: {error}")
        if what == "stale":
            name = one.entry.name
            say(
                f"{study}: {name}: stale, left out; `lsexp runs rm {name}`, and it is trained again"
            )
    missing = [one for one in trained if not one.finished]
    to_train = [one for one in missing if one.entry.status not in ("damaged", "stale")]
    if to_train:
        retry = any(one.entry.status == "failed" for one in to_train)
        of = f" of {part.chosen['recipe']}" if len(manifest.parts) > 1 else ""
        names = [one.entry.name for one in to_train]
        remedy = completing(manifest, retry=retry, names=names)
        say(
            f"{study}: {len(to_train)} of {plural(len(trained), 'run')}{of} missing "
            f"({', '.join(label(one.keys) for one in to_train[:4])}"
            f"{', ...' if len(to_train) > 4 else ''}); `{remedy}` completes them"
        )
    if len(missing) == len(trained):
        return None
    config = module.Config(**part.keys)
    measured = getattr(module, "measured", lambda _: True)
    first = any(one.finished and measured(one.keys) for one in trained)
    asked = module.measurements(config, trained) if first else []
    for one in trained:
        if asked and one.finished and measured(one.keys):
            steps = {question.step for question in asked} - {None}
            lacking = [at for at in steps if not snapshot_path(one.entry.path, at).is_file()]
            if lacking:
                say(
                    f"{one.entry.name}: finished without {len(lacking)} of its snapshots, left "
                    f"out; `{completing(manifest, retry=False)}` makes them"
                )
                one.entry.status = "without snapshots"
                continue
            try:
                one.measured = measure(one.entry.path, asked, data_dir)
            except Damaged as error:  # a snapshot: the others are drawn
                one.entry.status = "damaged"
                say(f"{study}: left out: {error}")
    if not any(one.finished for one in trained):
        return None
    result: Result | None = module.analyze(config, trained, part.chosen["recipe"])
    if result is None:
        say(f"{part.chosen['recipe']}: no run that {study} is drawn from is finished, left out")
    else:
        result.notes += studies.mixed(trained)
    return result


def _check(entry: Entry) -> None:
    """Raise Damaged where a file of a run is not as it was written."""
    if (entry.path / "metrics.json").exists():
        RunFolder(entry.path).verified_metrics()
    if entry.status == "damaged":
        raise Damaged(entry.path, "damaged", entry.name)


def _entry(path: Path) -> Entry:
    return read_run(path) if is_run(path) else Entry(path, "missing")


def _line(finding: Finding) -> str:
    """A finding in two lines: the claim with its verdict, and the estimate."""
    claim = finding.claim
    paper = "" if finding.paper is None else f"; paper {claim.factor * finding.paper:+.3g}"
    because = f" ({finding.because})" if finding.because else ""
    disputed = f"; disputed by {claim.disputed_by}" if claim.disputed_by else ""
    return (
        f"{finding.verdict}{because}: {claim.text} ({claim.where}{disputed})\n"
        f"    {claim.statistic}: {estimate_of(finding)}{paper}"
    )


def estimate_of(finding: Finding) -> str:
    """Its value with interval, unit and n, as people read it."""
    claim, factor = finding.claim, finding.claim.factor
    if finding.value is None:
        return "no estimate"
    text = f"{factor * finding.value:+.3g}"
    if finding.low is not None and finding.high is not None:
        text += f" [{factor * finding.low:+.3g}, {factor * finding.high:+.3g}]"
    return f"{text}{' ' if claim.unit else ''}{claim.unit} (n = {finding.n})"


def _row(finding: Finding) -> dict[str, Any]:
    claim = finding.claim
    return {
        "claim": claim.name,
        "text": claim.text,
        "where": claim.where,
        "statistic": claim.statistic,
        "direction": claim.direction,
        "margin": claim.margin,
        "value": finding.value,
        "low": finding.low,
        "high": finding.high,
        "n": finding.n,
        "interval": finding.over or None,
        "paper": finding.paper,
        "verdict": finding.verdict,
        "because": finding.because,
        "disputed_by": claim.disputed_by,
        "gate": claim.gate,
    }
