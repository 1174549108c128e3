"""`lsexp plot curves`: loss and accuracy of chosen runs over training, from their history.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lsexp import studies
from lsexp.config import MODELS, TrainConfig, walk
from lsexp.errors import UserError, unknown
from lsexp.figures import grid, legend_below, series_style, styled, write_figure, write_table
from lsexp.files import clear
from lsexp.runs.catalog import Entry, read_runs
from lsexp.runs.store import Damaged, RunFolder
from lsexp.sweep.naming import for_path, shortened
from lsexp.sweep.show import Output
from lsexp.text import say, taken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = """\
lsexp plot curves [NAME ...] [key=value ...]: loss and accuracy over training

  lsexp plot curves                                 runs of the newest one's recipe and budget
  lsexp plot curves recipe=mnist_mlp loss.eps=0,0.1
  lsexp plot curves 9380ae 17be02 figure.format=png,pdf

  lsexp plot STUDY                                  of a sweep: {studies}

  figure.format=png    png, pdf, svg; several with commas
  out_dir=FOLDER       or LSEXP_OUT_DIR: where figures go (default: out)
  runs_dir=FOLDER      or LSEXP_RUNS_DIR
"""

# Column of history.csv, factor, label of the axis.
PANELS = (
    ("train_loss", 1.0, "training loss\nas the runs' loss says"),
    ("val_nll", 1.0, "val NLL (nats)\nhard labels"),
    ("val_accuracy", 100.0, "val accuracy (%)"),
)
TITLE = ("data.name", "model.name", "recipe", "budget", "loss.spread", "loss.eps")
"""Keys that the title tells where all runs agree in them."""


def run(words: list[str]) -> int:
    """The command's words after `lsexp plot`; the exit code."""
    if not words or any(word in ("-h", "--help") for word in words):
        print(HELP.format(studies=", ".join(studies.names())), end="")
        return 0
    if words[0] != "curves":
        raise unknown(words[0], "figure", ["curves", *studies.names()], "lsexp plot --help")
    output, typed = Output.split(words[1:])
    where, selecting = taken(typed, ("runs_dir",))
    for word in selecting:
        if word.startswith("-"):
            raise unknown(word, "flag", ["--help"], "lsexp plot --help")
    entries = choose(where.get("runs_dir"), selecting)
    histories = [(entry, read_history(entry)) for entry in entries]
    figure = draw(histories)
    folder = output.folder / "curves" / _subfolder(entries, selecting)
    try:
        table = write_table(long_table(histories), folder / "curves.csv")
        written = [*write_figure(figure, folder / "curves", output.formats), table]
        clear(folder)
    except OSError as error:
        raise UserError(
            f"out_dir={output.folder}: {error.strerror or error}", exit_code=1
        ) from error
    print(*written, sep="\n")
    return 0


def choose(runs_dir: str | None, words: list[str]) -> list[Entry]:
    """The runs to draw: those selected, else those like the newest; with a history only."""
    found = read_runs(runs_dir, words)
    stale = sum(entry.status == "stale" for entry in found)
    if stale:
        say(f"{stale} stale runs left out")
    readable = [entry for entry in found if entry.status not in ("stale", "damaged")]
    entries = [entry for entry in readable if _has_history(entry)]
    for entry in found:
        if entry.status == "damaged":
            say(f"left out: {Damaged(entry.path, 'damaged', entry.name)}")
    if not words and entries:
        newest = max(entries, key=lambda e: (e.path / "history.csv").stat().st_mtime_ns)
        like = {key: newest.config.get(key) for key in ("recipe", "budget")}
        entries = [e for e in entries if all(e.config.get(k) == v for k, v in like.items())]
        say(f"runs of {newest.name}'s recipe={like['recipe']} budget={like['budget']}")
    for entry in entries:
        if entry.status not in ("finished", "failed"):
            say(f"{entry.name}: {entry.status}")
    if not entries:
        what = " ".join(words) or "this folder"
        raise UserError(f"{what}: no run with a history; `lsexp runs` lists them", exit_code=1)
    return entries


def _has_history(entry: Entry) -> bool:
    if entry.status == "finished":
        try:
            RunFolder(entry.path).verified_metrics(["history.csv"])
        except Damaged as error:
            say(f"left out: {error}")
            return False
    return (entry.path / "history.csv").is_file()


def read_history(entry: Entry) -> list[dict[str, float | None]]:
    """Rows of history.csv as numbers; None where a cell is empty."""
    try:
        with (entry.path / "history.csv").open(newline="") as file:
            rows = [
                {name: float(value) if value else None for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
        if not rows or not {name for name, *_ in PANELS} <= set(rows[0]):
            raise ValueError("no rows")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{entry.path / 'history.csv'}: damaged ({error})", exit_code=1) from error
    return rows


def long_table(histories: list[tuple[Entry, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One row a run and epoch: the run, its eps and seed, and its history."""
    return [
        {
            "run": entry.name,
            "eps": entry.config.get("loss.eps"),
            "seed": entry.config.get("seed"),
            **row,
        }
        for entry, rows in histories
        for row in rows
    ]


@styled
def draw(histories: list[tuple[Entry, list[dict[str, Any]]]]) -> Figure:
    """Three panels over epochs; a colour and line style for each series, a line for each run."""
    from matplotlib.lines import Line2D

    naming = differing([entry for entry, _ in histories])
    names = [", ".join(_told(entry, naming)) for entry, _ in histories]
    series = list(dict.fromkeys(names))
    figure, [axes] = grid(1, len(PANELS))
    for axis, (column, factor, label) in zip(axes, PANELS, strict=True):
        for name, (_, rows) in zip(names, histories, strict=True):
            points = [(r["epoch"], r[column] * factor) for r in rows if r[column] is not None]
            if points:
                style = series_style(series.index(name))
                marker = "o" if len(points) < len(rows) or len(points) == 1 else None
                axis.plot(
                    *zip(*points, strict=True),
                    linewidth=1,
                    alpha=0.8,
                    marker=marker,
                    markersize=3,
                    **style,
                )
        if not axis.lines:
            axis.text(0.5, 0.5, "no val in these runs", ha="center", transform=axis.transAxes)
        axis.set_xlabel("epochs")
        axis.set_xlim(0, 1.03 * max(row["epoch"] for _, rows in histories for row in rows))
        axis.set_ylabel(label)
    common = [f"{_short(k)} {histories[0][0].config.get(k)}" for k in TITLE if k not in naming]
    count = len(histories)
    figure.suptitle(f"{', '.join(common)} ({count} run{'s' * (count > 1)})")
    counted = [f"{name} (n = {names.count(name)})" for name in series]
    if naming:
        handles = [Line2D([], [], **series_style(number)) for number in range(len(series))]
        legend_below(figure, handles, counted, columns=5, fontsize=9)
    return figure


def differing(entries: list[Entry]) -> list[str]:
    """Keys that decide the result and in which the runs differ, the seed apart: a series each."""
    aside = {"seed"}
    for config in (TrainConfig(), *(model() for model in MODELS.values())):
        prefix = "" if isinstance(config, TrainConfig) else "model."
        aside |= {name for name, item, _ in walk(config, prefix) if item.metadata["aside"]}
    aside -= {"data.name", "data.path"}  # of one's own data, the path tells which they are
    keys = dict.fromkeys(key for entry in entries for key in entry.config)
    ignored = {*aside, "recipe", "budget"}
    return [
        key
        for key in keys
        if key not in ignored and len({str(entry.config.get(key)) for entry in entries}) > 1
    ]


def _told(entry: Entry, keys: Sequence[str]) -> Iterator[str]:
    """What a legend says of a run: sets that are known by name have no path."""
    for key in keys:
        if key != "data.path" or entry.config.get(key) is not None:
            yield f"{_short(key)} {entry.config.get(key)}"


def _short(key: str) -> str:
    return key.partition(".")[0] if key.endswith(".name") else key.rpartition(".")[2]


def _subfolder(entries: list[Entry], words: list[str]) -> str:
    """Recipe and budget, if they have one, and what else chose the runs."""
    kinds = {f"{e.config.get('recipe')}-{e.config.get('budget')}" for e in entries}
    told = ("recipe", "budget") if len(kinds) == 1 else ()
    others = [word for word in words if word.partition("=")[0] not in told]
    return shortened(f"{kinds.pop() if told else 'mixed'}{for_path(others)}")
