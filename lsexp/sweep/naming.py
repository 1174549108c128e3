"""Which of the words that were typed name what comes out, and the folders named by them."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lsexp import compose, studies
from lsexp.config import SweepConfig, walk
from lsexp.sweep.manifest import Manifest, unusual
from lsexp.text import user_path

LONGEST = 200
"""Characters of a folder's name."""
ONCE = ("retry_failed=", "resume=restart", "teacher.resume=restart", "student.resume=restart")
"""How words begin that are meant for one time."""


def name_of(module: Any, manifest: Manifest, recipes: Sequence[str]) -> str:
    """The folder of a study's figures: recipes, budget, and what else makes others of it."""
    config = module.Config(**manifest.parts[0].keys)
    begins = f"{'+'.join(recipes)}-{manifest.parts[0].chosen['budget']}"
    typed = f"{for_path(typed_of(manifest))}{of_own_files(manifest.words)}"
    return shortened(f"{begins}{typed}{view_of(config)}")


def view_of(study: Any) -> str:
    """What differs from the usual view, for the name of a folder: other views stand beside it."""
    words = []
    for name, value in unusual(study).items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        words.append(f"{name}={text.lower() if isinstance(value, bool) else text}")
    return for_path(words)


def typed_of(manifest: Manifest) -> list[str]:
    """Words that were typed and make other runs than the recipe's."""
    known = {item.name for item in fields(studies.study(manifest.study, "").Config)}
    known |= {"rows", "recipe", "budget"}
    return [word for word in deciding(manifest.words) if word.partition("=")[0] not in known]


def deciding(words: Sequence[str]) -> list[str]:
    """Keys among the words that may change what comes out."""
    aside = {name for name, item, _ in walk(SweepConfig()) if item.metadata.get("aside")}
    aside -= {"data.name", "data.path", "data.image_size"}
    found = []
    for word in words:
        name, equals, _ = word.partition("=")
        of_launcher = name.partition(".")[0] in compose.SWEEP_GROUPS
        if equals and not (word.startswith("-") or name in aside or of_launcher):
            found.append(word)
    return found


def lasting(words: Sequence[str]) -> list[str]:
    """Words to be typed again: without those that are meant once."""
    return [word for word in words if not word.startswith(ONCE)]


def own_folder(words: Sequence[str]) -> Path | None:
    """The folder of `--config-dir`, absolute.

    >>> own_folder(["eps=0", "--config-dir", "/own"])
    PosixPath('/own')
    """
    for word, after in itertools.pairwise([*words, ""]):
        name, equals, folder = word.partition("=")
        if name in ("--config-dir", "-cd"):
            return user_path("--config-dir", folder if equals else after).absolute()
    return None


def of_own_files(words: Sequence[str]) -> str:
    """The user's folder, for a name, where the words choose a file of it: another folder may have
    another recipe of that name."""
    folder = own_folder(words)
    if folder is None:
        return ""
    groups = {"rows": "recipe", "teachers": "recipe"}
    for word in words:
        name, _, value = word.partition("=")
        last = name.rpartition(".")[2]
        group = groups.get(last, last)
        if group in compose.GROUPS and not {*value.split(",")} <= {*compose.options(group, None)}:
            return f"-{_plain(folder.name)}_{_digest(str(folder))}"
    return ""


def for_path(words: Sequence[str]) -> str:
    """Words for the end of a folder's name; where not all of one is told there, a digest sets it
    apart.

    >>> for_path(["optim.lr=0.1", "data.path=x/1.npz"])
    '-optim.lr=0.1-data.path=x_1.npz_d71952'
    """
    found = []
    for word in words:
        plain = _plain(word)
        whole = plain == word and len(plain) <= 60
        found.append(f"-{plain}" if whole else f"-{plain[:53]}_{_digest(word)}")
    return "".join(found)


def of_file(path: Path) -> str:
    """What is drawn of a file of logits is named by it; in another folder there may be one of the
    same name.

    >>> of_file(Path("theirs.npz"))
    'logits-theirs'
    """
    elsewhere = "" if path.parent == Path() else f"_{_digest(str(path.absolute()))}"
    return f"logits-{path.stem[:100]}{elsewhere}"


def shortened(name: str) -> str:
    """Of a name that is too long for a folder its beginning, and a digest."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 7]}_{_digest(name)}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.,=]", "_", text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
