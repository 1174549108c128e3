"""What a sweep leaves in `<runs_dir>/.sweeps/`: the words that were typed, and its runs.

With it a plot without words draws the newest sweep, and needs neither torch nor the data to find
its runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lsexp import studies
from lsexp.files import clear, remove, replace_file, seal, text_of
from lsexp.runs.identity import Science
from lsexp.runs.store import UNREADABLE, RunFolder
from lsexp.text import say


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
    """What a sweep was asked for: `words`, which gave one part, or with rows= several.

    aside: words that were typed too but name nothing of it: who trains, where figures go.
    of: the sweeps whose runs these are together, if there are several; not written.
    apart: keys and values that set the runs apart from those of other sweeps of the same words (a
        recipe was edited meanwhile, say); not written.
    """

    study: str
    words: list[str]
    parts: list[Part]
    aside: list[str] = field(default_factory=list)
    of: list[Manifest] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    def path(self, runs_dir: Path) -> Path:
        """Its file: other runs have another, and so has another view of the same runs."""
        view = unusual(studies.study(self.study, "").Config(**self.parts[0].keys))
        runs = [*(part.runs for part in self.parts), *([view] if view else [])]
        digest = hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()
        return runs_dir / ".sweeps" / f"{self.study}-{digest[:12]}.json"

    def where(self, words: Sequence[str]) -> Manifest:
        """The same, with folders as these words have them, for commands that find its runs."""
        folders = [w for w in words if w.partition("=")[0] in ("runs_dir", "data_dir")]
        names = {word.partition("=")[0] for word in folders}
        kept = [word for word in self.words if word.partition("=")[0] not in names]
        return replace(self, words=[*kept, *folders], of=[one.where(words) for one in self.of])

    def sweeps(self) -> list[Manifest]:
        """Those whose runs these are."""
        return self.of or [self]

    def names(self) -> set[str]:
        """Names of all runs."""
        return {run["name"] for part in self.parts for run in part.runs}

    def write(self, runs_dir: Path) -> None:
        path = self.path(runs_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        clear(path.parent)
        if path.is_dir():
            remove(path)
        whole = asdict(self) | {"time": time.time()}
        del whole["of"], whole["apart"]
        replace_file(path, json.dumps({**whole, "seal": seal(whole)}, indent=1))


def unusual(study: Any) -> dict[str, Any]:
    """Keys of a study with another value than the usual one; not its lists of numbers, which say
    how much is shown, not how."""
    numbers = ("list[float]", "list[int]")
    usual, found = type(study)(), {}
    for item in fields(study):
        value = getattr(study, item.name)
        if str(item.type) not in numbers and value != getattr(usual, item.name):
            found[item.name] = value
    return found


def together(study: str, sweeps: Sequence[Manifest]) -> Manifest:
    """Sweeps of a study (or of its kin) as one, which differ only in the lists of numbers that they
    were asked for: every list has what any of them has.

    Args:
        sweeps: the latest first; with the same recipes.
    """
    first, *others = sweeps
    if not others:
        return first
    # Whose runs others have all too need no command of their own.
    whole: list[Manifest] = []
    for one in sorted(sweeps, key=lambda one: (-len(one.names()), one.study != study)):
        if not one.names() <= {name for other in whole for name in other.names()}:
            whole.append(one)
    parts = []
    for alike in zip(*(one.parts for one in sweeps), strict=True):
        keys = dict(alike[0].keys)
        for name, value in keys.items():
            values = [part.keys[name] for part in alike]
            if value is not None and any(one != value for one in values):
                keys[name] = sorted({number for one in values for number in one})
        runs = {run["name"]: run for part in reversed(alike) for run in part.runs}
        parts.append(replace(alike[0], keys=keys, runs=[*runs.values()]))
    return replace(first, parts=parts, of=whole)


VARIED = {
    *("seed", "loss.eps", "loss.temperature", "loss.t_squared", "loss.student_temperature"),
    *("loss.teacher", "loss.teacher_step"),
}
"""What runs of one sweep differ in."""


def experiments(sweeps: Sequence[Manifest], runs_dir: Path) -> list[list[Manifest]]:
    """Sweeps of the same words, those of one experiment together: a recipe may have been edited
    meanwhile, data or code of the user's changed, or another precision chosen.

    Args:
        sweeps: the latest first; each is told what sets it `apart`.
    """
    kinds: list[tuple[dict[Any, Science], list[Manifest]]] = []
    for one in sweeps:
        found = _sciences(one, runs_dir)
        for known, alike in kinds:
            if all(known.get(kind, science) == science for kind, science in found.items()):
                known |= found
                alike.append(one)
                break
        else:
            kinds.append((found, [one]))
    every = [science for found, _ in kinds for science in found.items()]
    for found, alike in kinds:
        apart = {
            f"{name}={str(value)[:12]}"
            for kind, science in found.items()
            for name, value in science.items()
            if any(other.get(name) != value for of, other in every if of == kind)
        }
        for one in alike:
            one.apart = sorted(apart)
    return [alike for _, alike in kinds]


def _sciences(manifest: Manifest, runs_dir: Path) -> dict[Any, Science]:
    """What decides the result of its runs, beside what they differ in: of each kind of them, by the
    first that is there."""
    found: dict[Any, Science] = {}
    for part in manifest.parts:
        for run in part.runs:
            kind = part.chosen["recipe"], run["keys"].get("role"), run["keys"].get("step")
            if kind not in found:
                whole = RunFolder(runs_dir / run["name"]).identity()
                if whole is not None:
                    found[kind] = {name: whole[name] for name in whole if name not in VARIED}
    return found


def newest_manifest(study: str, runs_dir: Path) -> Manifest | None:
    """That of the latest sweep of a study; damaged ones are passed over, and said."""
    return max(_manifests(study, runs_dir), key=lambda pair: pair[0], default=(0.0, None))[1]


def _manifests(study: str, runs_dir: Path) -> list[tuple[float, Manifest]]:
    paths = (runs_dir / ".sweeps").glob(f"{study}-*.json")
    return [found for path in paths for found in _read(study, path)]


def _read(study: str, path: Path) -> list[tuple[float, Manifest]]:
    """A record, and when it was written; nothing where it cannot be used."""
    try:
        stored = json.loads(text_of(path))
        if stored.pop("seal") != seal(stored):
            raise ValueError("changed since it was written")
        when = float(stored.pop("time"))
        stored["parts"] = [Part(**part) for part in stored["parts"]]
        manifest = Manifest(**stored)
    except FileNotFoundError:
        return []
    except (OSError, *UNREADABLE) as error:
        _tell(f"{path}: damaged ({error}); passed over, and the same sweep makes it anew")
        return []
    with contextlib.suppress(KeyError, TypeError):  # of a version with other keys
        if _whole(study, manifest):
            return [(when, manifest)]
    return []


@functools.cache
def _tell(message: str) -> None:
    """Once, however often it is read."""
    say(message)


def _whole(study: str, manifest: Manifest) -> bool:
    """Whether this version can read it.

    Raises:
        KeyError, TypeError: it cannot.
    """
    config = studies.study(study, "").Config
    for part in manifest.parts:
        config(**part.keys)
        _ = part.chosen["recipe"], part.chosen["budget"]
        _ = [(run["keys"]["eps"], run["name"]) for run in part.runs]
    return manifest.study == study and bool(manifest.parts)


def newest_with_runs(study: str, module: Any, runs_dir: Path) -> Manifest | None:
    """The latest sweep of a study, else of another that trains the same runs, as this study's; one
    whose runs have all been removed only where no other is left."""
    found = _latest_first(_manifests(study, runs_dir))
    found += _latest_first(_of_kin(study, module, runs_dir))
    left = (one for one in found if any((runs_dir / name).is_dir() for name in one.names()))
    return next(left, found[0] if found else None)


def all_with_runs(study: str, module: Any, runs_dir: Path) -> list[Manifest]:
    """Sweeps of a study, and of others that train the same runs, the latest first."""
    return _latest_first([*_manifests(study, runs_dir), *_of_kin(study, module, runs_dir)])


def _latest_first(found: Sequence[tuple[float, Manifest]]) -> list[Manifest]:
    return [manifest for _, manifest in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _of_kin(study: str, module: Any, runs_dir: Path) -> list[tuple[float, Manifest]]:
    """Sweeps of other studies that train the same runs: keys and runs are those of this study, the
    words those of the other, by whose name they go."""
    kin = [name for name in studies.names() if studies.study(name, "").runs is module.runs]
    found = [pair for name in kin if name != study for pair in _manifests(name, runs_dir)]
    names = [item.name for item in fields(module.Config)]
    for _, manifest in found:
        for part in manifest.parts:
            keys = {name: value for name, value in part.keys.items() if name in names}
            if hasattr(module, "drawn"):
                keys["eps"] = module.drawn(keys["eps"])
                part.runs = [run for run in part.runs if run["keys"]["eps"] in keys["eps"]]
            part.keys = asdict(module.Config(**keys))
    return found
