"""`lsexp sweep STUDY` and `lsexp plot STUDY`: train what a study lacks; its tables and figure.

Knows no study by name. A sweep leaves a manifest in `<runs_dir>/.sweeps/`, so that a plot without
words draws the newest one, and needs neither torch nor the data to find its runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lsexp import compose, studies
from lsexp.config import SweepConfig, TrainConfig, check, check_fields
from lsexp.errors import UserError
from lsexp.figures import FORMATS, write_figure, write_table
from lsexp.runs.catalog import Entry, read_run
from lsexp.runs.store import replace_file, runs_folder
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
        return Output(user_path("out_dir", options["out_dir"]), formats), others


@dataclass
class Manifest:
    """What a sweep was asked for.

    Attributes:
        words: typed behind the study's name.
        keys: the study's own, in effect.
        chosen: names of recipe and budget.
        runs: keys and folder name of each run.
    """

    study: str
    words: list[str]
    keys: dict[str, Any]
    chosen: dict[str, str]
    runs: list[dict[str, Any]]

    def path(self, runs_dir: Path) -> Path:
        digest = hashlib.sha256(json.dumps(self.runs, sort_keys=True).encode()).hexdigest()
        return runs_dir / ".sweeps" / f"{self.study}-{digest[:12]}.json"

    def write(self, runs_dir: Path) -> None:
        path = self.path(runs_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({**asdict(self), "time": time.time()}, indent=1))


def newest_manifest(study: str, runs_dir: Path) -> Manifest | None:
    """That of the latest sweep of a study; damaged ones are passed over."""
    found: list[tuple[float, Manifest]] = []
    for path in (runs_dir / ".sweeps").glob(f"{study}-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(path.read_text())
            when = stored.pop("time")
            found.append((float(when), Manifest(**stored)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


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
    found = compose.sweep_config(study, typed)
    if found is None:
        return 0
    config, chosen = found
    base, runs = _runs_of(study, module, config)

    from lsexp.launch.plan import Planner
    from lsexp.launch.pool import Pool

    command = ["lsexp", "sweep", *words]
    workers, threads = _workers(config, base, len(runs))
    with contextlib.ExitStack() as stack:
        pool = None
        if not dry_run and not _seems_done(study, typed, base):
            pool = stack.enter_context(Pool(workers, threads))  # imports while we plan
        planner = Planner(chosen, command, remember=not dry_run)
        plans = [planner(run.config) for run in runs]
        manifest = Manifest(
            study,
            [word for word in typed if not word.startswith("retry_failed=")],
            asdict(config.study),
            chosen,
            [
                {"keys": run.keys, "name": plan.folder.path.name}
                for run, plan in zip(runs, plans, strict=True)
            ],
        )
        todo, errors = _tell_plan(study, runs, plans, workers, dry_run, retry=base.retry_failed)
        if dry_run:
            return 0
        runs_dir = plans[0].folder.path.parent
        manifest.write(runs_dir)
        stopped = ""
        if todo:
            pool = pool or stack.enter_context(Pool(workers, threads))
            failed, stopped = _train(pool, [(runs[i], plans[i]) for i in todo], chosen, command)
            errors += failed
    for line in errors:
        say(f"lsexp: {line}")
    if stopped:
        kept = "runs go on from their last checkpoints" if "twice" in stopped else "nothing is lost"
        raise UserError(
            f"stopped by {stopped}; {kept}: the same command goes on from there", exit_code=1
        )
    try:
        _show(module, manifest, runs_dir, output)
    except UserError as error:
        if not errors:
            raise
        say(f"lsexp: {error}")
    if errors:
        others = [word for word in words[1:] if not word.startswith("retry_failed=")]
        again = shlex.join(["lsexp", "sweep", study, *others, "retry_failed=true"])
        raise UserError(
            f"{len(errors)} of {plural(len(runs), 'run')} failed, see above; `{again}` trains "
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
    selecting = [word for word in rest if not word.startswith("runs_dir=")]
    if selecting:
        found = compose.sweep_config(study, rest)
        if found is None:
            return 0
        config, chosen = found
        _, runs = _runs_of(study, module, config)
        from lsexp.launch.plan import Planner

        planner = Planner(chosen, ["lsexp", "plot", *words], remember=False)
        plans = [planner(run.config) for run in runs]
        folder = plans[0].folder.path.parent
        named = [
            {"keys": run.keys, "name": plan.folder.path.name}
            for run, plan in zip(runs, plans, strict=True)
        ]
        manifest = Manifest(study, rest, asdict(config.study), chosen, named)
    else:
        folder = runs_folder(rest[-1].partition("=")[2] if rest else None)
        newest = newest_manifest(study, folder)
        if newest is None:
            raise UserError(
                f"plot {study}: no sweep in {folder}; `lsexp sweep {study}` makes one, runs_dir= "
                f"names another folder",
                exit_code=1,
            )
        manifest = newest
        typed = shlex.join(["lsexp", "sweep", study, *manifest.words])
        say(f"the newest sweep: {typed}")
    _show(module, manifest, folder, output)
    return 0


def _runs_of(study: str, module: Any, config: SweepConfig) -> tuple[TrainConfig, list[studies.Run]]:
    check_fields(config.study, f"lsexp sweep {study} --help")
    check_fields(config, f"lsexp sweep {study} --help")
    names = [item.name for item in fields(TrainConfig)]
    base = TrainConfig(**{name: getattr(config, name) for name in names})
    base.threads = base.threads or 1  # many runs at once, a core for each
    check(base)
    runs = module.runs(config.study, base)
    for run in runs:
        check(run.config)
    return base, runs


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
    return all((folder / run["name"] / "metrics.json").exists() for run in newest.runs)


def _tell_plan(
    study: str,
    runs: Sequence[studies.Run],
    plans: Sequence[Any],
    workers: int,
    dry_run: bool,
    *,
    retry: bool,
) -> tuple[list[int], list[str]]:
    """Say what is finished, what is to do and about how long it takes.

    Returns:
        Indices of the runs to train, and a line for each that failed before and is left so.
    """
    from lsexp.launch.plan import describe_training, seconds_of_training, steps_done

    todo, errors, failed = [], [], 0
    for i, (run, plan) in enumerate(zip(runs, plans, strict=True)):
        if plan.folder.finished():
            continue
        failure = plan.folder.failure()
        failed += failure is not None
        if failure is None or retry:
            todo.append(i)
        else:
            errors.append(f"{_label(run.keys)}: failed before: {failure.get('error')}")
    counts = f"{plural(len(plans), 'run')}: {len(plans) - len(todo) - len(errors)} finished"
    if failed:
        counts += f", {failed} failed" + ("" if retry else " (retry_failed=true tries again)")
    counts += f", {len(todo)} to do"
    if todo:
        steps = plans[0].config.train.steps
        left = sum(1 - steps_done(plans[i]) / steps for i in todo)
        seconds = seconds_of_training(plans[todo[0]]) * left / min(workers, len(todo))
        counts += f", about {duration(seconds)} with {plural(workers, 'worker')}, evaluation apart"
    lines = f"{describe_training(plans[0])}\nsweep    {study}, {counts}"
    print(lines) if dry_run else say(lines)
    return todo, errors


def _train(
    pool: Any,
    work: Sequence[tuple[studies.Run, Any]],
    chosen: dict[str, str],
    command: list[str],
) -> tuple[list[str], str]:
    """Train in the pool; one line for each failure, and the signal that stopped it or ""."""
    from lsexp.launch.plan import steps_done
    from lsexp.launch.pool import Task
    from lsexp.launch.progress import SweepView

    tasks = [Task(plan.config, chosen, command, _label(run.keys)) for run, plan in work]
    steps = [plan.config.train.steps for _, plan in work]
    done = [steps_done(plan) for _, plan in work]
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
    )


def _show(module: Any, manifest: Manifest, runs_dir: Path, output: Output) -> None:
    """Analyse what is finished, print the table and the findings, write figure and tables."""
    trained = [Trained(run["keys"], _entry(runs_dir / run["name"])) for run in manifest.runs]
    for one in trained:
        if one.entry.status in ("damaged", "stale"):
            say(f"{one.entry.name}: {one.entry.status}, left out")
    missing = [one for one in trained if not one.finished]
    retry = any(one.entry.status == "failed" for one in missing)
    again = ["retry_failed=true"] if retry else []
    command = shlex.join(["lsexp", "sweep", manifest.study, *manifest.words, *again])
    if len(missing) == len(trained):
        raise UserError(
            f"plot {manifest.study}: none of its {plural(len(trained), 'run')} is finished; "
            f"`{command}` trains them",
            exit_code=1,
        )
    if missing:
        say(
            f"{len(missing)} of {plural(len(trained), 'run')} missing "
            f"({', '.join(_label(one.keys) for one in missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}); `{command}` completes them"
        )
    study = module.Config(**manifest.keys)
    result: Result = module.analyze(study, trained, manifest.chosen["recipe"])
    print(table(result.summary, left=1))
    print("", *result.notes, "", sep="\n")
    for finding in result.findings:
        print(_line(finding))
    print(flush=True)
    name = f"{manifest.chosen['recipe']}-{manifest.chosen['budget']}"
    folder = output.folder / manifest.study / name
    try:
        written = write_figure(module.draw(result), folder / manifest.study, output.formats)
        for part, rows in result.tables.items():
            written.append(write_table(rows, folder / f"{part}.csv"))
        findings = [_row(finding) for finding in result.findings]
        written.append(write_table(findings, folder / "findings.csv"))
        for old in set(folder.glob("*.csv")) - set(written):  # of a sweep with more in it
            old.unlink()
    except OSError as error:
        raise UserError(
            f"out_dir={output.folder}: {error.strerror or error}", exit_code=1
        ) from error
    print(*written, sep="\n")


def _entry(path: Path) -> Entry:
    return read_run(path) if (path / "config.yaml").exists() else Entry(path, "missing")


def _line(finding: Finding) -> str:
    """A finding in one line."""
    claim, estimate = finding.claim, "no estimate"
    factor = claim.factor
    if finding.value is not None:
        estimate = f"{factor * finding.value:+.3g}"
        if finding.low is not None and finding.high is not None:
            estimate += f" [{factor * finding.low:+.3g}, {factor * finding.high:+.3g}]"
        estimate += f" {claim.unit} (n = {finding.n})"
    paper = "" if finding.paper is None else f"; paper {factor * finding.paper:+.3g}"
    because = f" ({finding.because})" if finding.because else ""
    return f"{finding.verdict}{because}: {claim.text} ({claim.where}); ours {estimate}{paper}"


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
