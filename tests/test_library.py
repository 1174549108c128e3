"""`from lsexp import ...`."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_plan

import lsexp
from lsexp.launch.local import execute

README = Path(__file__).resolve().parents[1] / "README.md"


def test_everything_that_is_offered_is_there_and_says_what_it_does():
    for name in lsexp.__all__:
        found = getattr(lsexp, name)
        assert found.__doc__, name
        assert name in dir(lsexp)
    with pytest.raises(AttributeError, match="no attribute 'eece'"):
        _ = lsexp.eece


def test_functions_that_docstrings_name_are_offered():
    modules = [import_module(f"lsexp.{module}") for module in lsexp._PLACES]
    for name in lsexp.__all__:
        for named in re.findall(r"`(\w+)`", getattr(lsexp, name).__doc__):
            known = any(inspect.isfunction(getattr(module, named, None)) for module in modules)
            assert named in lsexp.__all__ or not known, f"{name} names {named}"


@pytest.mark.parametrize(
    "name", [name for name in lsexp.__all__ if lsexp._MODULES[name].startswith(("ana", "loss"))]
)
def test_docstrings_say_what_goes_in_and_what_is_refused(name):
    function = getattr(lsexp, name)
    lines = [line.strip() for line in inspect.getdoc(function).splitlines()]
    assert "Raises:" in lines
    assert any(line.startswith(">>> ") for line in lines)
    if len(inspect.signature(function).parameters) > 1:
        assert "Args:" in lines


def test_studies_are_imported_without_scipy():
    """`scipy.stats` alone would take a second, at every Tab and --help."""
    code = (
        "import sys; from lsexp.studies import "
        "calibration, distillation, eps, information, projections; "
        "print([name for name in sys.modules if name.split('.')[0] == 'scipy'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_neither_hydra_nor_torch_is_needed_for_arrays():
    code = """
import sys
import lsexp
for name in lsexp.__all__:
    getattr(lsexp, name) if lsexp._MODULES[name] != "losses" else None
print(sorted({"hydra", "omegaconf", "torch", "matplotlib"} & set(sys.modules)))
lsexp.smoothed_cross_entropy
print(sorted({"hydra", "omegaconf", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def blocks():
    """Indented blocks of the README."""
    lines = [*README.read_text().splitlines(), ""]
    found, block = [], []
    for line in lines:
        if line.startswith("    ") or (block and not line):
            block.append(line[4:])
        elif block:
            found.append("\n".join(block).strip())
            block = []
    return found


def test_what_the_readme_does_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(tiny_plan(tmp_path / "runs", "recipe=digits_mlp"))
    rng = np.random.default_rng(0)
    names = {
        "val_logits": rng.normal(size=(50, 3)),
        "val_labels": rng.integers(0, 3, 50),
        "test_logits": rng.normal(size=(50, 3)),
        "test_labels": rng.integers(0, 3, 50),
        "logits": torch.zeros(2, 3),
        "labels": torch.tensor([0, 1]),
    }
    first, second = [code for code in blocks() if code.startswith("from lsexp import")]
    exec(first, names)
    assert len(names["runs"]) == 1
    exec(second, names)
    assert names["loss"].item() == pytest.approx(np.log(3))


def test_the_study_that_the_readme_shows_is_the_real_one():
    shown = [code for code in blocks() if code.startswith(("def runs(", "UNCHANGED = "))]
    assert len(shown) == 2
    source = (README.parent / "lsexp/studies/eps.py").read_text()
    assert all(code in source for code in shown)
