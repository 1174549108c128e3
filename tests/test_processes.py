"""Signals that stop a process, and which process is whose."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lsexp import processes
from lsexp.processes import TOGETHER, Process, caught_signals, is_gone, is_here


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_collected_and_the_handlers_come_back_only_without_one(number):
    before = signal.getsignal(number)
    try:
        with caught_signals() as caught:
            assert caught == []
        assert signal.getsignal(number) == before
        with caught_signals() as caught:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.Signals(number).name, "SIGTERM"]
        os.kill(os.getpid(), number)  # it must not cut the last words off
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)


def test_one_ctrl_c_of_which_two_tell_is_one():
    """The terminal, and the program that started this one."""
    with caught_signals(raises=True) as caught:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert caught == ["SIGINT"]
        time.sleep(TOGETHER)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_counts_where_it_does_not_raise():
    before = signal.getsignal(signal.SIGINT)
    try:
        with caught_signals() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(TOGETHER)
            os.kill(os.getpid(), signal.SIGINT)
        assert caught == ["SIGINT", "SIGINT"]
    finally:
        signal.signal(signal.SIGINT, before)
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)


def test_a_process_that_sleeps_is_here_until_it_is_gone():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process = Process(processes._machine(), sleeper.pid, processes._start(sleeper.pid))
        sleeper.send_signal(signal.SIGSTOP)
        assert is_here(process)
        assert not is_here(process._replace(start=""))  # cannot be told
        assert not is_here(process._replace(machine="elsewhere"))
        assert not is_here(process._replace(start="1"))  # another had its number
    finally:
        sleeper.kill()
        sleeper.wait()
    assert not is_here(process)
    assert is_gone(process)


MEMINFO = b"MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  2000 kB\nBuffers: 1 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 2_048_000),
        ({"proc/meminfo": b"MemTotal: 9000 kB\n"}, None),
        ({"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": b"max\n"}, 2_048_000),
        ({"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": b"500\n"}, 500),
        ({"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": b"3000000\n"}, 2_048_000),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": b"1:cpu:/other\n0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": b"max\n",
                "sys/fs/cgroup/job/memory.max": b"700\n",
                "sys/fs/cgroup/other/memory.max": b"1\n",
            },
            700,
        ),
    ],
    ids=["nothing", "plain", "old", "no limit", "limit", "high limit", "job"],
)
def test_memory_that_is_there(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert processes.available_memory(tmp_path) == expected


def test_memory_of_this_machine():
    there = processes.available_memory()
    assert there is None or there > 1_000_000
