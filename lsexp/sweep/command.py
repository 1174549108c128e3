"""The commands `lsexp sweep STUDY` and `lsexp plot STUDY`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from lsexp import compose, studies
from lsexp.config import LossConfig, SweepConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.runs.store import runs_folder
from lsexp.sweep.asked import Planned, ask
from lsexp.sweep.manifest import Manifest, newest_manifest, newest_with_runs
from lsexp.sweep.show import Output, label, show, tell, view_of
from lsexp.text import duration, plural, say, user_path

HELP = """\
lsexp sweep STUDY [key=value ...]: train what a study of the paper lacks, then its tables and figure

{studies}

  lsexp sweep eps                               the embedded digits, in half a minute
  lsexp sweep eps recipe=mnist_mlp eps=0,0.1 seeds=10
  lsexp sweep eps --dry-run                     what is to do, and about how long it would take

  lsexp sweep STUDY --help                      the keys of a study
"""


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
    asked = ask(study, module, typed)
    if not asked:
        return 0

    from lsexp.launch.pool import Pool
    from lsexp.launch.teaching import can_teach

    command = ["lsexp", "sweep", *words]
    base, count = asked[0].base, sum(len(row.runs) for row in asked)
    workers, threads = _workers(asked[0].config, base, count)
    with contextlib.ExitStack() as stack:
        pool = None
        if not dry_run and not _seems_done(study, typed, base):
            pool = stack.enter_context(Pool(workers, threads))  # imports while we plan
        todo: list[tuple[Planned, int | None]] = []
        errors: list[str] = []
        parts = []
        for row in asked:
            planned = row.planned(command, remember=not dry_run)
            if hasattr(module, "check"):
                plan = planned[0].plan
                names = plan.dataset.arrays.classes
                module.check(row.config.study, plan.dataset.name, names, plan.config)
            left, failed = _tell_plan(study, planned, workers, dry_run, base.retry_failed)
            errors += failed
            places: dict[int, int] = {}
            for i in left:
                after = planned[i].after
                if after is None or can_teach(planned[i].plan):
                    after = None  # whatever else is asked of the teacher
                elif after not in places:
                    run, of = (label(planned[k].run.keys) for k in (i, after))
                    errors.append(f"{run}: its teacher failed before ({of})")
                    continue
                places[i] = len(todo)
                todo.append((planned[i], None if after is None else places[after]))
            parts.append(row.part(planned))
            runs_dir = planned[0].plan.folder.path.parent
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
        show(module, manifest, runs_dir, output, base.data_dir)
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
    asked = ask(study, module, rest)
    if not asked:
        return 0
    data_dir = asked[0].base.data_dir
    folder = runs_folder(asked[0].base.runs_dir)
    if selecting:
        command = ["lsexp", "plot", *words]
        parts = [row.part(row.planned(command, remember=False)) for row in asked]
        manifest = Manifest(study, rest, parts)
    else:
        newest = newest_with_runs(study, module, folder)
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
    show(module, manifest, folder, output, data_dir)
    return 0


def _on_the_newest(study: str, module: Any, words: list[str]) -> list[str]:
    """`eps=` and `seeds=` without anything else that chooses runs are of the newest sweep."""
    own = {item.name for item in fields(module.Config)}
    names = {word.partition("=")[0] for word in words}
    others = ("runs_dir", "data_dir", *module.VIEW)
    if not names & (own - set(module.VIEW)) or names - own - set(others):
        return words
    runs_dir = next((w.partition("=")[2] for w in words if w.startswith("runs_dir=")), None)
    newest = newest_with_runs(study, module, runs_folder(runs_dir))
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
    [asked] = ask(study, module, others)
    path = user_path("logits", files[0])
    result = module.analyze_file(asked.config.study, path)
    folder = output.folder / study / f"logits-{path.stem}{view_of(module, asked.config.study)}"
    tell(module, asked.config.study, [result], folder, output.formats)
    return 0


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
    planned: Sequence[Planned],
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
    for i, (run, plan, _) in enumerate(planned):
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
            errors.append(f"{label(run.keys)}: failed before: {failure.get('error')}")
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
            for kind in _kinds([planned[i].plan for i in todo])
        ) / min(workers, len(todo))
        counts += f", about {duration(seconds)} with {plural(workers, 'worker')}, evaluation apart"
        if planned[0].plan.snapshots:
            counts += ", then what is measured at snapshots"
    told = dict.fromkeys(describe_training(kind[0]) for kind in _kinds([p.plan for p in planned]))
    lines = "\n".join([*told, f"sweep    {study}, {counts}"])
    print(lines) if dry_run else say(lines)
    return todo, errors


def _kinds(plans: Sequence[Any]) -> list[list[Any]]:
    """Plans that cost the same, together: they differ in seed and in the numbers of their loss."""
    found: list[tuple[Any, list[Any]]] = []
    for plan in plans:
        like = replace(plan.config, loss=LossConfig(), seed=0), plan.teaching is None
        for other, kind in found:
            if other == like:
                kind.append(plan)
                break
        else:
            found.append((like, [plan]))
    return [kind for _, kind in found]


def _train(
    pool: Any,
    work: Sequence[tuple[Planned, int | None]],
    command: list[str],
) -> tuple[list[str], str]:
    """Train in the pool; one line for each failure, and the signal that stopped it or ""."""
    from lsexp.launch.plan import steps_done
    from lsexp.launch.pool import Task
    from lsexp.launch.progress import SweepView

    tasks = [
        Task(plan.config, plan.chosen, command, label(run.keys), after=after)
        for (run, plan, _), after in work
    ]
    steps = [one.plan.config.train.steps for one, _ in work]
    done = [steps_done(one.plan) for one, _ in work]
    with SweepView([task.label for task in tasks], steps, done) as view:
        outcomes, stopped = pool.train(tasks, view)
    errors = [
        f"{task.label}: {outcome.error}"
        for task, outcome in zip(tasks, outcomes, strict=True)
        if outcome is not None and outcome.error is not None
    ]
    return errors, stopped
