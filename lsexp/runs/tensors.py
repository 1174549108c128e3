"""Files of named arrays that tell whether they are whole: snapshots, measurements.

safetensors notices a file that was cut; a checksum in its metadata one whose content changed, or
that stands where another belongs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

WHAT = "what"
"""The one entry of the metadata: safetensors writes several in any order."""


def packed(arrays: dict[str, np.ndarray], what: str) -> bytes:
    """The file that holds these.

    Args:
        what: they are, e.g. of which run and step.
    """
    from safetensors.numpy import save

    whole = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    return save(whole, metadata={WHAT: _label(whole, what)})


def unpacked(file: Path, what: str) -> dict[str, np.ndarray] | None:
    """What a file holds; None where it is not there, not as it was written, or something else."""
    from safetensors import safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            right = (opened.metadata() or {}).get(WHAT) == _label(arrays, what)
    except Exception:  # safetensors' own kinds
        return None
    return arrays if right else None


def _label(arrays: dict[str, np.ndarray], what: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return f"{what}, sha256 {digest.hexdigest()}"
