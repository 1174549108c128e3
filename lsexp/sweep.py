"""`lsexp sweep STUDY` and `lsexp plot STUDY`: train what a study lacks; its tables and figure.

Knows no study by name. A sweep leaves a manifest in `<runs_dir>/.sweeps/`, so that a plot without
words draws the newest one, and needs neither torch nor the data to find its runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lsexp import compose, studies
from lsexp.config import (
    DistillationConfig,
    LossConfig,
    SweepConfig,
    TrainConfig,
    check,
    check_fields,
    walk,
)
from lsexp.errors import UserError
from lsexp.figures import FORMATS, write_figure, write_table
from lsexp.measure import measure
from lsexp.runs.catalog import Entry, read_run
from lsexp.runs.store import replace_file, runs_folder, snapshot_path
from lsexp.studies import Finding, Result, Trained
from lsexp.text import duration, plural, say, table, user_path

HELP = """\
lsexp sweep STUDY [key=value ...]: train what a study of the paper lacks, then its tables and figure

{studies}

  lsexp sweep eps                               the embedded digits, in half a minute
  lsexp sweep eps recipe=mnist_mlp eps=0,0.1 seeds=10
  lsexp sweep eps --dry-run                     what is to do, and about how long it would take

  lsexp sweep STUDY --help                      the keys of a study
"""


@dataclass
class Output:
    """Where and how figures are written: `out_dir=` and `figure.format=`."""

    folder: Path
    formats: list[str]

    @staticmethod
    def split(words: list[str]) -> tuple[Output, list[str]]:
        """Take what concerns the output out of `words`."""
        options = {"out_dir": os.environ.get("LSEXP_OUT_DIR") or "out", "figure.format": "png"}
        typed: set[str] = set()
        others = []
        for word in words:
            name, equals, value = word.partition("=")
            if equals and name in options:
                if name in typed:
                    raise UserError(f"{name}: is given twice")
                typed.add(name)
                options[name] = value
            else:
                others.append(word)
        formats = options["figure.format"].split(",")
        for one in formats:
            if one not in FORMATS:
                raise UserError(f"figure.format={one}: must be {' or '.join(FORMATS)}")
        folder = user_path("out_dir", options["out_dir"])
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):  # before hours of training
            raise UserError(f"out_dir={folder}: {nearest} is no folder that can be written")
        return Output(folder, formats), others


@dataclass
class Part:
    """A study with one recipe: a row of its figure.

    Attributes:
        words: typed behind the study's name.
        keys: the study's own, in effect.
        chosen: names of recipe and budget.
        runs: keys and folder name of each run.
    """

    words: list[str]
    keys: dict[str, Any]
    chosen: dict[str, str]
    runs: list[dict[str, Any]]


@dataclass
class Manifest:
    """What a sweep was asked for: `words`, which gave one part, or with rows= several."""

    study: str
    words: list[str]
    parts: list[Part]

    def path(self, runs_dir: Path) -> Path:
        runs = [part.runs for part in self.parts]
        digest = hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()
        return runs_dir / ".sweeps" / f"{self.study}-{digest[:12]}.json"

    def write(self, runs_dir: Path) -> None:
        path = self.path(runs_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({**asdict(self), "time": time.time()}, indent=1))


def newest_manifest(study: str, runs_dir: Path) -> Manifest | None:
    """That of the latest sweep of a study; damaged ones are passed over."""
    return max(_manifests(study, runs_dir), key=lambda pair: pair[0], default=(0.0, None))[1]


def _manifests(study: str, runs_dir: Path) -> list[tuple[float, Manifest]]:
    found = []
    for path in (runs_dir / ".sweeps").glob(f"{study}-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(path.read_text())
            when = float(stored.pop("time"))
            stored["parts"] = [Part(**part) for part in stored["parts"]]
            found.append((when, Manifest(**stored)))
    return found


def _newest_with_runs(study: str, module: Any, runs_dir: Path) -> Manifest | None:
    """The latest sweep of a study, else of another that trains the same runs, as this study's."""
    own = newest_manifest(study, runs_dir)
    if own is not None:
        return own
    kin = [name for name in studies.names() if studies.study(name, "").runs is module.runs]
    found = [pair for name in kin for pair in _manifests(name, runs_dir)]
    newest = max(found, key=lambda pair: pair[0], default=(0.0, None))[1]
    if newest is None:
        return None
    names = [item.name for item in fields(module.Config)]
    for part in newest.parts:
        keys = {name: value for name, value in part.keys.items() if name in names}
        if hasattr(module, "drawn"):
            keys["eps"] = module.drawn(keys["eps"])
            part.runs = [run for run in part.runs if run["keys"]["eps"] in keys["eps"]]
        part.keys = asdict(module.Config(**keys))
    return newest


@dataclass
class Asked:
    """A row of what was typed, composed: the study's keys, the runs and their common config."""

    words: list[str]
    config: SweepConfig
    chosen: dict[str, str]
    base: TrainConfig
    runs: list[studies.Run]
    teachers: compose.Chosen | None = None

    def planned(self, command: list[str], *, remember: bool) -> list[Any]:
        """A plan for each run; teachers come before their students."""
        from lsexp.launch.plan import Planner
        from lsexp.launch.teaching import Teaching

        students = Planner(self.chosen, command, remember=remember)
        teachers = Planner(self.teachers or self.chosen, command, remember=remember)
        plans: list[Any] = []
        teaching = {id(run.teacher) for run in self.runs}
        for run in self.runs:
            if run.teacher is None:
                plans.append((teachers if id(run) in teaching else students)(run.config))
                continue
            taught = Teaching.planned(plans[self._place(run.teacher)])
            assert isinstance(run.config.loss, DistillationConfig)
            loss = replace(run.config.loss, teacher=taught.path.name)
            plans.append(students(replace(run.config, loss=loss), taught))
        return plans

    def _place(self, run: studies.Run) -> int:
        return next(i for i, one in enumerate(self.runs) if one is run)

    def after(self, place: int) -> int | None:
        """Place of the teacher of a run."""
        teacher = self.runs[place].teacher
        return None if teacher is None else self._place(teacher)

    def part(self, plans: Sequence[Any]) -> Part:
        named = [
            {"keys": run.keys, "name": plan.folder.path.name}
            for run, plan in zip(self.runs, plans, strict=True)
        ]
        return Part(self.words, asdict(self.config.study), self.chosen, named)


def _ask(study: str, module: Any, words: list[str]) -> list[Asked]:
    """Compose what was typed, a row for each recipe of `rows=`; none with --cfg, which prints."""
    rows = [word for word in words if word.startswith("rows=")]
    others = [word for word in words if not word.startswith("rows=")]
    recipes = rows[0].partition("=")[2].split(",") if rows else []
    if len(rows) > 1:
        raise UserError("rows: is given twice")
    if rows and any(word.startswith("recipe=") for word in others):
        raise UserError(f"{rows[0]}: names the recipes; leave recipe= out")
    if len(set(recipes)) < len(recipes):
        raise UserError(f"{rows[0]}: a recipe is there twice")
    asked = []
    for typed in [[f"recipe={recipe}", *others] for recipe in recipes] or [others]:
        own = [word for word in typed if not word.startswith(TEACHERS)]
        found = compose.sweep_config(study, own)
        if found is None:
            continue
        base = _base_of(study, module, found[0])
        teachers, chosen = _teachers(study, module, typed, found, base)
        runs = _runs_of(module, found[0], base, teachers)
        asked.append(Asked(typed, *found, base, runs, chosen))
    return asked


TEACHERS = "teacher."
"""Before a key: it is one of the teachers' training."""


def _teachers(
    study: str,
    module: Any,
    words: list[str],
    found: tuple[SweepConfig, compose.Chosen],
    base: TrainConfig,
) -> tuple[TrainConfig | None, compose.Chosen | None]:
    """The config of a study's teachers: their own recipe, with the words about data, places and
    devices that were typed for all, and those typed for them, `teacher.KEY=VALUE`."""
    own = [word.removeprefix(TEACHERS) for word in words if word.startswith(TEACHERS)]
    if not hasattr(module, "teachers"):
        if own:
            raise UserError(f"{TEACHERS}{own[0]}: {study} has no teachers")
        return None, None
    recipe = module.teachers(found[0].study, base)
    if recipe is None and not own:
        return _on_labels(base), found[1]
    aside = {name for name, item, _ in walk(TrainConfig()) if item.metadata["aside"]}
    for word in own:
        if word.startswith("-") or word.partition("=")[0] in module.OWNED:
            raise UserError(f"{TEACHERS}{word}: {study} sets it for its teachers")
    shared, queue = [], list(words)
    while queue:
        word = queue.pop(0)
        name, equals, _ = word.partition("=")
        if name in ("--config-dir", "-cd"):
            shared += [word] if equals else [word, *queue[:1]]
            queue = queue if equals else queue[1:]
        elif name in aside | {"budget", "precision", "data", "loss.spread"} or name.startswith(
            "data."
        ):
            shared.append(word)
    try:
        [(config, chosen)] = compose.train_configs(
            [f"recipe={recipe or found[1]['recipe']}", *shared, *own]
        )
    except UserError as error:
        raise UserError(f"of the teachers: {error}") from error
    # The same images, so that no teacher has seen what its students are chosen on.
    typed = {word.partition("=")[0] for word in own}
    same = {
        name: getattr(base.data, name)
        for name in ("split", "split_seed", "train_size")
        if f"data.{name}" not in typed
    }
    config = replace(config, threads=config.threads or 1, data=replace(config.data, **same))
    return _on_labels(config), chosen


def _on_labels(config: TrainConfig) -> TrainConfig:
    return replace(config, loss=LossConfig(spread=config.loss.spread, scale=config.loss.scale))


def run_sweep(words: list[str]) -> int:
    """The command's words after `lsexp sweep`; the exit code."""
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<16}{studies.study(name, '').HELP}" for name in studies.names()]
        print(HELP.format(studies="\n".join(lines)), end="")
        return 0
    study = words[0]
    module = studies.study(study, "lsexp sweep")
    if any(word in ("-h", "--help") for word in words[1:]):
        print(compose.sweep_help(study), end="")
        return 0
    dry_run = "--dry-run" in words
    typed = [word for word in words[1:] if word != "--dry-run"]
    output, typed = Output.split(typed)
    asked = _ask(study, module, typed)
    if not asked:
        return 0

    from lsexp.launch.pool import Pool

    command = ["lsexp", "sweep", *words]
    base, count = asked[0].base, sum(len(row.runs) for row in asked)
    workers, threads = _workers(asked[0].config, base, count)
    with contextlib.ExitStack() as stack:
        pool = None
        if not dry_run and not _seems_done(study, typed, base):
            pool = stack.enter_context(Pool(workers, threads))  # imports while we plan
        todo: list[tuple[studies.Run, Any, int | None]] = []
        errors: list[str] = []
        parts = []
        for row in asked:
            plans = row.planned(command, remember=not dry_run)
            if hasattr(module, "check"):
                dataset = plans[0].dataset
                names = dataset.arrays.classes
                module.check(row.config.study, dataset.name, names, plans[0].config)
            left, failed = _tell_plan(study, row.runs, plans, workers, dry_run, base.retry_failed)
            # A run may be there twice: a teacher like its students is a baseline too.
            first = {plan.folder.path: i for i, plan in reversed(list(enumerate(plans)))}
            places: dict[int, int] = {}
            for i in left:
                after = row.after(i)
                after = None if after is None else first[plans[after].folder.path]
                if after is not None and plans[after].folder.finished():
                    after = None  # it can teach, whatever else is asked of it
                elif after is not None and after not in places:
                    label = _label(row.runs[after].keys)
                    errors.append(
                        f"{_label(row.runs[i].keys)}: its teacher failed before ({label})"
                    )
                    continue
                places[i] = len(todo)
                place = None if after is None else places[after]
                todo.append((row.runs[i], plans[i], place))
            errors += failed
            parts.append(row.part(plans))
            runs_dir = plans[0].folder.path.parent
        if dry_run:
            return 0
        kept = [word for word in typed if not word.startswith("retry_failed=")]
        manifest = Manifest(study, kept, parts)
        manifest.write(runs_dir)
        stopped = ""
        if todo:
            pool = pool or stack.enter_context(Pool(workers, threads))
            failed, stopped = _train(pool, todo, command)
            errors += failed
    for line in errors:
        say(f"lsexp: {line}")
    if stopped:
        state = (
            "runs go on from their last checkpoints" if "twice" in stopped else "nothing is lost"
        )
        raise UserError(
            f"stopped by {stopped}; {state}: the same command goes on from there", exit_code=1
        )
    try:
        _show(module, manifest, runs_dir, output, base.data_dir)
    except UserError as error:
        if not errors:
            raise
        say(f"lsexp: {error}")
    if errors:
        others = [word for word in words[1:] if not word.startswith("retry_failed=")]
        again = shlex.join(["lsexp", "sweep", study, *others, "retry_failed=true"])
        raise UserError(
            f"{len(errors)} of {plural(count, 'run')} failed, see above; `{again}` trains "
            f"them again",
            exit_code=1,
        )
    return 0


def run_plot(words: list[str]) -> int:
    """The words after `lsexp plot`, the first of which is a study; the exit code."""
    study, *rest = words
    module = studies.study(study, "lsexp plot")
    if any(word in ("-h", "--help") for word in rest):
        print(compose.sweep_help(study), end="")
        return 0
    if "--dry-run" in rest:
        raise UserError("--dry-run: a plot trains nothing; leave it out")
    output, rest = Output.split(rest)
    if any(word.startswith("logits=") for word in rest):
        return _plot_file(study, module, output, rest)
    rest = _on_the_newest(study, module, rest)
    aside = ("runs_dir", "data_dir", *module.VIEW)
    selecting = [word for word in rest if word.partition("=")[0] not in aside]
    asked = _ask(study, module, rest)
    if not asked:
        return 0
    data_dir = asked[0].base.data_dir
    folder = runs_folder(asked[0].base.runs_dir)
    if selecting:
        command = ["lsexp", "plot", *words]
        parts = [row.part(row.planned(command, remember=False)) for row in asked]
        manifest = Manifest(study, rest, parts)
    else:
        newest = _newest_with_runs(study, module, folder)
        if newest is None:
            raise UserError(
                f"plot {study}: no sweep for it in {folder}; `lsexp sweep {study}` makes one, "
                f"runs_dir= names another folder",
                exit_code=1,
            )
        manifest = newest
        say(f"the newest sweep: {shlex.join(['lsexp', 'sweep', newest.study, *newest.words])}")
        typed = {word.partition("=")[0] for word in rest} & set(module.VIEW)
        for part in manifest.parts:
            part.keys |= {name: getattr(asked[0].config.study, name) for name in typed}
    _show(module, manifest, folder, output, data_dir)
    return 0


def _on_the_newest(study: str, module: Any, words: list[str]) -> list[str]:
    """`eps=` and `seeds=` without anything else that chooses runs are of the newest sweep."""
    own = {item.name for item in fields(module.Config)}
    names = {word.partition("=")[0] for word in words}
    others = ("runs_dir", "data_dir", *module.VIEW)
    if not names & (own - set(module.VIEW)) or names - own - set(others):
        return words
    runs_dir = next((w.partition("=")[2] for w in words if w.startswith("runs_dir=")), None)
    newest = _newest_with_runs(study, module, runs_folder(runs_dir))
    if newest is None:
        return words
    theirs = {item.name for item in fields(studies.study(newest.study, "").Config)} - own
    kept = [w for w in newest.words if w.partition("=")[0] not in names | theirs]
    if kept:
        say(f"of the newest sweep: {shlex.join(kept)}")
    return [*kept, *words]


def _plot_file(study: str, module: Any, output: Output, words: list[str]) -> int:
    """A study of somebody else's logits: `logits=FILE`, beside keys that choose no runs."""
    files = [word.partition("=")[2] for word in words if word.startswith("logits=")]
    others = [word for word in words if not word.startswith("logits=")]
    if not hasattr(module, "analyze_file"):
        others = [n for n in studies.names() if hasattr(studies.study(n, ""), "analyze_file")]
        raise UserError(f"logits={files[0]}: goes with {' or '.join(others)}, not {study}")
    if len(files) > 1:
        raise UserError("logits: is given twice")
    for word in others:
        if word.partition("=")[0] not in module.VIEW:
            raise UserError(
                f"{word}: chooses runs, and logits= is a file; it goes with "
                f"{', '.join(f'{name}=' for name in module.VIEW)}, figure.format= and out_dir="
            )
    [asked] = _ask(study, module, others)
    path = user_path("logits", files[0])
    result = module.analyze_file(asked.config.study, path)
    folder = output.folder / study / f"logits-{path.stem}{_view(module, asked.config.study)}"
    _tell(module, asked.config.study, [result], folder, output.formats)
    return 0


def _base_of(study: str, module: Any, config: SweepConfig) -> TrainConfig:
    """What all runs of a sweep, or its students, share."""
    check_fields(config.study, f"lsexp sweep {study} --help")
    check_fields(config, f"lsexp sweep {study} --help")
    names = [item.name for item in fields(TrainConfig)]
    base = TrainConfig(**{name: getattr(config, name) for name in names})
    base.threads = base.threads or 1  # many runs at once, a core for each
    if hasattr(module, "teachers") and isinstance(base.loss, DistillationConfig):
        base.loss.teacher = "of the sweep"
        check(_on_labels(base))  # the protocol is checked with each temperature
    else:
        check(base)
    return base


def _runs_of(
    module: Any, config: SweepConfig, base: TrainConfig, teachers: TrainConfig | None
) -> list[studies.Run]:
    more = () if teachers is None else (teachers,)
    runs: list[studies.Run] = module.runs(config.study, base, *more)
    for run in runs:
        check(run.config)
    return runs


def _workers(config: SweepConfig, base: TrainConfig, runs: int) -> tuple[int, int]:
    """Worker processes, and threads in each: a core for every thread."""
    from lsexp.training.hardware import default_threads, resolve_device

    threads = base.threads or 1
    on_gpu = resolve_device(base.device).type == "cuda"
    most = 1 if on_gpu else max(1, default_threads() // threads)
    return min(config.workers or most, runs), threads


def _seems_done(study: str, words: list[str], base: TrainConfig) -> bool:
    """Whether the same words were swept before to the end: then no workers are started yet."""
    folder = runs_folder(base.runs_dir)
    newest = newest_manifest(study, folder)
    if newest is None or newest.words != words:
        return False
    runs = [run for part in newest.parts for run in part.runs]
    return all((folder / run["name"] / "metrics.json").exists() for run in runs)


def _tell_plan(
    study: str,
    runs: Sequence[studies.Run],
    plans: Sequence[Any],
    workers: int,
    dry_run: bool,
    retry: bool,
) -> tuple[list[int], list[str]]:
    """Say what is finished, what is to do and about how long it takes.

    Returns:
        Indices of the runs to train, and a line for each that failed before and is left so.
    """
    from lsexp.launch.plan import describe_training, seconds_of_training, steps_done

    todo, errors, failed, again, anew = [], [], 0, 0, 0
    seen, begun = set(), {}
    for i, (run, plan) in enumerate(zip(runs, plans, strict=True)):
        if plan.folder.path in seen:
            continue
        seen.add(plan.folder.path)
        if plan.done():
            continue
        begun[plan.folder.path] = steps_done(plan)
        failure = plan.folder.failure()
        failed += failure is not None
        again += plan.folder.finished() and bool(plan.lacking(plan.folder.path))
        anew += bool(plan.folder.checkpoints()) and not begun[plan.folder.path]
        if failure is None or retry:
            todo.append(i)
        else:
            errors.append(f"{_label(run.keys)}: failed before: {failure.get('error')}")
    counts = f"{plural(len(seen), 'run')}: {len(seen) - len(todo) - len(errors)} finished"
    if failed:
        counts += f", {failed} failed" + ("" if retry else " (retry_failed=true tries again)")
    counts += f", {len(todo)} to do"
    if again:
        counts += f" ({again} of them again, aside: finished without snapshots)"
    if anew:
        counts += f" ({anew} of them begin again: interrupted without snapshots)"
    if todo:
        seconds = sum(
            seconds_of_training(kind[0])
            * sum(1 - begun[plan.folder.path] / plan.config.train.steps for plan in kind)
            for kind in _kinds([plans[i] for i in todo])
        ) / min(workers, len(todo))
        counts += f", about {duration(seconds)} with {plural(workers, 'worker')}, evaluation apart"
        if plans[0].snapshots:
            counts += ", then what is measured at snapshots"
    kinds = [describe_training(kind[0]) for kind in _kinds(plans)]
    lines = "\n".join([*kinds, f"sweep    {study}, {counts}"])
    print(lines) if dry_run else say(lines)
    return todo, errors


def _kinds(plans: Sequence[Any]) -> list[list[Any]]:
    """Plans that differ in loss and seed only, together."""
    found: list[list[Any]] = []
    for plan in plans:
        like = replace(plan.config, loss=LossConfig(), seed=0)
        for kind in found:
            if replace(kind[0].config, loss=LossConfig(), seed=0) == like:
                kind.append(plan)
                break
        else:
            found.append([plan])
    return found


def _train(
    pool: Any,
    work: Sequence[tuple[studies.Run, Any, int | None]],
    command: list[str],
) -> tuple[list[str], str]:
    """Train in the pool; one line for each failure, and the signal that stopped it or ""."""
    from lsexp.launch.plan import steps_done
    from lsexp.launch.pool import Task
    from lsexp.launch.progress import SweepView

    tasks = [
        Task(plan.config, plan.chosen, command, _label(run.keys), after=after)
        for run, plan, after in work
    ]
    steps = [plan.config.train.steps for _, plan, _ in work]
    done = [steps_done(plan) for _, plan, _ in work]
    with SweepView([task.label for task in tasks], steps, done) as view:
        outcomes, stopped = pool.train(tasks, view)
    errors = [
        f"{task.label}: {outcome.error}"
        for task, outcome in zip(tasks, outcomes, strict=True)
        if outcome is not None and outcome.error is not None
    ]
    return errors, stopped


def _label(keys: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={f'{value:.12g}' if isinstance(value, float) else value}"
        for name, value in keys.items()
        if value is not None
    )


def _show(
    module: Any, manifest: Manifest, runs_dir: Path, output: Output, data_dir: str | None
) -> None:
    """Analyse what is finished, print tables and findings, write figures and tables."""
    study = module.__name__.rpartition(".")[2]
    results = []
    for part in manifest.parts:
        found = _analyzed(module, study, manifest, part, runs_dir, data_dir)
        results += [] if found is None else [found]
    if not results:
        runs = sum(len(part.runs) for part in manifest.parts)
        raise UserError(
            f"plot {study}: none of its {plural(runs, 'run')} is finished with what it needs; "
            f"`{_completing(manifest, retry=False)}` trains them",
            exit_code=1,
        )
    config = module.Config(**manifest.parts[0].keys)
    recipes = "+".join(result.recipe for result in results)
    name = (
        f"{recipes}-{manifest.parts[0].chosen['budget']}{_typed(manifest)}{_view(module, config)}"
    )
    _tell(module, config, results, output.folder / study / name, output.formats)


def _view(module: Any, study: Any) -> str:
    """What differs from the usual view, for the name of a folder: other views stand beside it."""
    usual, words = module.Config(), []
    numbers = ("list[float]", "list[int]")  # eps, seeds: how much is shown, not how
    for name in [item.name for item in fields(usual) if str(item.type) not in numbers]:
        value = getattr(study, name)
        if value != getattr(usual, name):
            words.append(f"{name}={','.join(value) if isinstance(value, list) else value}")
    return _for_path(words)


def _typed(manifest: Manifest) -> str:
    """Keys that were typed and make other runs, for the name of a folder."""
    known = {item.name for item in fields(studies.study(manifest.study, "").Config)}
    aside = {name for name, item, _ in walk(SweepConfig()) if item.metadata.get("aside")}
    aside |= {"rows", "recipe", "budget", "--config-dir", "-cd"} | known
    aside -= {"data.name", "data.path"}
    words = [word for word in manifest.words if word.partition("=")[0] not in aside]
    return _for_path([word for word in words if "=" in word and not word.startswith("-")])


def _for_path(words: Sequence[str]) -> str:
    return "".join(f"-{re.sub(r'[^A-Za-z0-9_.,=]', '_', word)[:60]}" for word in words)


def _completing(manifest: Manifest, *, retry: bool) -> str:
    """The command that trains what is missing."""
    again = ["retry_failed=true"] if retry else []
    return shlex.join(["lsexp", "sweep", manifest.study, *manifest.words, *again])


def _tell(
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
            old.unlink()
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
        if one.entry.status in ("damaged", "stale"):
            name = one.entry.name
            remedy = f"`lsexp runs rm {name}`, and it is trained again"
            say(f"{name}: {one.entry.status}, left out; {remedy}")
    missing = [one for one in trained if not one.finished]
    if missing:
        retry = any(one.entry.status == "failed" for one in missing)
        of = f" of {part.chosen['recipe']}" if len(manifest.parts) > 1 else ""
        say(
            f"{len(missing)} of {plural(len(trained), 'run')}{of} missing "
            f"({', '.join(_label(one.keys) for one in missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}); `{_completing(manifest, retry=retry)}` "
            f"completes them"
        )
    if len(missing) == len(trained):
        return None
    config = module.Config(**part.keys)
    asked = module.measurements(config, trained)
    measured = getattr(module, "measured", lambda _: True)
    for one in trained:
        if asked and one.finished and measured(one.keys):
            steps = {question.step for question in asked} - {None}
            lacking = [at for at in steps if not snapshot_path(one.entry.path, at).is_file()]
            if lacking:
                say(
                    f"{one.entry.name}: finished without {len(lacking)} of its snapshots, left "
                    f"out; `{_completing(manifest, retry=False)}` makes them"
                )
                one.entry.status = "without snapshots"
                continue
            one.measured = measure(one.entry.path, asked, data_dir)
    if not any(one.finished for one in trained):
        return None
    result: Result = module.analyze(config, trained, part.chosen["recipe"])
    return result


def _entry(path: Path) -> Entry:
    return read_run(path) if (path / "config.yaml").exists() else Entry(path, "missing")


def _line(finding: Finding) -> str:
    """A finding in two lines: the claim with its verdict, and the estimate."""
    claim, estimate = finding.claim, "no estimate"
    factor = claim.factor
    if finding.value is not None:
        estimate = f"{factor * finding.value:+.3g}"
        if finding.low is not None and finding.high is not None:
            estimate += f" [{factor * finding.low:+.3g}, {factor * finding.high:+.3g}]"
        estimate += f"{' ' if claim.unit else ''}{claim.unit} (n = {finding.n})"
    paper = "" if finding.paper is None else f"; paper {factor * finding.paper:+.3g}"
    because = f" ({finding.because})" if finding.because else ""
    disputed = f"; disputed by {claim.disputed_by}" if claim.disputed_by else ""
    return (
        f"{finding.verdict}{because}: {claim.text} ({claim.where}{disputed})\n"
        f"    {claim.statistic}: {estimate}{paper}"
    )


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
        "paper": finding.paper,
        "verdict": finding.verdict,
        "because": finding.because,
        "disputed_by": claim.disputed_by,
    }
