"""The one exception that a user is meant to see, and which errors become it."""

from __future__ import annotations

import difflib
import errno
import importlib
from collections.abc import Iterable
from typing import Any

NOT_OURS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EREMOTEIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
)
"""What a machine, its network or what stands in a place refuses, which is no bug."""
NO_MEMORY = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory"),
    "can't start new thread",
)
"""In what PyTorch raises, on a GPU and for tensors in the machine's own memory; and Python."""


class UserError(Exception):
    """Something that the user can mend, told in one line without a traceback.

    The message names the key or file, its value, what is allowed and, where one helps, the
    command. `exit_code` is 2 when the words were wrong and 1 when the work failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(printable(" ".join(message.split())))
        self.exit_code = exit_code


def printable(text: str) -> str:
    """Text without what a terminal obeys, which names of files and the like may hold.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def unknown(word: str, what: str, known: Iterable[str], help_command: str) -> UserError:
    """The error for a word that is not among the known ones, with the closest of them.

    >>> print(unknown("eps=1", "key", ["loss.eps", "seed"], "lsexp train --help"))
    eps=1: no such key; did you mean loss.eps? `lsexp train --help` lists them
    >>> print(unknown("esp=1", "key", ["loss.eps", "seed"], "lsexp train --help"))
    esp=1: no such key; did you mean loss.eps? `lsexp train --help` lists them
    >>> print(unknown("xyz", "key", ["loss.eps", "seed"], "lsexp train --help"))
    xyz: no such key; `lsexp train --help` lists them
    """
    name, words = word.partition("=")[0], list(known)
    close = [other for other in words if other.rpartition(".")[2] == name]
    if not close:  # by whole names, and by their last parts
        full = {other.rpartition(".")[2]: other for other in words}
        full |= {other: other for other in words}
        close = [full[one] for one in difflib.get_close_matches(name, full, n=1, cutoff=0.65)]
    hint = f" did you mean {close[0]}?" if close else ""
    return UserError(f"{word}: no such {what};{hint} `{help_command}` lists them")


def no_memory(error: BaseException) -> str | None:
    """What an error says of memory that did not suffice; None for other errors.

    >>> no_memory(MemoryError())
    'out of memory'
    >>> no_memory(ValueError("out of range")) is None
    True
    """
    told = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )
    return (str(error) or "out of memory").splitlines()[0].rstrip(".") if told else None


def torchvision(part: str) -> Any:
    """`torchvision.<part>`, imported where it is needed (it takes two seconds).

    Raises:
        UserError: the installed torchvision and torch do not belong together.
    """
    try:
        return importlib.import_module(f"torchvision.{part}")
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        # "operator torchvision::nms does not exist", mostly
        import torch

        raise UserError(
            f"torchvision does not fit torch {torch.__version__} ({error}): install two "
            f"versions that belong together, such as those of constraints.txt",
            exit_code=1,
        ) from error
