"""`lsexp runs`: list, look into and remove what has been trained. Free of torch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from lsexp import files
from lsexp.errors import UserError, printable, unknown
from lsexp.runs import claims
from lsexp.runs.catalog import (
    STATUSES,
    Entry,
    as_json,
    asides,
    flatten,
    read_run,
    read_runs,
    select,
)
from lsexp.runs.store import asides_of, elsewhere, runs_folder
from lsexp.text import plural, size, table, taken

HELP = f"""\
lsexp runs [show|rm|repair] [NAME ...] [key=value ...]: what has been trained

  lsexp runs                                 a table of all runs
  lsexp runs data=mnist loss.eps=0,0.1       those that fit; any key of a config, recipe, budget
  lsexp runs status=failed                   {", ".join(STATUSES)}
  lsexp runs --json                          for programs
  lsexp runs show 9380ae                     everything about one; the beginning of its name or hex
  lsexp runs rm NAME ... [key=value ...]     remove them; asks, or --yes
  lsexp runs repair [NAME ...] [key=value ...]   look into every file; outputs come again from
                                             the weights, other damaged runs are trained again;
                                             asks, or --yes; --dry-run only tells (exit code 1);
                                             device=, threads=, resume=, data_dir= say how

  runs_dir=FOLDER or LSEXP_RUNS_DIR          where they are (default: runs)
"""
FLAGS = ("--json", "--yes", "--help")


def run(words: list[str]) -> int:
    """The command's words after `lsexp runs`; the exit code."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    verb = words[0] if words and words[0] in ("show", "rm") else "list"
    rest = words[1:] if verb != "list" else words
    allowed = {"list": ("--json",), "show": ("--json",), "rm": ("--yes",)}[verb]
    flags, runs_dir, selecting = split(rest, verb, allowed)
    if verb == "rm":
        return _remove(runs_dir, selecting, yes="--yes" in flags)
    if verb == "show":
        return _show(runs_dir, selecting, as_text="--json" not in flags)
    return _list(runs_dir, selecting, as_text="--json" not in flags)


def split(
    words: list[str], verb: str, allowed: tuple[str, ...]
) -> tuple[set[str], str | None, list[str]]:
    """Flags, `runs_dir=` if it is there, and what selects runs."""
    flags = {word for word in words if word.startswith("-")}
    for flag in sorted(flags):
        if flag not in allowed:
            raise unknown(flag, f"flag of {verb}", allowed, "lsexp runs --help")
    typed, others = taken(words, ("runs_dir",))
    return flags, typed.get("runs_dir"), [word for word in others if word not in flags]


def _list(runs_dir: str | None, words: list[str], *, as_text: bool) -> int:
    entries = read_runs(runs_dir, words)
    if not as_text:
        print(json.dumps([as_json(entry) for entry in entries], indent=1))
        return 0
    header = ["run", "status", "recipe", "budget", "test acc", "test ECE", "seconds", "size"]
    print(table([header, *(_row(entry) for entry in entries)], left=4))
    total = size(sum(entry.bytes for entry in entries))
    by_status = [(s, sum(e.status == s for e in entries)) for s in STATUSES]
    counts = ", ".join(f"{count} {status}" for status, count in by_status if count)
    where = runs_folder(runs_dir)
    print(f"{plural(len(entries), 'run')}{f' ({counts})' if counts else ''}, {total}, in {where}")
    again = [aside for entry in entries for aside in asides(entry)]
    if again:
        print(
            f"{len(again)} of them trained again aside ({where / '.aside'}), for snapshots: "
            f"{', '.join(f'{aside.name} ({aside.status})' for aside in again[:4])}"
            f"{', ...' if again[4:] else ''}, {size(sum(aside.bytes for aside in again))}"
        )
    return 0


def _row(entry: Entry) -> list[str]:
    test = entry.metrics.get("test") or {}
    return [
        entry.name,
        entry.status,
        str(entry.config.get("recipe", "")),
        str(entry.config.get("budget", "")),
        f"{test['accuracy']:.4f}" if test else "",
        f"{test['ece']:.4f}" if test else "",
        f"{entry.metrics['seconds']:.1f}" if entry.metrics else "",
        size(entry.bytes),
    ]


def _one(runs_dir: str | None, words: list[str]) -> Entry:
    if not words:
        raise UserError("lsexp runs show: needs the beginning of a run's name or hex; `lsexp runs`")
    entries = read_runs(runs_dir, words)
    exact = [entry for entry in entries if entry.name in words]
    entries = exact or entries
    if len(entries) != 1:
        names = ", ".join(entry.name for entry in entries[:5]) + (", ..." if entries[5:] else "")
        raise UserError(
            f"{' '.join(words)}: fits {len(entries)} runs{f' ({names})' if names else ''}; "
            f"show takes one"
        )
    return entries[0]


def _show(runs_dir: str | None, words: list[str], *, as_text: bool) -> int:
    entry = _one(runs_dir, words)
    if not as_text:
        print(json.dumps(as_json(entry), indent=1))
        return 0
    print(f"{printable(str(entry.path))}\nstatus: {entry.status}{printable(_explained(entry))}")
    numbers = {k: v for k, v in entry.metrics.items() if k not in ("config", "identity")}
    sections = {
        "config": entry.config,
        "metrics": flatten(numbers),
        "failure": {k: v for k, v in entry.failure.items() if k != "traceback"},
        "owner": entry.owner or {},
        "files": _files(entry.path),
    }
    for title, values in sections.items():
        if values:
            print(f"\n{title}")
            print(table([[f"  {name}", str(value)] for name, value in values.items()], left=2))
    if entry.failure.get("traceback"):
        print("", *map(printable, str(entry.failure["traceback"]).splitlines()), sep="\n")
    return 0


def _explained(entry: Entry) -> str:
    if entry.status == "running" and entry.owner:
        return f" ({claims.describe(entry.owner)})"
    return {
        "interrupted": " (the same `lsexp train` goes on from its last checkpoint)",
        "failed": f" ({entry.failure.get('error')}; retry_failed=true trains it again)",
        "stale": " (of an older version of the training code, or its teacher has changed since)",
        "damaged": f" (`lsexp runs repair {entry.name}{elsewhere(entry.path.parent)}` tells what, "
        f"and makes it again)",
    }.get(entry.status, "")


def _files(folder: Path) -> dict[str, str]:
    """Sizes, by name; files may come and go meanwhile."""
    found = {}
    for path in sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names):
        with contextlib.suppress(OSError):
            if path.is_file():
                found[str(path.relative_to(folder))] = size(path.stat().st_size)
    return found


def agreed(question: str) -> bool:
    """Whether a person says yes.

    Raises:
        UserError: nobody is there to ask.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(f"{question} nobody can answer here; --yes does it without asking")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _remove(runs_dir: str | None, words: list[str], *, yes: bool) -> int:
    if not words:
        raise UserError("lsexp runs rm: needs names or key=value; `lsexp runs` lists the runs")
    files.clear(runs_folder(runs_dir), *runs_folder(runs_dir).glob(".aside/*"))
    there = read_runs(runs_dir)
    entries = select(there, words)
    for word in words:  # a name takes one run; many go by key=value
        fitting = select(there, [word]) if "=" not in word else []
        if len(fitting) > 1 and not any(entry.name == word for entry in fitting):
            raise UserError(
                f"{word}: fits {len(fitting)} runs; rm takes names that fit one, or key=value"
            )
    whole = [*entries, *(aside for entry in entries for aside in asides(entry))]
    running = [entry for entry in whole if entry.status == "running"]
    if running:
        raise UserError(
            f"{running[0].name}: is being trained by {claims.describe(running[0].owner or {})}; "
            f"stop that first; nothing was removed",
            exit_code=1,
        )
    if not entries:
        print("no run fits; nothing was removed")
        return 0
    print(table([_row(entry) for entry in entries], left=4))
    question = f"remove {plural(len(entries), 'run')}, {size(sum(entry.bytes for entry in whole))}?"
    if not yes and not agreed(question):
        print("nothing was removed")
        return 1
    for entry in entries:
        if read_run(entry.path).status == "running":  # begun since we asked
            raise UserError(f"{entry.name}: is being trained; stop that first", exit_code=1)
        for path in (*asides_of(entry.path), entry.path):
            try:
                files.remove(path)
            except OSError as error:
                if path == entry.path or path.exists():
                    raise UserError(f"{path}: {error.strerror}", exit_code=1) from error
    print(f"removed {plural(len(entries), 'run')}")
    return 0
