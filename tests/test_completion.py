"""Tab completion, in real shells on a terminal."""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsexp.completion import candidates

COMMANDS = ["train", "runs", "completion"]


def offered(line):
    return candidates(line, COMMANDS)


def test_commands_flags_keys_groups_and_values_are_offered():
    assert offered("lsexp tr") == ["train"]
    assert "runs" in offered("lsexp ")
    assert offered("lsexp train --dry") == ["--dry-run"]
    assert offered("lsexp train loss.s") == [
        "loss.scale=",
        "loss.spread=",
        "loss.student_temperature=",
    ]
    assert offered("lsexp train loss.match=l") == ["loss.match=logits"]
    assert offered("lsexp train recipe=digits_m") == ["recipe=digits_mlp"]
    assert offered("lsexp train recipe=cifar10_") == [
        "recipe=cifar10_alexnet",
        "recipe=cifar10_distill",
        "recipe=cifar10_distill_thin",
        "recipe=cifar10_resnet56",
        "recipe=cifar10_resnet56_thin",
    ]
    assert offered("lsexp train model.stem=") == ["model.stem=imagenet", "model.stem=small"]
    assert offered("lsexp train seed=1 loss.spread=o") == ["loss.spread=others"]
    assert offered("lsexp train optim.nesterov=") == ["optim.nesterov=false", "optim.nesterov=true"]
    assert offered("lsexp runs status=fa") == ["status=failed"]
    assert offered("lsexp sweep e") == ["eps"]
    assert offered("lsexp sweep eps se") == ["seeds="]
    assert offered("lsexp sweep eps loss.e") == []
    assert offered("lsexp sweep distillation teacher.train.st") == ["teacher.train.steps="]
    assert offered("lsexp sweep information student.model=mlp_m") == ["student.model=mlp_mnist"]
    assert offered("lsexp sweep information student.see") == []
    assert offered("lsexp sweep eps --dr") == ["--dry-run"]
    assert offered("lsexp plot ") == [
        "calibration",
        "curves",
        "distillation",
        "eps",
        "information",
        "projections",
    ]
    assert offered("lsexp plot projections method=t") == ["method=templates_pca", "method=tsne"]
    assert offered("lsexp plot calibration logits") == ["logits="]
    assert offered("lsexp plot eps figure.format=s") == ["figure.format=svg"]
    assert offered("lsexp completion ") == ["bash", "zsh"]
    assert offered("lsexp nothing ") == []
    assert offered("lsexp train loss.eps=") == []


@pytest.mark.parametrize("line", ["lsexp train ", "lsexp sweep distillation ", "lsexp reproduce "])
def test_nothing_heavy_is_imported_between_tab_and_words(line):
    code = (
        "import sys; from lsexp.cli import main; main(['completion', 'query', sys.argv[1]]);"
        "heavy = {'torch', 'scipy.stats', 'pandas', 'matplotlib', 'numba', 'omegaconf'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, line], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 10
    assert done.stderr.splitlines() == ["[]"]


def test_names_of_runs_are_offered(tmp_path, monkeypatch):
    (tmp_path / "digits-mlp-eps0-seed0-0123456789ab").mkdir()
    monkeypatch.setenv("LSEXP_RUNS_DIR", str(tmp_path))
    assert offered("lsexp runs show dig") == ["digits-mlp-eps0-seed0-0123456789ab"]


def typed(shell, setup, line, completed):
    """What a person sees who types `line` in an interactive shell, `completed` at the end."""
    child, terminal = pty.fork()
    if child == 0:
        bin_dir = str(Path(sys.executable).parent)
        env = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}
        os.execvpe(shell[0], shell, env)
    seen = b""
    try:
        for text in (setup + "\n", "echo re''ady\n", line):
            os.write(terminal, text.encode())
            mark = {line: completed, "echo re''ady\n": "ready"}.get(text, "")
            seen = _until(terminal, mark)
        return seen
    finally:
        os.write(terminal, b"\x03\x04")
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)


def _until(terminal, mark):
    """Read until the last line ends with `mark`, for 20 seconds at most."""
    seen, deadline = b"", time.monotonic() + 20
    os.set_blocking(terminal, False)
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            seen += os.read(terminal, 4096)
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
        if rendered(shown).endswith(mark) or mark in shown.splitlines():
            return shown
        time.sleep(0.05)
    return shown


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(lsexp completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u -D; eval "$(lsexp completion zsh)"',
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("lsexp tra\trec\tmnist_m\t", "lsexp train recipe=mnist_mlp"),
        ("lsexp train bud\tsm\t --dry\t", "lsexp train budget=smoke --dry-run"),
    ],
)
def test_typing_tab(shell, line, completed):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command, setup = SHELLS[shell]
    seen = typed(command, setup, line, completed)
    assert rendered(seen).endswith(completed), seen


def rendered(seen):
    """The last line of a terminal that was sent `seen`."""
    line = ""
    for character in seen.replace("\x07", ""):
        back, new = character == "\x08", character in "\r\n"
        line = line[:-1] if back else "" if new else line + character
    return " ".join(line.split())


def test_the_scripts_are_valid_shell():
    for shell in ("bash", "zsh"):
        if shutil.which(shell) is not None:
            script = subprocess.run(
                [sys.executable, "-m", "lsexp.cli", "completion", shell],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            subprocess.run([shell, "-n"], input=script, text=True, check=True)
