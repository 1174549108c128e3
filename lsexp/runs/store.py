"""The files of a run folder: read, written in attempts, published at once.

    runs/<name>/
      config.yaml            resolved, whole; `identity` holds the science fields
      history.csv            a row a pass over the training images
      model.safetensors      final weights
      snapshots/step-*.safetensors   weights on the way, where they were asked for
      outputs.safetensors    <split>.logits [N, K], .labels, .indices of val and test; train.indices
      metrics.json           written last: the run is finished when it exists
      failure.json           instead, when the run failed
      events.out.tfevents.*  TensorBoard
      claim*.json            who trains it now; gone when finished
      attempt-<nonce>/       what one process has made so far, its checkpoint.pt included
      restart                checkpoints that are older do not count; gone when finished

A process writes into its own attempt only. Publishing starts with one rename of the attempt to
`publishing`, which fails where another stands; the files then move up, metrics.json last.
Whoever finds a `publishing` left by a killed process carries it through.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lsexp import files
from lsexp.config import TrainConfig
from lsexp.errors import UserError
from lsexp.files import replace_file, sha256_of, text_of
from lsexp.runs import claims
from lsexp.runs.claims import Claim
from lsexp.runs.identity import Science, digest
from lsexp.text import user_path

PUBLISHING = "publishing"
RESTART = "restart"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
"""To open one whose files are moved: never through a link, which may lead anywhere."""
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading YAML or JSON that somebody else wrote may end in."""


class Damaged(UserError):
    """A file of a run is not as it was written."""

    def __init__(self, path: Path, what: str, run: str):
        self.what = what
        folder = next(at.parent for at in (path, *path.parents) if at.name == run)
        command = f"lsexp runs repair {run}{elsewhere(folder)}"
        super().__init__(f"{path}: {what}; `{command}` makes it again", exit_code=1)


def runs_folder(runs_dir: str | None) -> Path:
    """`runs_dir`, else $LSEXP_RUNS_DIR, else runs/ in the working folder."""
    return user_path("runs_dir", runs_dir or os.environ.get("LSEXP_RUNS_DIR") or "runs")


def elsewhere(folder: Path) -> str:
    """What a command that is told about a run needs behind its name: ` runs_dir=FOLDER`, or nothing
    where it looks into this folder of runs by itself."""
    if folder.resolve() == runs_folder(None).resolve():
        return ""
    return f" runs_dir={shlex.quote(str(folder))}"


class RunFolder:
    """A run's folder, finished or not."""

    def __init__(self, path: Path):
        self.path = path

    def finished(self) -> bool:
        """Whether metrics.json exists; a publishing that was cut off is carried through first."""
        self.settle()
        return (self.path / "metrics.json").exists()

    def metrics(self) -> dict[str, Any]:
        """Those of a finished run.

        Raises:
            Damaged: the file is not as it was written.
        """
        metrics = self._json("metrics.json")
        if not whole(metrics):
            raise Damaged(self.path / "metrics.json", CHANGED, self.path.name)
        return metrics

    def verified_metrics(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The metrics of a finished run whose files are as they were published.

        Args:
            names: of the files to look at; None: all that metrics.json has a checksum of.

        Raises:
            Damaged: naming the file that is missing or changed.
        """
        try:
            metrics = self.metrics()
        except FileNotFoundError as error:  # removed meanwhile
            raise Damaged(self.path / "metrics.json", "missing", self.path.name) from error
        of = digest(metrics["identity"])
        if not self.path.name.endswith(of):
            raise Damaged(self.path / "metrics.json", f"of another run ({of})", self.path.name)
        for name, what in self.damage(metrics, names).items():
            raise Damaged(self.path / name, what, self.path.name)
        return metrics

    def damage(
        self, metrics: dict[str, Any], names: Collection[str] | None = None
    ) -> dict[str, str]:
        """What is wrong with the files of a finished run, by name; as in `verified_metrics`."""
        found = {}
        for name, checksum in metrics["checksums"].items():
            path = self.path / name
            if name == "metrics.json" or (names is not None and name not in names):
                continue
            try:
                if not path.is_file():
                    found[name] = "missing"
                elif sha256_of(path) != checksum:
                    found[name] = CHANGED
            except OSError as error:  # not for us to read, say
                found[name] = str(error.strerror or error).lower()
        return found

    def snapshot(self, step: int) -> Path:
        """Where the weights after so many updates are, if they were kept."""
        return snapshot_path(self.path, step)

    def failure(self) -> dict[str, Any] | None:
        """What failure.json says, None without one; where it cannot be read, that."""
        if not (self.path / "failure.json").exists():
            return None
        try:
            return self._json("failure.json")
        except Damaged as error:
            return {"error": f"failure.json: {error.what}"}

    def reads(self, name: str) -> bool:
        """Whether a JSON file can be read, or is not there."""
        try:
            self._json(name)
        except FileNotFoundError:
            return True
        except Damaged:
            return False
        return True

    def create(self, config: TrainConfig, identity: Science, chosen: dict[str, str]) -> None:
        """Make the folder and its config.yaml.

        One that is not of this experiment is made anew; a finished run's is left to `damage`.

        Raises:
            UserError: a folder that cannot be written.
        """
        path = self.path / "config.yaml"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.identity() is None and not (self.path / "metrics.json").exists():
                replace_file(path, config_text(config, identity, chosen))
        except OSError as error:
            raise UserError(
                f"runs_dir={self.path.parent}: {error.strerror} ({error.filename}); name a folder "
                f"that can be written: runs_dir=FOLDER or LSEXP_RUNS_DIR",
                exit_code=1,
            ) from error

    def checkpoints(self) -> list[Path]:
        """Checkpoints that attempts have left and that count, newest first."""
        outdated, found = 0, []
        with contextlib.suppress(OSError):
            outdated = (self.path / RESTART).stat().st_mtime_ns
        for path in self.path.glob("attempt-*/checkpoint.pt"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime_ns > outdated:
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def outdate_checkpoints(self) -> None:
        """Have whoever takes the run over begin it again. A process that trains it now, which may
        be of another machine, loses nothing: the checkpoints that it makes from now on count."""
        if self.checkpoints():
            replace_file(self.path / RESTART, "")

    def remove_attempts(self, keep: Path | None = None) -> None:
        """Delete attempts other than `keep`; their processes, if any, notice and stop."""
        for path in self.path.glob("attempt-*"):
            if path != keep:
                self.remove(path)

    def remove(self, attempt: Path) -> None:
        """Delete an attempt: out of sight whole, so that no half of it can be published."""
        with contextlib.suppress(OSError):
            files.remove(attempt)

    def publish(self, claim: Claim) -> bool:
        """Make a complete attempt the run's result.

        Returns:
            False where the claim was lost or another attempt got there first.
        """
        for path in claim.attempt.rglob("*"):
            files.fsync(path)
        claim.stop_beat()
        published = False
        if claim.held():
            try:
                claim.attempt.rename(self.path / PUBLISHING)
                published = True
            except OSError as error:
                # Another attempt stands there and is carried through instead, or took ours away.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
        self.settle()
        return published

    def fail(self, claim: Claim, failure: dict[str, Any], *, keep_checkpoint: bool) -> None:
        """Record that the run failed, unless another process owns it now, and let go of it.

        The history so far is kept; with `keep_checkpoint`, another try goes on from there.
        """
        try:
            if claim.held():
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(claim.attempt / "history.csv", self.path / "history.csv")
                replace_file(self.path / "failure.json", json.dumps(failure, indent=1))
            if not keep_checkpoint:
                self.remove(claim.attempt)
        finally:  # also where the disk is full
            claim.release()

    def forget_failure(self) -> None:
        """Make room for another try."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def settle(self) -> None:
        """Carry a begun publishing through, and clear what a finished run does not need.

        Safe at any time, by any process, also several at once: files are moved relative to the
        opened folder, so a process that slept meanwhile cannot move those of a later one.
        """
        try:
            top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)  # which may be a link
        except OSError:
            return
        try:
            publishing = self.path / PUBLISHING
            if publishing.is_symlink() or publishing.is_file():  # none of ours: nothing is in it
                with contextlib.suppress(OSError):
                    publishing.unlink()
            elif publishing.exists():
                with contextlib.suppress(FileNotFoundError):
                    self._move_up(top)
        finally:
            os.close(top)
        if (self.path / "metrics.json").exists():
            self.remove_attempts()
            # Where the folder is read-only, it is finished all the same.
            with contextlib.suppress(OSError):
                claims.clear(self.path)
                for name in ("failure.json", RESTART):
                    (self.path / name).unlink(missing_ok=True)
            files.clear(self.path, self.path / "measured", self.path / "snapshots")

    def _move_up(self, top: int) -> None:
        source = os.open(PUBLISHING, FOLDER, dir_fd=top)
        try:
            # Whoever published before us has put metrics.json in place, for good.
            if not (self.path / "metrics.json").exists():
                # The checkpoint stays behind, kept until now so that no kill costs the training.
                names = set(os.listdir(source)) - {"checkpoint.pt"}  # noqa: PTH208
                for name in sorted(names, key=lambda name: name == "metrics.json"):
                    _move(name, source, top)
                os.fsync(top)
            with contextlib.suppress(FileNotFoundError):  # of another, after a long sleep of ours
                now = os.stat(PUBLISHING, dir_fd=top)
                if (now.st_dev, now.st_ino) == _inode(source):
                    shutil.rmtree(self.path / PUBLISHING, ignore_errors=True)
        finally:
            os.close(source)

    def identity(self) -> Science | None:
        """The science fields in config.yaml; None where that is absent, cannot be read, or is not
        of the run that the folder is named after."""
        try:
            _, found = config_of(self.path)
            return found if self.path.name.endswith(digest(found)) else None
        except (FileNotFoundError, IsADirectoryError, *UNREADABLE):
            return None

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json_of(self.path / name)
        except FileNotFoundError:
            raise
        except OSError as error:
            what = str(error.strerror or error).lower()
            raise Damaged(self.path / name, what, self.path.name) from error
        except ValueError as error:
            raise Damaged(self.path / name, "damaged", self.path.name) from error


def _move(name: str, source: int, target: int) -> None:
    """A file or folder from one opened folder to another, in the place of what is there; a folder
    file by file, into that which is there. Whoever else moves the same does no harm."""
    with contextlib.suppress(FileNotFoundError):
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENOTDIR):  # something else stands there
                if error.errno == errno.EISDIR:
                    shutil.rmtree(name, ignore_errors=True, dir_fd=target)
                else:
                    os.unlink(name, dir_fd=target)
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            folders = [os.open(name, FOLDER, dir_fd=source)]
            try:
                folders.append(os.open(name, FOLDER, dir_fd=target))
                for file in os.listdir(folders[0]):  # noqa: PTH208
                    _move(file, *folders)
                os.fsync(folders[1])
            finally:
                for folder in folders:
                    os.close(folder)


def _inode(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


CHANGED = "changed since it was published"


def sealed(metrics: dict[str, Any]) -> dict[str, Any]:
    """For metrics.json: with a checksum of themselves among those of the files."""
    checksums = {**metrics["checksums"], "metrics.json": _seal(metrics)}
    return {**metrics, "checksums": checksums}


def whole(metrics: dict[str, Any]) -> bool:
    """Whether metrics are as they were written."""
    checksums = metrics.get("checksums")
    return isinstance(checksums, dict) and checksums.get("metrics.json") == _seal(metrics)


def _seal(metrics: dict[str, Any]) -> str:
    others = {name: sha for name, sha in metrics["checksums"].items() if name != "metrics.json"}
    return files.seal({**metrics, "checksums": others})


def snapshot_path(folder: Path, step: int) -> Path:
    """In a run folder, or in an attempt's."""
    return folder / "snapshots" / f"step-{step}.safetensors"


def kept_snapshots(folder: Path) -> dict[int, Path]:
    """Those that are there in a run folder, or in an attempt's, by their steps, in order."""
    names = {one: one.stem.removeprefix("step-") for one in folder.glob("snapshots/step-*")}
    steps = {int(name): one for one, name in names.items() if name.isdecimal()}
    return {step: one for step, one in sorted(steps.items()) if one == snapshot_path(folder, step)}


def aside_of(folder: Path, count: int) -> Path:
    """Where a finished run is trained once more for `count` snapshots; gone when they are there."""
    return folder.parent / ".aside" / str(count) / folder.name


def asides_of(folder: Path) -> list[Path]:
    """All of these that are there, of any number of snapshots."""
    return sorted(folder.parent.glob(f".aside/*/{folder.name}"))


def snapshot_of(identity: Science, step: int) -> str:
    """What the file of a snapshot says that it is, so that one in another's place is noticed."""
    return f"weights of {digest(identity)} after step {step}"


def config_text(config: TrainConfig, identity: Science, chosen: dict[str, str]) -> str:
    """config.yaml: the names chosen, every key in effect, and the science fields."""
    values = asdict(config)
    del values["budgets"], values["budget"]  # the recipe's menu, not what was trained
    whole = {"chosen": chosen, **values, "identity": identity}
    return yaml.safe_dump(whole, sort_keys=False)


def config_of(folder: Path) -> tuple[dict[str, Any], Science]:
    """What config.yaml holds: key to value, names of recipe and budget among them, and the science
    fields.

    Raises:
        OSError, or one of `UNREADABLE`.
    """
    text = text_of(folder / "config.yaml")
    whole = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C: 7 times as fast
    identity, config = dict(whole.pop("identity")), dict(whole.pop("chosen"))
    for section, value in whole.items():
        if isinstance(value, dict):
            config |= {f"{section}.{name}": one for name, one in value.items()}
        else:
            config[section] = value
    return config, identity


def json_of(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        OSError as `text_of`; ValueError where that is anything but an object.
    """
    try:
        found = json.loads(text_of(path))
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path}: no JSON object")
    return found
