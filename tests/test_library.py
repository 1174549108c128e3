"""`from lsexp import ...`."""

import subprocess
import sys

import pytest

import lsexp


def test_everything_that_is_offered_is_there_and_says_what_it_does():
    for name in lsexp.__all__:
        found = getattr(lsexp, name)
        assert found.__doc__, name
        assert name in dir(lsexp)
    with pytest.raises(AttributeError, match="no attribute 'eece'"):
        _ = lsexp.eece


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
