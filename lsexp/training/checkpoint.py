"""A checkpoint file: whether it is whole can be told."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import torch


def pack(state: dict[str, Any]) -> bytes:
    """The saved state behind its SHA-256."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    return hashlib.sha256(content).digest() + content


def unpack(whole: bytes) -> dict[str, Any]:
    """The state in `whole`. Raises ValueError where it was cut or changed.

    >>> unpack(pack({"step": 3}))
    {'step': 3}
    >>> unpack(pack({"step": 3})[:-1])
    Traceback (most recent call last):
    ValueError: its checksum does not fit
    """
    if hashlib.sha256(whole[32:]).digest() != whole[:32]:
        raise ValueError("its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(whole[32:]), weights_only=True)
    except Exception as error:  # torch's and pickle's own kinds, with advice that is not for here
        raise ValueError("it holds what no checkpoint does") from error
    if not isinstance(state, dict):
        raise ValueError("it is no checkpoint")
    return state
