"""What a finished run leaves: weights, outputs, history, metrics with their provenance."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
import time
import traceback
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from lsexp.analysis.calibration import scores
from lsexp.config import walk
from lsexp.data.batches import Images
from lsexp.files import replace_file, sha256_of
from lsexp.launch.plan import Plan
from lsexp.runs.store import config_text, sealed
from lsexp.text import duration
from lsexp.training.evaluate import logits_of
from lsexp.training.hardware import Environment
from lsexp.training.history import history_text
from lsexp.training.loop import Diverged, Progress
from lsexp.training.member import Member

Segment = dict[str, Any]
"""What one process contributed to a run: environment, from_step, start, command, git."""


def segment(plan: Plan, env: Environment, from_step: int) -> Segment:
    """A segment that begins now."""
    return {
        "environment": env._asdict(),
        "from_step": from_step,
        "start": _iso(time.time()),
        "command": plan.command,
        "git": git_state(),
    }


def write_results(
    plan: Plan,
    attempt: Path,
    member: Member,
    images: dict[str, Images],
    progress: Progress,
    segments: list[Segment],
    taught: dict[str, Any] | None = None,
) -> None:
    """Everything that a finished run folder holds, metrics.json last.

    Args:
        images: of train, val (may be empty) and test.
        segments: of every process that trained it.
        taught: what taught a student.
    """
    model = member.model
    clean, test = images["train"], images["test"]
    threads = segments[-1]["environment"]["threads"]
    config = replace(plan.config, threads=threads)  # those in effect

    def logits(part: Images) -> np.ndarray:
        found = logits_of(model, member.preprocess, part)
        if not bool(found.isfinite().all()):
            raise Diverged(member.step, "an output of the trained network")
        return found.cpu().numpy()

    train_logits = logits(clean)
    final: dict[str, Any] = {}
    outputs = {"train.indices": torch.from_numpy(plan.splits.train)}
    which = {"val": plan.splits.val, "test": np.arange(len(test))}
    for split in ("val", "test"):
        if len(images[split]):
            labels, found = images[split].labels_N.cpu(), logits(images[split])
            final[split] = scores(found, labels.numpy())
            outputs[f"{split}.logits"] = torch.from_numpy(found)
            outputs[f"{split}.labels"] = labels
            outputs[f"{split}.indices"] = torch.from_numpy(which[split])
    # Copies, since a file of tensors that share memory (tied weights) is refused.
    weights = {name: t.cpu().contiguous().clone() for name, t in model.state_dict().items()}
    named = {"head": str(model.head_name)}
    replace_file(attempt / "model.safetensors", save(weights, metadata=named))
    replace_file(attempt / "outputs.safetensors", save(outputs))

    best: dict[str, Any] | None = None
    if progress.best is not None and progress.best_weights is not None:
        best = {"step": progress.best.step, **final}
        if progress.best.step != member.step:
            model.load_state_dict(progress.best_weights)
            for split in ("val", "test"):
                best[split] = scores(logits(images[split]), images[split].labels_N.cpu().numpy())
    replace_file(attempt / "history.csv", history_text(progress.history))
    replace_file(attempt / "config.yaml", config_text(config, plan.identity, plan.chosen))
    names = ("config.yaml", "history.csv", "model.safetensors", "outputs.safetensors")
    metrics = {
        **{split: final.get(split) for split in ("val", "test")},
        "best_val": best,
        "train": {
            "accuracy": float((train_logits.argmax(1) == clean.labels_N.cpu().numpy()).mean()),
            "images": len(clean),
        },
        "targets": plan.targets._asdict(),
        "classes": list(plan.dataset.arrays.classes),
        **({} if taught is None else {"teacher": taught}),
        "steps": member.step,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(member.step * config.train.batch_size / progress.seconds, 1),
        # Here too, since JSON is read a hundred times faster than config.yaml.
        "config": {**plan.chosen, **{name: value for name, _, value in walk(config)}},
        "identity": plan.identity,
        "checksums": {name: sha256_of(attempt / name) for name in names},
        "provenance": _provenance(plan, segments),
    }
    replace_file(attempt / "metrics.json", json.dumps(sealed(metrics), indent=1, allow_nan=False))


def summary(metrics: dict[str, Any]) -> str:
    """A small table of a finished run, for stdout."""
    lines = [f"{'':<30}{'accuracy':>10}{'nll':>10}{'ece':>10}{'brier':>10}"]
    rows = [(split, metrics[split]) for split in ("val", "test") if metrics[split]]
    if metrics["best_val"]:
        best = metrics["best_val"]
        rows.append((f"test at best val (step {best['step']})", best["test"]))
    for name, values in rows:
        lines.append(
            f"{name:<30}{values['accuracy']:>10.4f}"
            + "".join(f"{values[key]:>10.4f}" for key in ("nll", "ece", "brier"))
        )
    lines.append(
        f"{metrics['steps']} steps in {duration(metrics['seconds'])} "
        f"({metrics['images_per_second']:,.0f} images/s), "
        f"train accuracy {metrics['train']['accuracy']:.4f}"
    )
    return "\n".join(lines)


def failure(plan: Plan, error: Exception, **where: Any) -> dict[str, Any]:
    return {
        "error": f"{type(error).__name__}: {error}",
        "where": where,
        "traceback": "".join(traceback.format_exception(error)),
        "time": _iso(time.time()),
        "command": plan.command,
        "git": git_state(),
    }


def _provenance(plan: Plan, segments: list[Segment]) -> dict[str, Any]:
    """Where the numbers come from; the environment is that of the last segment."""
    packages = ("torch", "torchvision", "numpy", "numba", "hydra-core", "omegaconf", "lsexp")
    return {
        **segments[-1]["environment"],
        **{key: segments[-1][key] for key in ("command", "git")},
        "start": segments[0]["start"],
        "end": _iso(time.time()),
        "segments": segments,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "data": {
            "name": plan.dataset.name,
            "digest": plan.dataset.digest,
            "train_digest": plan.dataset.train_digest,
            "test_digest": plan.dataset.test_digest,
        },
        **plan.chosen,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # installed in another way
        return None


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that this package was imported from; None outside
    one."""
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(package), *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not installed below another repository
        changed = git("status", "--porcelain", "--", ":/lsexp", ":/configs")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


git_state()  # with the code that trains: the checkout may change while this process lives


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
