"""Words behind a study's name to the runs that they mean: a row of its figure for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
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
from lsexp.sweep.manifest import Part


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


def ask(study: str, module: Any, words: list[str]) -> list[Asked]:
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
