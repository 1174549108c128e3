"""Words behind a study's name to the runs that they mean: a row of its figure for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from lsexp import compose, studies
from lsexp.config import (
    DistillationConfig,
    LossConfig,
    SlurmConfig,
    SweepConfig,
    TrainConfig,
    check,
    check_fields,
    walk,
)
from lsexp.errors import UserError
from lsexp.sweep.manifest import Part
from lsexp.sweep.work import Planned
from lsexp.text import taken


@dataclass
class Asked:
    """A row of what was typed, composed.

    Attributes:
        config: with the study's keys; base: what is trained, of it.
        chosen: names of recipe and budget.
        partner: those of the study's other kind of run.
    """

    words: list[str]
    config: SweepConfig
    chosen: compose.Chosen
    base: TrainConfig
    runs: list[studies.Run]
    partner: compose.Chosen | None
    partner_teaches: bool

    def planned(self, command: list[str], *, remember: bool) -> list[Planned]:
        """A plan for each run; teachers come before their students."""
        from lsexp.launch.plan import Planner
        from lsexp.launch.teaching import Teaching

        launcher = self.config.launcher

        def here(config: TrainConfig) -> TrainConfig:
            if not isinstance(launcher, SlurmConfig):
                return config
            from lsexp.launch.slurm import as_planned_here

            return as_planned_here(config, launcher)

        own = Planner(self.chosen, command, remember=remember)
        partners = Planner(self.partner or self.chosen, command, remember=remember)
        teachers, students = (partners, own) if self.partner_teaches else (own, partners)
        found: list[Planned] = []
        places = {id(run): place for place, run in enumerate(self.runs)}
        teaching = {id(run.teacher) for run in self.runs}
        for run in self.runs:
            if run.teacher is None:
                planner = teachers if id(run) in teaching else students
                found.append(Planned(run, planner(here(run.config)), None))
            else:
                after = places[id(run.teacher)]
                taught = Teaching.planned(found[after].plan)
                assert isinstance(run.config.loss, DistillationConfig)
                loss = replace(run.config.loss, teacher=taught.path.name)
                plan = students(replace(here(run.config), loss=loss), taught)
                found.append(Planned(run, plan, after))
        return found

    def check(self, module: Any, planned: Sequence[Planned]) -> None:
        """Refuse, before training, what the study could not draw."""
        if hasattr(module, "check"):
            plan = planned[0].plan
            names, labels = plan.dataset.arrays.classes, plan.dataset.arrays.train_labels
            images = {
                split: np.bincount(labels[getattr(plan.splits, split)], minlength=len(names))
                for split in ("train", "val")
            }
            module.check(self.config.study, plan.dataset.name, names, plan.config, images)

    def part(self, planned: Sequence[Planned]) -> Part:
        named = [{"keys": run.keys, "name": plan.folder.path.name} for run, plan, _ in planned]
        return Part(self.words, asdict(self.config.study), self.chosen, named)


def ask(study: str, module: Any, words: list[str]) -> list[Asked]:
    """Compose what was typed, a row for each recipe of `rows=`; none with --cfg, which prints."""
    typed, others = taken(words, ("rows",))
    recipes = typed["rows"].split(",") if typed else []
    if typed and any(word.startswith("recipe=") for word in others):
        raise UserError(f"rows={typed['rows']}: names the recipes; leave recipe= out")
    if len(set(recipes)) < len(recipes):
        raise UserError(f"rows={typed['rows']}: a recipe is there twice")
    asked = []
    for row in [[f"recipe={recipe}", *others] for recipe in recipes] or [others]:
        theirs, own = _of_the_partner(study, module, row)
        try:
            found = compose.sweep_config(study, own)
        except UserError as error:
            if typed and str(error).startswith("recipe="):
                raise UserError(f"rows={typed['rows']}: {error}") from error
            raise
        if found is None:
            continue
        config, chosen = found
        base = _base_of(study, module, config)
        partner = None
        if hasattr(module, "partner"):
            recipe = module.partner(config.study, base, chosen["recipe"])
            if recipe is not None:
                partner = _partner(module, recipe, chosen["recipe"], own, theirs, base)
            elif theirs:
                raise UserError(f"{module.PARTNER}.{theirs[0]}: needs {module.NEEDED}")
        more = () if partner is None else (partner[0],)
        runs: list[studies.Run] = module.runs(config.study, base, *more)
        for run in runs:
            check(run.config)
        teaches = getattr(module, "PARTNER", "") == "teacher"
        names = None if partner is None else partner[1]
        asked.append(Asked(row, config, chosen, base, runs, names, teaches))
    return asked


PARTNERS = ("teacher", "student")
"""Before a key: it is one of the study's other kind of run."""
FOR_ALL = ("runs_dir", "retry_failed", "device", "fast", "capture")
"""Keys that are of the whole sweep."""


def has_partner(study: str, module: Any, words: Sequence[str]) -> bool:
    """Whether a study trains its other kind of run too, with the last of these words that says."""
    if not hasattr(module, "partner"):
        return False
    name = getattr(module, "NEEDED", "").partition("=")[0]
    typed = [word for word in words if name and word.startswith(f"{name}=")]
    found = compose.sweep_config(study, typed[-1:]) if typed else None
    return not name or bool(getattr(module.Config() if found is None else found[0].study, name))


def _of_the_partner(study: str, module: Any, words: list[str]) -> tuple[list[str], list[str]]:
    """Words of the study's other kind of run, without its name before them; and all others."""
    kind = getattr(module, "PARTNER", None)
    owned = {*module.OWNED, *FOR_ALL}
    if kind == "teacher":  # trained on labels
        owned.add("loss")
    theirs, own = [], []
    for word in words:
        before, dot, rest = word.partition(".")
        if not dot or before not in PARTNERS:
            own.append(word)
        elif before != kind:
            plain = f"; those of the sweep are, write {rest}" if kind else ""
            raise UserError(f"{word}: {study} has no other {before}s{plain}")
        elif rest.startswith("-") or rest.partition("=")[0] in owned:
            raise UserError(f"{word}: {study} sets it for its {kind}s")
        else:
            theirs.append(rest)
    return theirs, own


def _partner(
    module: Any, recipe: str, same: str, own: list[str], theirs: list[str], base: TrainConfig
) -> tuple[TrainConfig, compose.Chosen]:
    """The config of the other kind of run, and names of its recipe and budget.

    Args:
        recipe: its; same: that of the sweep. What was typed for a recipe goes with it; with another
            one only words about data, places, devices and budget.
        own: words of the sweep; theirs: those for these runs alone, which win.
    """
    typed = {name: value for name, _, value in (word.partition("=") for word in theirs)}
    alike = typed.get("recipe", recipe) == same
    own_loss = {f"loss.{item.name}" for item in fields(LossConfig)}
    study = {item.name for item in fields(module.Config)}
    aside = {name for name, item, _ in walk(TrainConfig()) if item.metadata["aside"]}
    shared, queue = [], list(own)
    while queue:
        word = queue.pop(0)
        name, equals, _ = word.partition("=")
        group = name.partition(".")[0]
        if name in ("--config-dir", "-cd"):
            shared += [word] if equals else [word, *queue[:1]]
            queue = queue if equals else queue[1:]
            continue
        if name in typed or name == "recipe":
            continue
        everywhere = name in aside | {"budget", "precision", "loss.spread"} or group == "data"
        hands = {"workers", "members", "launcher"}
        of_recipe = name in own_loss if group == "loss" else not {name, group} & (study | hands)
        if everywhere or (alike and of_recipe):
            shared.append(word)
    words = [*shared, *theirs]
    if "recipe" not in typed:
        words.append(f"recipe={recipe}")
    try:
        [(config, chosen)] = compose.train_configs(words)
    except UserError as error:
        raise UserError(f"of the {module.PARTNER}s: {error}") from error
    try:
        check_fields(config)
        check(_on_labels(config))  # the protocol is checked with each run
    except UserError as error:
        own_key = str(error).partition("=")[0] in typed
        raise UserError(f"{module.PARTNER}.{error}" if own_key else str(error)) from error
    # The same images, so that no teacher has seen what its students are chosen on.
    same_images = {
        name: getattr(base.data, name)
        for name in ("split", "split_seed", "train_size")
        if f"data.{name}" not in typed
    }
    config = replace(config, threads=config.threads or 1, data=replace(config.data, **same_images))
    return _on_labels(config) if module.PARTNER == "teacher" else config, chosen


def _on_labels(config: TrainConfig) -> TrainConfig:
    return replace(config, loss=LossConfig(spread=config.loss.spread, scale=config.loss.scale))


def _base_of(study: str, module: Any, config: SweepConfig) -> TrainConfig:
    """What the runs of a sweep's recipe share."""
    check_fields(config.study, f"lsexp sweep {study} --help")
    check_fields(config, f"lsexp sweep {study} --help")
    names = [item.name for item in fields(TrainConfig)]
    base = TrainConfig(**{name: getattr(config, name) for name in names})
    base.threads = base.threads or 1  # many runs at once, a core for each
    if getattr(module, "PARTNER", "") == "teacher" and isinstance(base.loss, DistillationConfig):
        base.loss.teacher = "of the sweep"
        check(_on_labels(base))  # the protocol is checked with each temperature
    else:
        check(base)
    return base
