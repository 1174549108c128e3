"""Faults inside a real process: at the n-th change that it makes to files below a folder.

LSEXP_TEST_FAULT holds a JSON object: `what` (below), `at` (n, from 1), `below` (the folder), `role`
(command or worker) and `token`, a file that is made when the fault happens: it happens once.
Python imports this at the start of a worker, since its folder is on PYTHONPATH; a command that
tests fork, and a worker forked from that, run it by themselves.

  count    nothing; the number of changes is kept in the token
  kill     SIGKILL before the change
  torn     SIGKILL in the middle of writing the next file of more than some bytes
  full     from there on every write fails: no space left on device
  memory   from there on the process gets hardly any more memory
  stop     SIGSTOP; also int, term, hup
"""

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree")
SIGNALS = {"stop": "SIGSTOP", "int": "SIGINT", "term": "SIGTERM", "hup": "SIGHUP"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SHORT = 100
"""Bytes after which a write is torn."""
WORKER = "lsexp-worker"
SPARE = 4 << 20
"""Bytes of memory that are left."""


def install(fault):
    """Watch what this process does from now on."""
    state = {"changes": 0, "full": False, "busy": False}
    process = os.getpid()

    def concerns(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes) or not flags & WRITES:
                return False
        elif event in CHANGES:
            path = arguments[0]
            if event == "os.rename" and arguments[2] != -1:  # relative to an opened folder
                return True
        else:
            return False
        return str(Path.cwd() / os.fsdecode(path)).startswith(fault["below"])

    def happens():
        try:
            os.close(os.open(fault["token"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def strike():
        what = fault["what"]
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "torn":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (SHORT, SHORT))
        elif what == "full":
            state["full"] = True
        elif what == "memory":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + SPARE
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        else:
            os.kill(os.getpid(), getattr(signal, SIGNALS[what]))

    def hook(event, arguments):
        if state["busy"] or not concerns(event, arguments) or os.getpid() != process:
            return
        state["busy"] = True  # what is done here is no change of the command's
        try:
            state["changes"] += 1
            if fault["what"] == "count":
                with Path(fault["token"]).open("a") as file:
                    file.write(".")
            elif state["changes"] >= fault["at"] and not state.get("struck"):
                state["struck"] = True
                if happens():
                    strike()
        finally:
            state["busy"] = False
        if state["full"] and event != "os.remove":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(hook)


def of_this_process():
    with contextlib.suppress(KeyError):
        fault = json.loads(os.environ["LSEXP_TEST_FAULT"])
        spawned = "--multiprocessing-fork" in sys.orig_argv and "spawn_main" in str(sys.orig_argv)
        worker = spawned or multiprocessing.current_process().name == WORKER
        if fault["role"] == ("worker" if worker else "command"):
            install(fault)


of_this_process()
