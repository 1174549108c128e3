"""The command `lsexp reproduce`: every study, trained together, and the report of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from lsexp import compose, studies
from lsexp.config import SweepConfig, walk
from lsexp.errors import UserError, unknown
from lsexp.sweep.asked import PARTNERS, ask
from lsexp.sweep.command import Job, carry_out
from lsexp.sweep.manifest import Manifest
from lsexp.sweep.show import Output

HELP = """\
lsexp reproduce [STUDY ...] [key=value ...]: train, measure and draw every study, then the report

  lsexp reproduce                              all studies on the embedded digits, in minutes
  lsexp reproduce recipe=mnist_mlp seeds=5     all that MNIST's network can show
  lsexp reproduce eps calibration recipe=cifar10_alexnet budget=cpu
  lsexp reproduce --dry-run                    what is to do, and about how long it would take

Any key of `lsexp sweep STUDY`, for every study that has it, and of `lsexp train`, for every run.
A run that several studies need is trained once. Stopped in the middle, the same command goes on.
"""


def run(words: list[str]) -> int:
    """The words after `lsexp reproduce`; the exit code."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    dry_run = "--dry-run" in words
    output, typed = Output.split([word for word in words if word != "--dry-run"])
    chosen = _names(typed)
    typed = [word for word in typed if word not in chosen]
    _check(typed, chosen or studies.ordered())
    jobs = []
    for name in chosen or studies.ordered():
        module = studies.study(name, "lsexp reproduce")
        own = _words_of(name, typed)
        try:
            asked = ask(name, module, own)
        except UserError as error:
            if name in chosen:
                raise UserError(f"{name}: {error}") from error
            raise
        if not asked:
            return 0
        jobs.append(Job(name, module, own, asked, named=name in chosen))
    out = output.folder
    data_dir = jobs[0].asked[0].base.data_dir

    def report(manifests: Sequence[Manifest], runs_dir: Path) -> None:
        from lsexp.report.command import write

        command = " ".join(["lsexp", "reproduce", *words])
        print(*write(manifests, runs_dir, data_dir, out, command), sep="\n")

    return carry_out("reproduce", words, jobs, output, dry_run=dry_run, after=report)


def _names(words: Sequence[str]) -> list[str]:
    """Names of studies among the words, in the order of the paper."""
    found = []
    previous = ""
    for word in words:
        if "=" not in word and not word.startswith("-") and previous not in compose.TAKES_VALUE:
            if word not in studies.names():
                raise unknown(word, "study", studies.names(), "lsexp reproduce --help")
            found.append(word)
        previous = word
    return [name for name in studies.ordered() if name in found]


def _check(words: Sequence[str], names: Sequence[str]) -> None:
    """Refuse what no study has, and what goes with one alone."""
    own = {item.name for name in names for item in fields(studies.study(name, "").Config)}
    known = sorted({*own, *(name for name, _, _ in walk(SweepConfig())), *compose.known_keys()})
    for word in words:
        name, equals, _ = word.partition("=")
        if equals and name in ("rows", "logits"):
            raise UserError(f"{word}: goes with one study, `lsexp sweep STUDY {word}`")
        group = name.partition(".")[0]
        if equals and name not in known and group not in (*PARTNERS, *compose.GROUPS, "optim"):
            if name.startswith("-"):
                continue
            raise unknown(word, "key", known, "lsexp reproduce --help")


def _words_of(name: str, words: Sequence[str]) -> list[str]:
    """Those of the words that a study has: keys of other studies are left out."""
    module = studies.study(name, "")
    mine = {item.name for item in fields(module.Config)}
    others = {
        item.name for other in studies.names() for item in fields(studies.study(other, "").Config)
    } - mine
    kind = getattr(module, "PARTNER", None)
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        group = key.partition(".")[0]
        if equals and (key in others or (group in PARTNERS and group != kind)):
            continue
        if key == "recipe" and hasattr(module, "recipe_for"):
            word = f"recipe={module.recipe_for(value)}"
        found.append(word)
    return found
