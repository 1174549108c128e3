"""Files that are there whole or not at all; what killed processes leave is cleared, no more."""

import os
import pathlib
import time

import pytest
from support import FORKS

from lsexp import files, processes
from lsexp.files import clear, is_left, remove, replace_file, scratch, scratch_folder, seal, whose
from lsexp.processes import Process


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, "old")

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def leave(folder):
    (scratch(folder / "file")).write_text("half")
    scratch(folder / "folder").mkdir()
    (folder / f".of-another~00000000-{os.getpid()}-1-00000000").write_text("of another machine")


def test_what_a_process_that_is_gone_has_left_is_cleared(tmp_path):
    process = FORKS.Process(target=leave, args=(tmp_path,))
    process.start()
    process.join()
    mine = scratch(tmp_path / "mine")
    mine.write_text("being written")
    for name in (".note", ".file~1-2-3", "file", f"file{whose()}"):
        (tmp_path / name).write_text("a person's")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert len(before) == 8
    clear(tmp_path, tmp_path / "absent")
    after = [path.name for path in tmp_path.iterdir()]
    assert len(after) == 6
    [other] = tmp_path.glob(".of-another*")
    assert mine.name in after
    os.utime(other, (1, time.time() - 2 * files.DAY))
    clear(tmp_path)
    assert not other.exists()
    assert mine.exists()


def test_names_tell_whose_they_are(tmp_path, monkeypatch):
    name = whose()
    assert is_left(name) is False
    assert is_left("anything") is None
    monkeypatch.setattr(processes, "_start", lambda _pid: None)
    assert is_left(f".file{name}") is True
    monkeypatch.setattr(processes, "_machine", lambda: "another")
    assert is_left(name) is None
    assert len(scratch(tmp_path / ("x" * 250)).name) < 250


def test_a_living_process_of_another_user_that_proc_hides_is_alive(monkeypatch):
    mine = processes.this()

    def hidden(_path):
        raise OSError(2, "hidden")

    monkeypatch.setattr(processes.Path, "read_text", hidden)
    assert processes._start(os.getpid()) == ""
    assert not processes.is_gone(mine)
    assert processes.is_gone(Process(mine.machine, 2**22 + 1, mine.start))
    assert not processes.is_gone(Process("another", 2**22 + 1, mine.start))


def test_a_scratch_folder_is_gone_afterwards_or_has_become_something(tmp_path):
    with scratch_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("whole")
        folder.rename(tmp_path / "new")
    with scratch_folder(tmp_path / "other") as folder:
        (folder / "file").write_text("half")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    remove(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        remove(tmp_path / "new")


def test_a_seal_is_of_values_and_not_of_how_they_are_written():
    assert seal({"a": 1.5, "b": [None, "ü"]}) == seal({"b": [None, "ü"], "a": 1.50})
    assert seal({"a": 1}) != seal({"a": 2})


def test_one_item_that_cannot_be_cleared_does_not_keep_the_others(tmp_path, monkeypatch):
    process = FORKS.Process(target=leave, args=(tmp_path,))
    process.start()
    process.join()
    left, unlink = [], pathlib.Path.unlink

    def refused(path, **keywords):
        left.append(path)
        if len(left) == 1:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **keywords)

    for number in range(3):
        name = next(tmp_path.glob(".file~*")).name[:-1]
        (tmp_path / f"{name}{number}").write_text("half")
    monkeypatch.setattr(pathlib.Path, "unlink", refused)
    clear(tmp_path)
    assert len(left) > 1
    assert len(list(tmp_path.glob(".file~*"))) == 1


@pytest.mark.parametrize("letter", ["x", "\u4e2d"])
def test_any_name_that_a_folder_can_have_can_be_made_aside(tmp_path, letter):
    folder = tmp_path / (letter * (255 // len(letter.encode())))
    folder.mkdir()
    remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_process_whose_start_was_not_known_is_not_gone():
    """No descriptor was free to read it, say."""
    mine = processes.this()
    assert not processes.is_gone(mine._replace(start=""))
    assert processes.is_gone(mine._replace(start="1"))
