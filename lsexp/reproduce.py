"""The command `lsexp reproduce`: every study, trained together, and the report of them."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lsexp import compose, studies
from lsexp.config import DistillationConfig, LossConfig
from lsexp.errors import UserError, unknown
from lsexp.report.command import write
from lsexp.studies._teaching import STUDENTS
from lsexp.sweep.asked import FOR_ALL, PARTNERS, ask, has_partner
from lsexp.sweep.command import Found, Job, carry_out
from lsexp.sweep.naming import deciding, for_path, of_own_files, shortened
from lsexp.sweep.show import Output

HELP = """\
lsexp reproduce [STUDY ...] [key=value ...]: train, measure and draw every study, then the report

  lsexp reproduce                              all studies on the embedded digits, in minutes
  lsexp reproduce recipe=mnist_mlp seeds=5     all that MNIST's network can show
  lsexp reproduce eps calibration recipe=cifar10_alexnet budget=cpu
  lsexp reproduce information.eps=0,0.2        a key of one study alone
  lsexp reproduce --dry-run                    what is to do, and about how long it would take

Keys of `lsexp sweep STUDY` go to every study that has them, STUDY.KEY=VALUE to one. Keys of
`lsexp train` are of the recipe's networks, which are the teachers of distillation; train.* and
optim.* are of their students too. A run that several studies need is trained once. Stopped in the
middle, the same command goes on. `lsexp sweep --help` lists the studies, `lsexp sweep STUDY --help`
the keys of one.

The pages go to OUT_DIR/report, those of some studies or of other keys to a folder that is named
after these words, OUT_DIR/reproduce-WORDS.
"""
TEACHERS_OF = {
    student: [name for name, its in STUDENTS.items() if its == student]
    for student in STUDENTS.values()
}
"""Recipe of students to those of their teachers."""
OF_ALL_RUNS, OF_A_NETWORK = ("train", "optim"), ("model", "augment")
"""Sections of keys that students share with their teachers, and that they do not."""
FOR_EVERY_STUDY = (
    *(*FOR_ALL, "data_dir", "out_dir", "figure.format", "resume", "threads", "workers", "members"),
    *compose.SWEEP_GROUPS,
)
"""Keys, and sections, that are of all studies together."""


def run(words: list[str]) -> int:
    """The words after `lsexp reproduce`; the exit code."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    dry_run, detach = "--dry-run" in words, "--detach" in words
    flags = ("--dry-run", "--detach")
    output, typed = Output.split([word for word in words if word not in flags])
    chosen, typed = _names(typed)
    names = chosen or studies.ordered()
    _check(typed, names)
    _check_recipe(typed, names)
    jobs = []
    for name in names:
        module = studies.study(name, "lsexp reproduce")
        own = _words_of(name, module, typed)
        try:
            asked = ask(name, module, own)
        except UserError as error:
            key = str(error).partition("=")[0].partition(":")[0].removeprefix("study.")
            hint = f"; {name}.KEY=VALUE sets a key for it alone, names of studies choose others"
            its_own = key in {*_keys_of(name), "augment"} and not chosen
            raise UserError(f"{name}: {error}{hint if its_own else ''}") from error
        if asked:  # else it was printed, by --cfg
            jobs.append(Job(name, module, own, asked, named=name in chosen))
    if not jobs:
        return 0
    command = shlex.join(["lsexp", "reproduce", *words])
    folder = output.folder / _folder(chosen, typed)

    def report(found: Sequence[Found]) -> None:
        print(*write(found, folder, command), sep="\n")

    return carry_out("reproduce", words, jobs, output, dry_run=dry_run, detach=detach, after=report)


def _folder(chosen: Sequence[str], words: Sequence[str]) -> str:
    """Where the pages go: not over those of `lsexp report`, which has more, where it is of less.

    >>> _folder([], ["workers=2"]), _folder(["eps"], ["budget=smoke"])
    ('report', 'reproduce-eps-budget=smoke')
    """
    typed = f"{for_path([*chosen, *deciding(words)])}{of_own_files(words)}"
    return shortened(f"reproduce{typed}") if typed else "report"


def _names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of studies among the words, in the order of the paper, and the other words."""
    found, others, previous = [], [], ""
    for word in words:
        if "=" in word or word.startswith("-") or previous in compose.TAKES_VALUE:
            others.append(word)
        elif word in studies.names():
            found.append(word)
        else:
            raise unknown(word, "study", studies.names(), "lsexp reproduce --help")
        previous = word
    return [name for name in studies.ordered() if name in found], others


def _keys_of(name: str) -> set[str]:
    return {item.name for item in fields(studies.study(name, "").Config)}


def _check(words: Sequence[str], names: Sequence[str]) -> None:
    """Refuse what none of these studies has, and what goes with one alone."""
    own = set().union(*(_keys_of(name) for name in names))
    known = sorted({*own, *compose.known_keys(), *compose.sweep_keys()})
    sections = (*compose.GROUPS, *compose.SWEEP_GROUPS, "optim")
    kinds = {getattr(studies.study(name, ""), "PARTNER", None) for name in names}
    for word in words:
        name, equals, _ = word.partition("=")
        group, dot, _ = name.partition(".")
        if not equals or name.startswith("-"):
            continue
        if name in ("rows", "logits"):
            raise UserError(f"{word}: goes with one study, `lsexp sweep STUDY {word}`")
        if dot and group in studies.names():
            if group not in names:
                raise UserError(f"{word}: {group} is not among the studies that are asked for")
            key = name.removeprefix(f"{group}.")
            if {key, key.partition(".")[0]} & {*FOR_EVERY_STUDY}:
                raise UserError(f"{word}: is for all studies, write {key}={word.partition('=')[2]}")
        elif group in PARTNERS and "." in name:
            if group not in kinds:
                raise UserError(f"{word}: none of {', '.join(names)} has {group}s of its own")
        elif (
            dot
            and (close := difflib.get_close_matches(group, studies.names(), n=1))
            and (name not in known and group not in sections)
        ):
            raise UserError(f"{word}: no such study; did you mean {close[0]}.?")
        elif name not in known and group not in sections:
            raise unknown(word, "key", known, "lsexp reproduce --help")


def _check_recipe(words: Sequence[str], names: Sequence[str]) -> None:
    """Refuse the recipe of students where networks are asked for that nobody teaches."""
    kinds = {getattr(studies.study(name, ""), "PARTNER", None) for name in names}
    for word in words:
        teachers = TEACHERS_OF.get(word.removeprefix("recipe="), [])
        if word.startswith("recipe=") and teachers and kinds != {"teacher"}:
            raise UserError(
                f"{word}: its networks are students, which `lsexp reproduce distillation {word}` "
                f"trains; {', '.join(f'recipe={one}' for one in teachers)} of their teachers"
            )


def _words_of(name: str, module: Any, words: Sequence[str]) -> list[str]:
    """Those of the words that a study has, in its terms."""
    mine, kind = _keys_of(name), getattr(module, "PARTNER", None)
    others = set().union(*(_keys_of(other) for other in studies.names())) - mine
    protocol = {f"loss.{item.name}" for item in fields(DistillationConfig)}
    protocol -= {f"loss.{item.name}" for item in fields(LossConfig)}
    alone = [word.removeprefix(f"{name}.") for word in words if word.startswith(f"{name}.")]
    typed = {word.partition("=")[0] for word in alone}
    theirs = {word.partition("=")[0] for word in [*words, *alone]}
    taught = has_partner(name, module, [*words, *alone])
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        group, dot, _ = key.partition(".")
        if equals and (
            key in others | typed
            or (dot and group in studies.names())
            or (dot and group in PARTNERS and group != kind)
            or (key in protocol and kind != "teacher")
        ):
            continue
        if key == "recipe" and hasattr(module, "recipe_for"):
            word = f"recipe={module.recipe_for(value)}"
        of_both, of_network = group in OF_ALL_RUNS, key == "model" or group in OF_A_NETWORK
        if kind != "teacher" or not of_network:
            found.append(word)
        for_both = (taught and of_both) or (kind == "teacher" and of_network)
        if for_both and kind and f"{kind}.{key}" not in theirs:
            found.append(f"{kind}.{word}")
    return [*found, *alone]
