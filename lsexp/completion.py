"""Tab completion for bash and zsh; the shells ask `lsexp completion query LINE`. Free of torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any

from lsexp import compose, studies
from lsexp.config import LOSSES, MODELS, TrainConfig, walk
from lsexp.data.sources import OWN, SOURCES
from lsexp.errors import UserError
from lsexp.figures import FORMATS
from lsexp.runs.catalog import STATUSES
from lsexp.runs.store import runs_folder

HELP = """\
lsexp completion bash|zsh: tab completion for your shell

  bash, in ~/.bashrc:  eval "$(lsexp completion bash)"
  zsh, in ~/.zshrc after compinit:  eval "$(lsexp completion zsh)"
"""

BASH = """\
_lsexp() {
  local line="${COMP_LINE:0:COMP_POINT}"
  local current="${line##* }"
  mapfile -t COMPREPLY < <("${COMP_WORDS[0]}" completion query "$line" 2>/dev/null)
  # bash breaks words at "=": it wants only what follows.
  if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *"="* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*=}"}"}")
  fi
  [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
}
complete -F _lsexp lsexp
"""

ZSH = """\
_lsexp() {
  local -a found open closed
  local word line="${(j: :)words[1,CURRENT-1]} $PREFIX"
  found=("${(@f)$("${words[1]}" completion query "$line" 2>/dev/null)}")
  for word in $found; do
    if [[ "$word" == *= ]]; then open+=("$word"); else closed+=("$word"); fi
  done
  compadd -S '' -- $open
  compadd -- $closed
}
compdef _lsexp lsexp
"""


def run(words: list[str], commands: list[str]) -> int:
    """The command's words after `lsexp completion`; the exit code."""
    if words[:1] == ["query"]:
        for word in candidates(" ".join(words[1:]), commands):
            print(word)
        return 0
    scripts = {"bash": BASH, "zsh": ZSH, "--help": HELP, "-h": HELP}
    if len(words) != 1 or words[0] not in scripts:
        raise UserError(f"completion {' '.join(words)}".strip() + ": must be bash or zsh")
    print(scripts[words[0]], end="")
    return 0


def candidates(line: str, commands: list[str]) -> list[str]:
    """Words that could stand where `line` ends, each beginning with what is typed of it.

    >>> candidates("lsexp train recipe=mnist_m", ["train", "runs"])
    ['recipe=mnist_mlp']
    """
    *before, current = line.split(" ")
    words = [word for word in before if word]
    if len(words) <= 1:
        found = [*commands, "--help", "--version"]
    else:
        found = BY_COMMAND.get(words[1], lambda _words, _current: [])(words[2:], current)
    return sorted(word for word in found if word.startswith(current) and word not in words)


def _train(_words: list[str], current: str) -> list[str]:
    return _settings(current) or [*compose.FLAGS, "-m"]


def _runs(words: list[str], current: str) -> list[str]:
    if "=" in current:
        if current.startswith("status="):
            return [f"status={status}" for status in STATUSES]
        return _settings(current)
    verbs = [] if words else ["show", "rm", "repair"]
    flags = {"rm": ["--yes"], "repair": ["--yes", "--dry-run"]}.get("".join(words[:1]), ["--json"])
    return [*verbs, *flags, "--help", "status=", *_settings(current), *_names()]


def _sweep(words: list[str], current: str) -> list[str]:
    if not words:
        return [*studies.names(), "--help"]
    if words[0] not in studies.names():
        return []
    if current.startswith("figure.format="):
        return [f"figure.format={ending}" for ending in FORMATS]
    module = studies.study(words[0], "lsexp sweep")
    partner = f"{getattr(module, 'PARTNER', '')}."
    if partner != "." and current.startswith(partner):
        found = _settings(current.removeprefix(partner))
        return [f"{partner}{word}" for word in found if word[:-1] not in module.OWNED]
    if current.startswith("launcher="):
        return [f"launcher={option}" for option in compose.options("launcher", None)]
    if "=" in current or current.startswith("-"):
        found = _values(current, walk(module.Config())) or _settings(current)
        return found or ["--dry-run", "--detach", "--cfg", "--config-dir", "--help"]
    own = [f"{name}=" for name, _, _ in walk(module.Config())]
    settings = [key for key in _settings(current) if key[:-1] not in module.OWNED]
    hands = [f"{name}=" for name in compose.sweep_keys()]
    return [*own, "rows=", *hands, "figure.format=", "out_dir=", *settings]


def _plot(words: list[str], current: str) -> list[str]:
    if not words:
        return ["curves", *studies.names()]
    if words[0] in studies.names():
        files = ["logits="] if hasattr(studies.study(words[0], ""), "analyze_file") else []
        return [*_sweep(words, current), *files]
    if current.startswith("figure.format="):
        return [f"figure.format={ending}" for ending in FORMATS]
    if "=" in current:
        return _runs(["show"], current)
    return ["figure.format=", "out_dir=", "status=", *_settings(current), *_names()]


def _reproduce(words: list[str], current: str) -> list[str]:
    if "=" in current or current.startswith("-"):
        return _sweep(["eps"], current)
    own = (
        name for study in studies.names() for name, _, _ in walk(studies.study(study, "").Config())
    )
    return [*studies.names(), *(f"{name}=" for name in own), *_sweep(["eps"], current)]


def _report(_words: list[str], current: str) -> list[str]:
    if current.startswith("recipe="):
        return _settings(current)
    return [*studies.names(), "recipe=", "runs_dir=", "data_dir=", "out_dir="]


def _data(_words: list[str], _current: str) -> list[str]:
    names = [name for name in SOURCES if name not in OWN]
    return [*names, "data.image_size=", "data.url=", "data_dir="]


def _completion(_words: list[str], _current: str) -> list[str]:
    return ["bash", "zsh"]


BY_COMMAND: dict[str, Callable[[list[str], str], list[str]]] = {
    "train": _train,
    "sweep": _sweep,
    "reproduce": _reproduce,
    "report": _report,
    "runs": _runs,
    "plot": _plot,
    "data": _data,
    "completion": _completion,
}


def _names() -> list[str]:
    try:
        return [item.name for item in os.scandir(runs_folder(None)) if item.name[0] != "."]
    except OSError:
        return []


def _settings(current: str) -> list[str]:
    """`key=` for every key and group, or `key=value` where the values are known."""
    name, equals, _ = current.partition("=")
    if not equals:
        return [] if current.startswith("-") else [f"{key}=" for key in compose.known_keys()]
    if name in compose.GROUPS:
        return [f"{name}={option}" for option in compose.options(name, None)]
    models = (k for model in MODELS.values() for k in walk(model(), "model."))
    losses = (k for loss in LOSSES.values() for k in walk(loss(), "loss."))
    return _values(current, itertools.chain(walk(TrainConfig()), models, losses))


def _values(current: str, keys: Iterable[tuple[str, Field, Any]]) -> list[str]:
    """`key=value` of a key whose values are known."""
    name = current.partition("=")[0]
    for key, item, value in keys:
        if key == name and isinstance(value, bool):
            return [f"{name}=true", f"{name}=false"]
        if key == name and item.metadata["choices"]:
            return [f"{name}={choice}" for choice in item.metadata["choices"]]
    return []
