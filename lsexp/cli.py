"""The `lsexp` command: words to a config to a command; help, one-line errors.

Torch is imported inside commands only, so that help answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

from lsexp.errors import NOT_OURS, UserError, no_memory, unknown

HELP = """\
lsexp: a laboratory for label smoothing
("When Does Label Smoothing Help?", Müller, Kornblith, Hinton, NeurIPS 2019)

  lsexp train [key=value ...]    train one run, or show it if it is trained
  lsexp sweep STUDY [...]        train what a study of the paper lacks; its table and figure
  lsexp plot STUDY [...]         the same from what is trained
  lsexp reproduce [STUDY ...]    sweep every study, and the report of them
  lsexp report [STUDY ...]       what has been swept, on one page
  lsexp runs [show|rm|repair]    what has been trained: list, look into, remove, mend
  lsexp plot curves [...]        loss and accuracy of chosen runs over training
  lsexp data [NAME ...]          fetch, import and verify data sets
  lsexp bench [recipe=NAME]      how fast this machine trains, and could

  lsexp completion bash|zsh      tab completion for your shell

  lsexp COMMAND --help           keys, groups and examples of a command
  lsexp --version

Folders: data_dir= or LSEXP_DATA_DIR (default: the user's cache folder),
         runs_dir= or LSEXP_RUNS_DIR (default: runs),
         out_dir= or LSEXP_OUT_DIR (default: out).
Exit codes: 0 done, 1 the work failed, 2 the words were wrong.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` (default: sys.argv) names; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    try:
        try:
            return _dispatch(words)
        finally:
            if sys.stdout is not None:  # `>&-`
                sys.stdout.flush()
    except UserError as error:
        print(f"lsexp: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lsexp: interrupted", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"lsexp: {where}{error.strerror}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        line = no_memory(error)  # a plan or a measurement may ask for too much, too
        if line is None:
            raise
        print(f"lsexp: {line}; a smaller network or batch needs less", file=sys.stderr)
        return 1


class _Lasting(io.FileIO):
    """A stream whose reader may leave (`lsexp ... | head`): the work, and its exit code, go on."""

    of: Any = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                return len(data)
            raise  # a full disk: it is told once


def _lasting(stream: Any) -> Any:
    """A stream of this process as `_Lasting`; a terminal that knows no ü shows ? instead."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="replace")
    raw = getattr(stream.buffer, "raw", stream.buffer)  # the latter: PYTHONUNBUFFERED
    if not isinstance(raw, io.FileIO) or isinstance(raw, _Lasting):
        return stream
    stream.flush()
    lasting = _Lasting(stream.fileno(), "w", closefd=False)
    lasting.of = stream  # which would close it when nobody refers to it any more
    live = stream.line_buffering or stream.write_through or stream is sys.stderr
    return io.TextIOWrapper(
        io.BufferedWriter(lasting), encoding=stream.encoding, errors="replace", line_buffering=live
    )


def _dispatch(words: list[str]) -> int:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:  # it could not be recorded with a run
            raise UserError(f"{word!a}: is not text in UTF-8") from error
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"lsexp {version('lsexp')}")
        return 0
    if words[0] not in COMMANDS:
        raise unknown(words[0], "command", COMMANDS, "lsexp --help")
    return COMMANDS[words[0]](words[1:])


def _train(words: list[str]) -> int:
    from lsexp import compose
    from lsexp.config import check
    from lsexp.text import say

    if any(word in ("-h", "--help") for word in words):
        print(compose.train_help(), end="")
        return 0
    dry_run = "--dry-run" in words
    configs = compose.train_configs([word for word in words if word != "--dry-run"])

    for config, _ in configs:  # all, before the first is trained
        check(config)

    from lsexp.launch import local, plan, results

    failed: list[UserError] = []
    for config, chosen in configs:
        try:
            run = plan.plan(config, chosen, ["lsexp", "train", *words], remember=not dry_run)
            if dry_run:
                print(plan.describe(run), plan.describe_state(run), sep="\n")
                continue
            say(plan.describe(run))
            if run.done():
                say("finished before: not trained again")
            metrics = local.execute(local.begin_again(run))
        except local.Stopped:
            raise
        except UserError as error:
            if len(configs) == 1:
                raise
            say(f"lsexp: {error}")  # the others of a multirun go on
            failed.append(error)
            continue
        print(f"{results.summary(metrics)}\n{run.folder.path}", flush=True)
    if failed:
        code = min(error.exit_code for error in failed)  # 2 where all are of the words
        raise UserError(f"{len(failed)} of {len(configs)} runs failed, see above", exit_code=code)
    return 0


def _runs(words: list[str]) -> int:
    if words and words[0] == "repair" and not {"-h", "--help"} & {*words}:
        from lsexp.launch import repair

        return repair.run(words[1:])
    from lsexp.runs import command

    return command.run(words)


def _sweep(words: list[str]) -> int:
    from lsexp.sweep import command

    return command.run_sweep(words)


def _plot(words: list[str]) -> int:
    from lsexp import curves, studies
    from lsexp.sweep import command

    if words and words[0] in studies.names():
        return command.run_plot(words)
    return curves.run(words)


def _reproduce(words: list[str]) -> int:
    from lsexp import reproduce

    return reproduce.run(words)


def _report(words: list[str]) -> int:
    from lsexp.report import command

    return command.run(words)


def _data(words: list[str]) -> int:
    from lsexp.data import command

    return command.run(words)


def _bench(words: list[str]) -> int:
    from lsexp import bench

    return bench.run(words)


def _completion(words: list[str]) -> int:
    from lsexp import completion

    return completion.run(words, list(COMMANDS))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "reproduce": _reproduce,
    "report": _report,
    "runs": _runs,
    "plot": _plot,
    "data": _data,
    "bench": _bench,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
