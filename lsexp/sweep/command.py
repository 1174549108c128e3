"""The commands `lsexp sweep STUDY` and `lsexp plot STUDY`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lsexp import compose, studies
from lsexp.config import SlurmConfig
from lsexp.errors import NOT_OURS, UserError
from lsexp.launch.hands import Hands, hands_for
from lsexp.runs.store import runs_folder
from lsexp.studies import Result
from lsexp.sweep.asked import Asked, ask, has_partner
from lsexp.sweep.manifest import Manifest, newest_manifest, newest_with_runs
from lsexp.sweep.naming import lasting, of_file, view_of
from lsexp.sweep.show import Output, show, tell
from lsexp.sweep.work import Planned, joined, left_of, train
from lsexp.text import plural, say, taken, user_path

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
    named = [word for word in words if word in studies.names()]
    if named and ("=" in study or study.startswith("-")):
        raise UserError(f"{study}: comes after the study: lsexp sweep {named[0]} {study} ...")
    module = studies.study(study, "lsexp sweep")
    if any(word in ("-h", "--help") for word in words[1:]):
        print(compose.sweep_help(study), end="")
        return 0
    dry_run, detach = "--dry-run" in words, "--detach" in words
    typed = [word for word in words[1:] if word not in ("--dry-run", "--detach")]
    output, typed = Output.split(typed)
    asked = ask(study, module, typed)
    if not asked:
        return 0
    job = Job(study, module, typed, asked)
    return carry_out("sweep", words, [job], output, dry_run=dry_run, detach=detach)


Found = tuple[str, Manifest, list[Result] | UserError]
"""A study, its sweep, and what it found, or why nothing."""


@dataclass
class Job:
    """A study as it was asked for.

    Attributes:
        words: those behind its name, composed to `asked`.
        named: whether it was asked for by name, not as one of all.
    """

    study: str
    module: Any
    words: list[str]
    asked: list[Asked]
    named: bool = True

    def manifest(self, rows: Sequence[Sequence[Planned]], shown: Sequence[str] = ()) -> Manifest:
        """What is left of it in runs_dir; shown: words that say where its figures go."""
        of_launcher = [word for word in self.words if word.startswith(("launcher=", "launcher."))]
        kept = [word for word in lasting(self.words) if word not in of_launcher]
        launcher = self.asked[0].config.launcher
        from lsexp.launch.slurm import settles_precision

        if isinstance(launcher, SlurmConfig) and settles_precision(self.asked[0].base, launcher):
            kept = [word for word in kept if not word.startswith("precision=")]
            kept.append("precision=bf16")  # the runs are those, wherever they are asked for
        parts = [row.part(planned) for row, planned in zip(self.asked, rows, strict=True)]
        return Manifest(self.study, kept, parts, aside=[*of_launcher, *shown])

    def seems_done(self) -> bool:
        """Whether the same words were swept before to the end: no workers are started yet."""
        folder = runs_folder(self.asked[0].base.runs_dir)
        newest = newest_manifest(self.study, folder)
        if newest is None or newest.words != self.words:
            return False
        runs = [run for part in newest.parts for run in part.runs]
        return all((folder / run["name"] / "metrics.json").exists() for run in runs)


def carry_out(
    verb: str,
    words: list[str],
    jobs: Sequence[Job],
    output: Output,
    *,
    dry_run: bool,
    detach: bool = False,
    after: Callable[[Sequence[Found]], None] = lambda _found: None,
) -> int:
    """Train what studies lack, then their tables and figures.

    Args:
        verb, words: the command that was typed.
        detach: with launcher=slurm, do not wait for the jobs.
        after: called in the end with what was found.
    """
    from lsexp.launch.local import clear_aside
    from lsexp.launch.plan import place_of_runs
    from lsexp.launch.pool import Pool
    from lsexp.launch.slurm import DETACHED, Cluster, Jobs, clear, jobs_for, name_of

    command = ["lsexp", verb, *words]
    first = jobs[0].asked[0]
    base, count = first.base, sum(len(row.runs) for job in jobs for row in job.asked)
    runs_dir = place_of_runs(base.runs_dir)
    launcher = first.config.launcher
    hands: Hands | Jobs
    if isinstance(launcher, SlurmConfig):
        hands = jobs_for(launcher, base, first.config.workers, first.config.members, count)
    elif detach:
        raise UserError("--detach: goes with launcher=slurm")
    elif own := [w for w in words if w.startswith("launcher=") and w != "launcher=local"]:
        raise UserError(f"{own[0]}: its file must begin with `{compose.LAUNCHER_BEGINS}`")
    else:
        hands = hands_for(first.config, base, count)
    with contextlib.ExitStack() as stack:
        pool: Any = None
        if not (dry_run or isinstance(hands, Jobs) or all(job.seems_done() for job in jobs)):
            pool = stack.enter_context(Pool(hands.workers, hands.threads))  # imports while we plan
        rows = [[row.planned(command, remember=not dry_run) for row in job.asked] for job in jobs]
        jobs, rows = _drawable(jobs, rows)
        name = f"{verb:<8} {', '.join(job.study for job in jobs)}"
        whole = joined([row for planned in rows for row in planned])
        left = left_of(name, whole, hands, retry=base.retry_failed)
        print(left.text) if dry_run else say(left.text)
        if dry_run:
            return 0
        manifests = [
            job.manifest(planned, output.words) for job, planned in zip(jobs, rows, strict=True)
        ]
        for manifest in manifests:
            _note(manifest, runs_dir, needed=bool(left.todo))
        for plan in left.done:
            clear_aside(plan)
        errors, stopped = left.errors, ""
        if left.todo:
            if isinstance(hands, Jobs):
                todo, name = [one.plan for one, _ in left.todo], name_of([p.plan for p in whole])
                pool = Cluster(hands, todo, name, base, detach=detach)
            pool = pool or stack.enter_context(Pool(hands.workers, hands.threads))
            failed, stopped = train(pool, left.todo, command, hands)
            errors += failed
        elif isinstance(hands, Jobs) and not errors:
            clear(runs_dir, [planned.plan for planned in whole])
        if stopped == DETACHED:
            for line in errors:
                say(f"lsexp: {line}")
            without = " or retry_failed=true" if base.retry_failed else ""
            say(
                f"the same command, without --detach{without}, watches them and draws what they "
                f"have made"
            )
            return 0
    for line in errors:
        say(f"lsexp: {line}")
    without = ", without resume=restart," if base.resume == "restart" else ""
    if stopped:
        state = (
            "runs go on from their last checkpoints" if "twice" in stopped else "nothing is lost"
        )
        raise UserError(
            f"stopped by {stopped}; {state}: the same command{without} goes on from there",
            exit_code=1,
        )
    unseen: list[str] = []
    found: list[Found] = []
    for job, manifest in zip(jobs, manifests, strict=True):
        try:
            results = show(job.module, manifest, runs_dir, output, base.data_dir)
            found.append((job.study, manifest, results))
        except UserError as error:
            if not errors and len(jobs) == 1:
                raise
            say(f"lsexp: {error}")
            unseen.append(job.study)
            found.append((job.study, manifest, error))
    if len(unseen) < len(jobs):
        after(found)
    if errors:
        typed = shlex.join(["lsexp", verb, *lasting(words), "retry_failed=true"])
        how, then = "could not be finished", f"the same command{without} goes on"
        if any(one.plan.folder.failure() is not None for one in whole):
            how, then = "failed", f"`{typed}` trains them again"
        raise UserError(
            f"{len(errors)} of {plural(len(whole), 'run')} {how}, see above; {then}", exit_code=1
        )
    if unseen:
        raise UserError(f"{', '.join(unseen)}: could not be drawn, see above", exit_code=1)
    if damaged := _damaged(found):
        raise UserError(
            f"{plural(damaged, 'run')} damaged, see above; `lsexp runs repair` makes them again",
            exit_code=1,
        )
    return 0


def _note(manifest: Manifest, runs_dir: Path, *, needed: bool) -> None:
    """Write down what was swept; where nothing is left to do, a folder that is read-only will do.

    Raises:
        UserError: it cannot be written, and that is `needed`.
    """
    try:
        manifest.write(runs_dir)
    except OSError as error:
        path = manifest.path(runs_dir)
        if error.errno not in NOT_OURS:
            raise
        if needed:
            raise UserError(
                f"runs_dir={runs_dir}: {error.strerror} ({path}); name a folder that can be "
                f"written: runs_dir=FOLDER or LSEXP_RUNS_DIR",
                exit_code=1,
            ) from error
        if not os.path.isfile(path):  # noqa: PTH113 (it may be in a folder closed to us)
            say(
                f"{path}: {error.strerror}; nothing is lost, but `lsexp plot {manifest.study}` "
                f"without words does not know of this sweep"
            )


def _damaged(found: Sequence[Found]) -> int:
    """How many runs were left out of what was found."""
    results = [one for _, _, of in found if not isinstance(of, UserError) for one in of]
    names = {r["run"] for one in results for r in one.tables["runs"] if r["status"] == "damaged"}
    return len(names)


def _drawable(
    jobs: Sequence[Job], rows: list[list[list[Planned]]]
) -> tuple[list[Job], list[list[list[Planned]]]]:
    """Those that could be drawn; one that was not asked for by name is left out, and said."""
    kept = []
    for job, planned in zip(jobs, rows, strict=True):
        try:
            for row, one in zip(job.asked, planned, strict=True):
                row.check(job.module, one)
            kept.append((job, planned))
        except UserError as error:
            if job.named:
                raise
            say(f"lsexp: {job.study} is left out: {error}")
    return [job for job, _ in kept], [planned for _, planned in kept]


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
    rest, remembered = _on_the_newest(study, module, rest)
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
        manifest = Manifest(study, rest, parts, aside=remembered)
    else:
        newest = newest_with_runs(study, module, folder)
        if newest is None:
            raise UserError(
                f"plot {study}: no sweep for it in {folder}; `lsexp sweep {study}` makes one, "
                f"runs_dir= names another folder",
                exit_code=1,
            )
        manifest = newest.where(rest)
        say(f"the newest sweep: {shlex.join(['lsexp', 'sweep', newest.study, *newest.words])}")
        typed = {word.partition("=")[0] for word in rest} & set(module.VIEW)
        for part in manifest.parts:
            part.keys |= {name: getattr(asked[0].config.study, name) for name in typed}
    show(module, manifest, folder, output, data_dir)
    return 0


def _on_the_newest(study: str, module: Any, words: list[str]) -> tuple[list[str], list[str]]:
    """`eps=` and `seeds=` without anything else that chooses runs are of the newest sweep.

    Returns:
        The words of that sweep with these, and those that name nothing of it.
    """
    own = {item.name for item in fields(module.Config)}
    names = {word.partition("=")[0] for word in words}
    others = ("runs_dir", "data_dir", *module.VIEW)
    if not names & (own - set(module.VIEW)) or names - own - set(others):
        return words, []
    runs_dir = next((w.partition("=")[2] for w in words if w.startswith("runs_dir=")), None)
    newest = newest_with_runs(study, module, runs_folder(runs_dir))
    if newest is None:
        return words, []
    theirs = {item.name for item in fields(studies.study(newest.study, "").Config)} - own
    kept = [w for w in newest.words if w.partition("=")[0] not in names | theirs]
    needed = getattr(module, "NEEDED", "").partition("=")[0]
    if needed in names and not has_partner(study, module, words):  # it is switched off
        kept = [word for word in kept if not word.startswith(f"{module.PARTNER}.")]
    if kept:
        say(f"of the newest sweep: {shlex.join(kept)}")
    return [*kept, *words], newest.aside


def _plot_file(study: str, module: Any, output: Output, words: list[str]) -> int:
    """A study of somebody else's logits: `logits=FILE`, beside keys that choose no runs."""
    typed, others = taken(words, ("logits",))
    file = typed["logits"]
    if not file:
        raise UserError("logits= must name a file")
    if not hasattr(module, "analyze_file"):
        others = [n for n in studies.names() if hasattr(studies.study(n, ""), "analyze_file")]
        raise UserError(f"logits={file}: goes with {' or '.join(others)}, not {study}")
    for word in others:
        if word.partition("=")[0] not in module.VIEW:
            raise UserError(
                f"{word}: chooses runs, and logits= is a file; it goes with "
                f"{', '.join(f'{name}=' for name in module.VIEW)}, figure.format= and out_dir="
            )
    [asked] = ask(study, module, others)
    path = user_path("logits", file)
    result = module.analyze_file(asked.config.study, path)
    folder = output.folder / study / f"{of_file(path)}{view_of(asked.config.study)}"
    tell(module, asked.config.study, [result], folder, output.formats)
    return 0
