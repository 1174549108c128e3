"""Disturb a command, run it again, and compare what it leaves with an undisturbed one."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Started, history, lsexp, weights

INJECT = Path(__file__).parent / "inject"
TIMES = int(os.environ.get("LSEXP_FAULTS", 1))
"""How many of each kind; `make faults` sets it."""
MANY = pytest.mark.skipif("LSEXP_FAULTS" not in os.environ, reason="`make faults` runs it")
"""Of tests that the suite has no time for, which makes a dozen faults in a minute."""
CLOCK = ("seconds", "images_per_second", "provenance", "checksums")
"""Of the metrics, what a clock decides."""


class Scene:
    """A command in folders of its own, and what it leaves when nobody disturbs it.

    Args:
        before: commands that have been run when it begins.
        spoil: what has been done to the folders then.
    """

    def __init__(
        self,
        folder: Path,
        *words: str,
        before: tuple[tuple[str, ...], ...] = (),
        spoil: Callable[[Path], None] = lambda _cwd: None,
    ):
        self.folder, self.words = folder, words
        self.start = folder / "start"
        self.start.mkdir(parents=True)
        for command in before:
            done = lsexp(*command, cwd=self.start, env=ENV)
            assert done.returncode == 0, done.stderr
        spoil(self.start)
        self.whole = folder / "whole"
        shutil.copytree(self.start, self.whole)
        self.changes = {}
        """By the command and by its workers, of the file system."""
        for role in ("command", "worker"):
            again = shutil.copytree(self.start, folder / role)
            began = time.monotonic()
            done = self.run(again, fault=self.fault(again, "count", 0, role))
            self.seconds = time.monotonic() - began
            assert done.returncode == 0, done.stderr
            token = again.with_name(f"{role}.token")
            self.changes[role] = len(token.read_text()) if token.exists() else 0
            self.whole = again

    def fault(self, cwd: Path, what: str, at: int, role: str) -> dict[str, str]:
        """The environment in which it happens."""
        token = str(cwd.with_name(f"{cwd.name}.token"))
        fault = {"what": what, "at": at, "below": str(cwd), "role": role, "token": token}
        return {"LSEXP_TEST_FAULT": json.dumps(fault)}

    def run(
        self,
        cwd: Path,
        fault: dict[str, str] | None = None,
        *,
        start: bool = False,
        spawn: bool = False,
    ):
        env = {**ENV, **(fault or {})}
        return lsexp(*self.words, cwd=cwd, env=env, start=start, spawn=spawn)

    def disturbed(
        self, cwd: Path, what: str, rng: random.Random, role: str = "command", least: int = 1
    ):
        """A copy of the folders in which the command was disturbed once, and how it ended.

        Returns:
            As `subprocess.run`.
        """
        shutil.copytree(self.start, cwd)
        at = rng.randint(least, self.changes[role])
        # A fork has what its parent has freed: it would not run out of memory.
        done = self.run(cwd, fault=self.fault(cwd, what, at, role), spawn=what == "memory")
        assert cwd.with_name(f"{cwd.name}.token").exists(), "it never happened"
        return done

    def check(self, cwd: Path) -> None:
        """The same command ends well, and with what it leaves when nobody disturbs it."""
        done = self.run(cwd)
        assert done.returncode == 0, done.stderr
        self.compare(cwd)

    def compare(self, cwd: Path) -> None:
        assert everything(cwd) == everything(self.whole)
        for folder in runs(self.whole):
            same(cwd / folder.relative_to(self.whole), folder)
        for file in (self.whole / "out").rglob("*"):
            if file.is_file() and file.name not in TELL_SECONDS:
                assert (cwd / file.relative_to(self.whole)).read_bytes() == file.read_bytes(), file


ENV = {"LSEXP_DATA_DIR": "data", "PYTHONPATH": str(INJECT)}
TELL_SECONDS = ("runs.csv", "report.html", "report.md", "curves.csv")


def told_in_a_line(done) -> None:
    """It failed, and said why in its last line, without a traceback."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("lsexp: "), done.stderr


def runs(cwd: Path) -> list[Path]:
    return [path for path in sorted((cwd / "runs").iterdir()) if path.name[0] != "."]


def everything(cwd: Path) -> list[str]:
    """Names of all that there is, hidden ones included."""
    return sorted(
        str(path.relative_to(cwd))
        for path in cwd.rglob("*")
        if not path.name.startswith("events.out.tfevents")
    )


def same(folder: Path, whole: Path) -> None:
    """Two finished runs are alike, bit for bit, but for what a clock decides."""
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)
    names = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    found, wanted = (json.loads((one / "metrics.json").read_text()) for one in (folder, whole))
    for metrics in (found, wanted):
        for name in CLOCK:
            del metrics[name]
        del metrics["config"]["claim_timeout"]  # tests have shorter ones
    assert found["config"] == wanted["config"]
    assert found == wanted


def ended(process: Started) -> str:
    """What it has said on stderr."""
    return process.communicate(timeout=120)[1]
