"""`lsexp runs repair`: what of finished runs is damaged, and making it again.

The files of a finished run have checksums in metrics.json, which has one of itself; snapshots and
measurements have their own. Outputs alone are evaluated again from the weights. A run whose
weights, history or metrics are damaged is trained again in its place, with the config that it was
trained by; on the same kind of machine it ends in the same weights.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from lsexp import compose
from lsexp.config import ArtifactsConfig, check_fields, revived
from lsexp.errors import NOT_OURS, UserError
from lsexp.files import remove, replace_file
from lsexp.launch import local
from lsexp.launch.plan import Plan, plan
from lsexp.measure import OUTPUTS, evaluate_again
from lsexp.runs import command
from lsexp.runs.catalog import Entry, is_closed, read_run, read_runs
from lsexp.runs.identity import Science, digest, name_of
from lsexp.runs.store import (
    UNREADABLE,
    Damaged,
    RunFolder,
    config_of,
    config_text,
    elsewhere,
    json_of,
    kept_snapshots,
    snapshot_of,
    snapshot_path,
    whole,
)
from lsexp.runs.tensors import unpacked
from lsexp.text import plural, say, table
from lsexp.training import RESULT_VERSION
from lsexp.training.snapshots import snapshot_steps

HOW = ("device", "threads", "resume", "data_dir")
"""Keys that do not select runs here but say how they are made again."""


class Misplaced(NamedTuple):
    """What is wrong with a folder, and what mends it: a person, unless there is a `name` that it is
    to be given back."""

    what: str
    remedy: str
    name: str | None = None


@dataclass
class Damage:
    """What is wrong with a run: file to what, by what mends it.

    results: files of the run itself; snapshots; measured: what is measured again when asked for;
    others: of a run that is not finished, which its own command makes again.
    folder: of the folder as a whole.
    """

    entry: Entry
    results: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    folder: Misplaced | None = None

    def outputs_alone(self) -> bool:
        """Whether the weights, and what tells of them, are whole."""
        return set(self.results) == {OUTPUTS}

    def trains(self) -> bool:
        """Whether the run itself is to be trained again."""
        return bool(self.results) and not self.outputs_alone()

    def rows(self) -> list[list[str]]:
        """Run, file, what is wrong, what mends it."""
        kinds = [
            (self.results, "evaluated again" if self.outputs_alone() else "made again"),
            (self.snapshots, "made again" if self.trains() else "trained again aside"),
            (self.measured, "removed, and measured again when it is asked for"),
            (self.others, "removed; the command that made the run makes it again"),
        ]
        folder = [[self.entry.name, ".", *self.folder[:2]]] if self.folder else []
        return folder + [
            [self.entry.name, name, what, remedy]
            for damaged, remedy in kinds
            for name, what in damaged.items()
        ]


def run(words: list[str]) -> int:
    """The command's words after `lsexp runs repair`; the exit code."""
    flags, runs_dir, others = command.split(words, "repair", ("--yes", "--dry-run"))
    selecting = [word for word in others if word.partition("=")[0] not in HOW]
    how = _how([word for word in others if word not in selecting])
    entries = read_runs(runs_dir, selecting)
    if selecting and not entries:
        print("no run fits; nothing was looked into")
        return 0
    found = [damage for entry in entries if (damage := inspect(entry)).rows()]
    if not found:
        print(f"{plural(len(entries), 'run')}: nothing is damaged")
        return 0
    rows = [row for damage in found for row in damage.rows()]
    print(table([["run", "file", "is", "to be"], *rows], left=4))
    if "--dry-run" in flags:
        return 1
    again = [damage for damage in found if damage.trains() or damage.snapshots]
    question = f"train {plural(len(again), 'run')} again?"
    if again and "--yes" not in flags and not command.agreed(question):
        print("nothing was changed")
        return 1
    failed = 0
    for damage in sorted(found, key=_teachers):  # teachers first
        try:
            now = inspect(read_run(damage.entry.path))  # since then it may have been made again
            if now.rows():
                mend(now, ["lsexp", "runs", "repair", *words], how)
        except local.Stopped:
            raise
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NOT_OURS:
                raise
            say(f"lsexp: {damage.entry.name}: {error}")
            failed += 1
    if failed:
        raise UserError(
            f"{failed} of {plural(len(found), 'run')} not mended, see above", exit_code=1
        )
    print(f"mended {plural(len(found), 'run')}")
    return 0


def _how(words: list[str]) -> dict[str, Any]:
    """Keys to values of what was typed of `HOW`."""
    if not words:
        return {}
    [(config, _)] = compose.train_configs(words)
    check_fields(config)
    return {name: getattr(config, name) for name in (word.partition("=")[0] for word in words)}


def inspect(entry: Entry) -> Damage:
    """Look into every file of a run that tells whether it is as it was written."""
    damage, path = Damage(entry), entry.path
    if entry.status == "running":
        return damage
    if is_closed(path):
        remedy = f"opened by its owner: chmod u+rwx {shlex.quote(str(path))}"
        damage.folder = Misplaced("closed to you", remedy)
        return damage
    damage.folder = _misnamed(path)
    if damage.folder is not None:
        return damage
    metrics: dict[str, Any] = {}
    if (path / "metrics.json").exists():
        try:
            metrics = RunFolder(path).metrics()
            damage.results = RunFolder(path).damage(metrics)
            RunFolder(path).verified_metrics([])  # of the run that the folder is named after
        except Damaged as error:
            damage.results["metrics.json"] = error.what
    elif any((path / name).exists() for name in ("model.safetensors", "outputs.safetensors")):
        damage.results = {"metrics.json": "missing"}
    else:
        damage.others = dict.fromkeys(_unreadable(path), "damaged")
    identity = metrics.get("identity") or RunFolder(path).identity()
    if identity is not None:
        damage.snapshots = _of_snapshots(path, identity, metrics)
    for file in sorted(path.glob("measured/*.safetensors")):
        if unpacked(file, file.stem) is None:
            damage.measured[f"measured/{file.name}"] = "damaged"
    return damage


def _misnamed(path: Path) -> Misplaced | None:
    """Of a folder that was renamed, or is a copy; None where it has its own name, or is damaged."""
    where = elsewhere(path.parent)
    try:
        config, identity = config_of(path)
        own = digest(identity)
        if not (path / "metrics.json").exists():
            if path.name.endswith(own):
                return None
            remedy = f"given a name that ends so, or removed: lsexp runs rm {path.name}{where}"
            return Misplaced(f"of another run ({own}), and not finished", remedy)
        metrics = json_of(path / "metrics.json")
        if not whole(metrics) or digest(metrics["identity"]) != own:
            return None
        name = name_of(config, metrics["provenance"]["data"]["name"], identity)
    except (OSError, *UNREADABLE):
        return None
    if path.name == name or identity["result_version"] != RESULT_VERSION:
        return None
    if not path.with_name(name).exists():
        return Misplaced(f"{name} under another name", "given its own", name)
    try:
        RunFolder(path.with_name(name)).verified_metrics()
    except Damaged:
        remedy = f"given its own when there is room: lsexp runs rm {name}{where}"
        return Misplaced(
            f"{name} under another name, and a folder of that name is not whole", remedy
        )
    return Misplaced(f"a copy of {name}", f"removed: lsexp runs rm {path.name}{where}")


def _unreadable(path: Path) -> list[str]:
    """Of a run that is not finished."""
    folder, found = RunFolder(path), []
    if folder.identity() is None:
        found.append("config.yaml")
    if not folder.reads("failure.json"):
        found.append("failure.json")
    return found


def _of_snapshots(path: Path, identity: Science, metrics: dict[str, Any]) -> dict[str, str]:
    """Those that are there, and those that the run was finished with."""
    there = set(path.glob("snapshots/step-*.safetensors"))
    config = metrics.get("config", {})
    count = config.get("artifacts.snapshots") or 0
    asked = snapshot_steps(config["train.steps"], count) if count else []
    found = {}
    for file in sorted(there | {snapshot_path(path, step) for step in asked}):
        step = file.stem.removeprefix("step-")
        if file not in there:
            found[f"snapshots/{file.name}"] = "missing"
        elif not step.isdecimal() or unpacked(file, snapshot_of(identity, int(step))) is None:
            found[f"snapshots/{file.name}"] = "damaged"
    return found


def mend(damage: Damage, typed: list[str], how: dict[str, Any]) -> None:
    """Remove what is damaged and make again what does not come back by itself.

    Args:
        typed: the command, for the record.
        how: key to value, of `HOW`: in place of those that the run was trained by.

    Raises:
        UserError: it cannot be made again here, or its training failed or was stopped.
    """
    path = damage.entry.path
    if damage.folder is not None and damage.folder.name is not None:
        path = path.rename(path.with_name(damage.folder.name))
        damage = inspect(read_run(path))
    if damage.folder is not None:
        raise UserError(f"is {damage.folder.what}; to be {damage.folder.remedy}", exit_code=1)
    if "config.yaml" in damage.others:
        raise UserError(
            f"config.yaml is {damage.others['config.yaml']}: the command that made the run makes "
            f"it again; `lsexp runs rm {path.name}{elsewhere(path.parent)}` removes the run",
            exit_code=1,
        )
    again = _planned(path, typed, how) if damage.trains() or damage.snapshots else None
    snapshots = _snapshots(path, again) if again else 0
    for name in (*damage.measured, *damage.others, *damage.snapshots):
        _away(path / name)
    if damage.outputs_alone():
        _away(path / OUTPUTS)
        evaluate_again(path, how.get("data_dir"))
    if again is None:
        return
    before = None
    if damage.trains():
        with contextlib.suppress(Damaged, FileNotFoundError):
            before = RunFolder(path).metrics()["checksums"]["model.safetensors"]
        # First, so that one of the two tells at any time what the run is.
        text = config_text(again.config, again.identity, again.chosen)
        if (path / "config.yaml").is_dir():
            _away(path / "config.yaml")
        replace_file(path / "config.yaml", text)
        if not inspect(read_run(path)).results and not damage.snapshots:
            return
        for events in path.glob("events.out.tfevents.*"):
            events.unlink(missing_ok=True)
        # The others stay until they are replaced: by them a repair that was killed is known.
        _away(path / "metrics.json")
    artifacts = replace(again.config.artifacts, snapshots=snapshots)
    again = replace(again, config=replace(again.config, artifacts=artifacts))
    now = local.execute(local.begin_again(again))["checksums"]["model.safetensors"]
    if before not in (None, now):
        say(
            f"{path}: ended in other weights than before; students of it are stale now: `lsexp "
            f"runs status=stale{elsewhere(path.parent)}` lists them"
        )


def _away(path: Path) -> None:
    """Remove a file, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        remove(path)
    else:
        path.unlink(missing_ok=True)


def _planned(path: Path, typed: list[str], how: dict[str, Any]) -> Plan:
    """The run as it was trained, but for `how`, where that can be done here."""
    values = _trained_by(path)
    if values is None:
        raise UserError(
            f"neither metrics.json nor config.yaml tells what it was; `lsexp runs rm {path.name}"
            f"{elsewhere(path.parent)}`, and the command that made it trains it again",
            exit_code=1,
        )
    config = replace(revived(values), runs_dir=str(path.parent), **how)
    chosen = {name: str(values[name]) for name in values if name in ("recipe", "budget")}
    found = plan(config, chosen, typed)
    if found.folder.path.name != path.name:
        raise UserError(
            f"trained again it would be another run, {found.folder.path.name}: its data, the "
            f"source of its network or the training code are not what they were; "
            f"`lsexp runs rm {path.name}{elsewhere(path.parent)}` removes it",
            exit_code=1,
        )
    return replace(found, config=replace(found.config, runs_dir=values.get("runs_dir")))


def _snapshots(path: Path, plan: Plan) -> int:
    """How many snapshots the run has, by the names of its files: some are asked for later."""
    there = kept_snapshots(path).keys()
    steps, count = plan.config.train.steps, plan.config.artifacts.snapshots
    [key] = [item for item in fields(ArtifactsConfig) if item.name == "snapshots"]
    most = key.metadata["bounds"]["at_most"]
    counts = (count, *range(2, most + 1))
    return next((one for one in counts if there <= {*snapshot_steps(steps, one)}), count)


def _trained_by(path: Path) -> dict[str, Any] | None:
    """Key to value, names of recipe and budget among them, from metrics.json or else config.yaml;
    None where neither tells."""
    with contextlib.suppress(Damaged, FileNotFoundError):
        metrics = RunFolder(path).metrics()
        if path.name.endswith(digest(metrics["identity"])):
            return dict(metrics["config"])
    return None if RunFolder(path).identity() is None else config_of(path)[0]


def _teachers(damage: Damage) -> int:
    """How many there are of a run: its teacher, the teacher's, ...; 0 of a folder as a whole."""
    path, count = damage.entry.path, 0
    if damage.folder:
        return 0
    while (values := _trained_by(path)) is not None and "loss.teacher" in values and count < 100:
        path, count = path.parent / str(values["loss.teacher"]), count + 1
    return count
