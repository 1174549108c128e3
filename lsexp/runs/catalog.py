"""What has been trained: the run folders of a runs_dir, read without torch.

from lsexp import load_runs, load_outputs
runs = load_runs("runs", "data=mnist loss.eps=0,0.1")   # a DataFrame, a row a run
load_outputs(runs.path[0])["test.logits"]               # float32 [N, K]
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lsexp.config import MLPConfig, TrainConfig, walk
from lsexp.errors import UserError, unknown
from lsexp.runs import claims
from lsexp.runs.identity import Science, digest, looks_like_a_name, name_of
from lsexp.runs.store import (
    PUBLISHING,
    UNREADABLE,
    Damaged,
    RunFolder,
    asides_of,
    config_of,
    json_of,
    runs_folder,
    whole,
)
from lsexp.training import RESULT_VERSION

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

STATUSES = ("finished", "stale", "running", "interrupted", "failed", "damaged")
SHORT = {"data": "data.name", "model": "model.name"}
"""Words for filters that are shorter than the key."""


@dataclass
class Entry:
    """One run folder as it stands.

    Attributes:
        status: finished; stale (of training code that gave other results: never mixed into a
            figure, never continued); running; interrupted (the same command goes on); failed;
            damaged (a file is missing or cannot be read, or the folder has another run's name;
            `lsexp runs repair` looks into all).
        config: dotted key to value, every key in effect, `recipe` and `budget` included.
        metrics, failure: metrics.json, failure.json; empty without one.
        owner: the claim of whoever trains it, where it is running.
        bytes: size of the whole folder.
    """

    path: Path
    status: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: dict[str, Any] = field(default_factory=dict)
    owner: dict[str, Any] | None = None
    bytes: int = 0

    @property
    def name(self) -> str:
        return self.path.name


def read_runs(runs_dir: str | None, words: list[str] | None = None) -> list[Entry]:
    """The runs below `runs_dir` that `words` select, in order of name and seed.

    Args:
        runs_dir: None: $LSEXP_RUNS_DIR or runs.
        words: `key=value[,value...]` with any key of a config, `recipe`, `budget` or `status`
            (all must hold), and beginnings of names or of their 12 hex (any may hold).

    Raises:
        UserError: no such folder; a filter on a key that no run has.
    """
    folder = runs_folder(runs_dir)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise UserError(
            f"runs_dir={folder}: {what}; `lsexp train` makes it, runs_dir= or "
            f"LSEXP_RUNS_DIR names another",
            exit_code=1,
        )
    entries = [read_run(Path(item.path)) for item in _folders(folder)]
    return sorted(select(entries, words or []), key=_order)


def read_run(path: Path) -> Entry:
    """A run folder as it stands; changes nothing but a publishing that was cut off."""
    if os.path.exists(path / PUBLISHING):  # noqa: PTH110 (it may be in a folder closed to us)
        with contextlib.suppress(OSError):  # read-only, say
            RunFolder(path).settle()
    entry = Entry(path, "damaged", bytes=_size(path))
    try:
        metrics = _json(path / "metrics.json")
        if metrics and not (whole(metrics) and _complete(path, metrics)):
            raise ValueError("changed, or files are missing")
        failure = _json(path / "failure.json")
        config, identity = _config(path, metrics)
        version = identity["result_version"]
        # What an older version called a run is not for us to say.
        named = version != RESULT_VERSION or _is_named(path, config, identity, metrics)
    except (OSError, *UNREADABLE):
        with contextlib.suppress(OSError, *UNREADABLE):  # by which it is found nevertheless
            entry.config, _ = _config(path, {})
        return entry
    entry.config, entry.failure = config, failure
    if not named:  # renamed, or a copy: a run is shown once, with its numbers by its own name
        return entry
    entry.metrics = metrics
    if not metrics:
        entry.owner = claims.trainer(path)
    if entry.owner:
        entry.status = "running"
    elif version != RESULT_VERSION or teacher_changed(path, metrics):
        entry.status = "stale"
    elif metrics:
        entry.status = "finished"
    else:
        entry.status = "failed" if failure else "interrupted"
    return entry


def _is_named(
    path: Path, config: dict[str, Any], identity: Science, metrics: dict[str, Any]
) -> bool:
    """Whether a folder has its run's name; of one that is not finished, whether it ends so, since
    what the data are called stands in its metrics alone."""
    if not metrics:
        return path.name.endswith(digest(identity))
    return path.name == name_of(config, metrics["provenance"]["data"]["name"], identity)


def teacher_changed(path: Path, metrics: dict[str, Any]) -> bool:
    """Whether a finished student's teacher, where it is still there, has other weights now."""
    taught = metrics.get("teacher")
    if not taught:
        return False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged: nobody can tell
        now = _json(path.parent / taught["run"] / "metrics.json")
        return whole(now) and now["checksums"]["model.safetensors"] != taught["weights"]
    return False


def load_runs(runs_dir: str | Path | None = None, where: str = "") -> pd.DataFrame:
    """The runs of a folder as a table, a row a run.

    Args:
        runs_dir: default: $LSEXP_RUNS_DIR, else runs.
        where: filters as for `lsexp runs`, e.g. `"data=mnist loss.eps=0,0.1 status=finished"`.

    Returns:
        Columns: name, path, status, the config (`loss.eps`, `seed`, `recipe`, ...) and, where
        finished, metrics (`test.accuracy`, `best_val.step`, `seconds`, ...). Where no run fits,
        those of a run of the default config.

    Raises:
        UserError: no such folder; a filter on a key that no run has, or a name that none has.
    """
    import pandas as pd

    rows = []
    for entry in read_runs(None if runs_dir is None else str(runs_dir), where.split()):
        numbers = {k: v for k, v in entry.metrics.items() if k not in ("config", "identity")}
        rows.append(
            {
                "name": entry.name,
                "path": str(entry.path),
                "status": entry.status,
                **entry.config,
                **flatten(numbers),
            }
        )
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=_columns())


SCORES = ("accuracy", "nll", "ece", "brier")
"""Of val and test, in the metrics of a run."""


def _columns() -> list[str]:
    """Of a finished run of the default config, what tells where its numbers come from apart."""
    config = [name for name, _, _ in walk(TrainConfig(model=MLPConfig()))]
    both = {split: dict.fromkeys(SCORES) for split in ("val", "test")}
    metrics = flatten({**both, "best_val": {"step": 0, **both}})
    rest = ["train.accuracy", "train.images", "steps", "seconds", "images_per_second"]
    return ["name", "path", "status", "recipe", "budget", *config, *metrics, *rest]


def load_outputs(path: str | Path) -> dict[str, np.ndarray]:
    """A finished run's outputs: `<split>.logits` float32 [N, K], `.labels`, `.indices` int64 [N]
    of val (where there is one) and test; `train.indices` int64 [N], which images it was trained on.

    Args:
        path: a run folder.

    Raises:
        UserError: no such folder, or it has no outputs, or they are not as they were published.
    """
    from safetensors.numpy import load_file

    file = Path(path) / "outputs.safetensors"
    if not file.is_file():
        raise UserError(f"{file}: no such file; only a finished run has outputs", exit_code=1)
    if not (file.parent / "metrics.json").exists():
        raise Damaged(file.parent / "metrics.json", "missing", file.parent.name)
    RunFolder(file.parent).verified_metrics([file.name])
    try:
        return load_file(file)
    except Exception as error:  # safetensors' own kinds
        raise Damaged(file, f"damaged ({error})", file.parent.name) from error


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values that are no dicts.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        folders = [item for item in found if item.name[0] != "." and item.is_dir()]
    return [item for item in folders if not _is_alias(item) and is_run(Path(item.path))]


def _is_alias(item: os.DirEntry[str]) -> bool:
    """Whether it is a link that calls a run by a name of one's own, `latest` say."""
    return item.is_symlink() and not looks_like_a_name(item.name)


def is_run(folder: Path) -> bool:
    """Whether it looks like a run's: config.yaml is made first, metrics.json last, and one of them
    may have been lost. One that nobody lets us look into does by its name."""
    if looks_like_a_name(folder.name) and os.path.isdir(folder) and is_closed(folder):  # noqa: PTH112
        return True
    return any(os.path.exists(folder / name) for name in ("config.yaml", "metrics.json"))  # noqa: PTH110


def is_closed(folder: Path) -> bool:
    """Whether this user may not look into a folder."""
    return not os.access(folder, os.R_OK | os.X_OK)


def _size(path: Path) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(path) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                total += _size(Path(item.path))
            else:
                with contextlib.suppress(OSError):
                    total += item.stat(follow_symlinks=False).st_size
    return total


def _json(path: Path) -> dict[str, Any]:
    """`json_of` a file that may be absent."""
    try:
        return json_of(path)
    except FileNotFoundError:
        return {}


def _complete(path: Path, metrics: dict[str, Any]) -> bool:
    """Whether all files of a finished run are there; what is in them costs more to tell."""
    return all((path / name).is_file() for name in metrics["checksums"])


def _config(path: Path, metrics: dict[str, Any]) -> tuple[dict[str, Any], Science]:
    """The config and the science fields, from metrics.json if possible: parsing YAML is slow."""
    if metrics:
        return flatten(metrics["config"]), metrics["identity"]
    config, identity = config_of(path)
    return flatten(config), identity


def select(entries: list[Entry], words: list[str]) -> list[Entry]:
    """Those that the words select, as in `read_runs`."""
    prefixes = [word for word in words if "=" not in word]
    for prefix in prefixes:
        if not Path(prefix).name:
            raise UserError(f"{prefix!r}: an empty name; `lsexp runs` lists the runs")
        if Path(prefix).parent != Path() and entries:
            folder, given = entries[0].path.parent.resolve(), Path(prefix).parent.resolve()
            if folder != given:
                raise UserError(f"{prefix}: is not in {folder}; runs_dir={given} names its folder")
    if prefixes:
        for prefix in prefixes:
            if not any(_begins(entry, prefix) for entry in entries):
                raise UserError(f"{prefix}: no run begins so; `lsexp runs` lists them", exit_code=1)
        entries = [entry for entry in entries if any(_begins(entry, p) for p in prefixes)]
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            _check_filter(entries, name, word)
            wanted = [value] if value.startswith(("[", "{")) else value.split(",")
            _check_numbers(entries, name, wanted)
            entries = [e for e in entries if any(_fits(e, name, one) for one in wanted)]
    return entries


def _check_filter(entries: list[Entry], name: str, word: str) -> None:
    known = {"status", *SHORT, *(key for entry in entries for key in entry.config)}
    if entries and name not in known:
        raise unknown(word, "key to select by", sorted(known), "lsexp train --help")
    if name == "status":
        for one in word.partition("=")[2].split(","):
            if one not in STATUSES:
                raise UserError(f"status={one}: must be one of {', '.join(STATUSES)}")


def _check_numbers(entries: list[Entry], name: str, wanted: list[str]) -> None:
    """What is no number can select nothing by a key that is one in all runs."""
    values = [_value(entry, name) for entry in entries]
    if not values or not all(type(value) in (int, float) for value in values):
        return
    for one in wanted:
        if type(_typed(one)) not in (int, float):
            few = ",".join(f"{value:.12g}" for value in sorted(set(values))[:2])
            raise UserError(f"{name}={one}: must be a number, or several, e.g. {name}={few}")


def _fits(entry: Entry, name: str, text: str) -> bool:
    """Whether a run is one of those that `name=text` selects; data of one's own by their name too,
    with which those of their runs begin."""
    own = name == "data" and text and entry.name.startswith(f"{text}-")
    return bool(own) or _is(_value(entry, name), text)


def _begins(entry: Entry, prefix: str) -> bool:
    wanted = Path(prefix).name  # a path of a run, as commands print it, will do
    return entry.name.startswith(wanted) or entry.name.rpartition("-")[2].startswith(wanted)


def _value(entry: Entry, name: str) -> Any:
    return entry.status if name == "status" else entry.config.get(SHORT.get(name, name))


def _is(value: Any, text: str) -> bool:
    """Whether a value is what was typed: 0.10 is 0.1, null is None, 1 is true only of a flag."""
    typed = _typed(text)
    if isinstance(typed, bool) and not isinstance(value, bool):
        return str(value) == text
    return bool(value == typed) or str(value) == text


def _typed(text: str) -> Any:
    try:
        typed = yaml.safe_load(text) if text else ""
    except UNREADABLE:
        typed = text
    if isinstance(typed, str):
        with contextlib.suppress(ValueError):
            typed = float(typed)  # YAML takes 1e-4 for a word
    return typed


def _order(entry: Entry) -> tuple[Any, ...]:
    def number(value: Any) -> float:  # somebody may have written there
        return float(value) if isinstance(value, (int, float)) else 0.0

    config = entry.config
    keys = ("data.name", "model.name", "recipe", "budget")
    numbers = ("loss.eps", "seed")
    return (
        *(str(config.get(key)) for key in keys),
        *(number(config.get(key)) for key in numbers),
        entry.name,
    )


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry for programs."""
    again = [{"path": str(aside.path), "status": aside.status} for aside in asides(entry)]
    return {**asdict(entry), "path": str(entry.path), "name": entry.name, "aside": again}


def asides(entry: Entry) -> list[Entry]:
    """Where a finished run is trained once more for its snapshots."""
    return [read_run(path) for path in asides_of(entry.path)]
