import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lsexp.errors import UserError
from lsexp.runs import claims
from lsexp.runs.claims import Watch, acquire, create_exclusively, owner

NEVER_OVER = {"environment": {}, "over": lambda: False}


@pytest.fixture(autouse=True)
def quick_beat(monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)


def refuse_to_wait(record):
    raise TimeoutError(f"waited for {claims.describe(record)}")


def take(folder, *, timeout=5.0, **changes):
    return acquire(folder, timeout=timeout, **{**NEVER_OVER, "waiting": refuse_to_wait, **changes})


def foreign(folder, **changes):
    """A claim of a living process elsewhere, as its files stand here."""
    record = {"nonce": "a" * 16, "host": "elsewhere", "machine": "elsewhere/1", "pid": 1, **changes}
    (folder / "claim.json").write_text(json.dumps(record))
    (folder / f"attempt-{record['nonce']}").mkdir()
    return record


def test_the_first_claim_is_made_and_seen(tmp_path):
    claim = take(tmp_path)
    assert owner(tmp_path)["nonce"] == claim.record["nonce"]
    assert json.loads((tmp_path / "claim.json").read_text())["pid"] == os.getpid()
    assert claim.held()
    claim.stop_beat()


def test_a_living_owner_is_waited_for(tmp_path):
    claim = take(tmp_path)
    with pytest.raises(TimeoutError, match=f"process {os.getpid()} on "):
        take(tmp_path)
    assert claim.held()
    claim.stop_beat()


def test_a_released_claim_is_taken_at_once(tmp_path):
    first = take(tmp_path)
    first.release()
    assert json.loads((tmp_path / "claim.json").read_text())["released"]
    second = take(tmp_path)
    assert second.held()
    assert not first.held()
    second.stop_beat()


def test_the_claim_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path):
    code = (
        "import pathlib, sys; from lsexp.runs.claims import acquire;"
        "acquire(pathlib.Path(sys.argv[1]), timeout=9, environment={}, over=lambda: False,"
        " waiting=None); import os; os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    dead = owner(tmp_path)
    assert dead["pid"] != os.getpid()
    claim = take(tmp_path, timeout=1e9)
    assert claim.held()
    claim.stop_beat()


def test_a_reused_process_id_is_not_taken_for_the_owner(tmp_path):
    record = {**claims._new_record({}), "process_start": "1"}
    (tmp_path / "claim.json").write_text(json.dumps(record))
    claim = take(tmp_path, timeout=1e9)
    assert claim.held()
    claim.stop_beat()


def test_an_owner_elsewhere_is_taken_over_only_when_its_beat_stands_still(tmp_path):
    record = foreign(tmp_path)
    beat = tmp_path / f"attempt-{record['nonce']}" / "beat"
    stop = threading.Event()

    def live():
        count = 0
        while not stop.wait(0.05):
            count += 1
            beat.write_text(str(count))

    alive = threading.Thread(target=live)
    alive.start()
    deadline = time.monotonic() + 1.0

    def wait(_record):
        if time.monotonic() > deadline:
            stop.set()

    start = time.monotonic()
    claim = take(tmp_path, timeout=0.6, waiting=wait)
    alive.join()
    assert time.monotonic() - start > 1.5  # a second of life, then the timeout
    assert claim.held()
    claim.stop_beat()


def test_the_beat_of_a_claim_is_seen_moving(tmp_path):
    claim = take(tmp_path)
    watch = Watch(tmp_path, timeout=0.5)
    record = {**claim.record, "machine": "elsewhere"}
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert not watch.idle(record)
        time.sleep(0.05)
    claim.stop_beat()
    until = time.monotonic() + 2.0
    while not watch.idle(record):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_owner_that_was_taken_over_finds_out(tmp_path):
    first = take(tmp_path)
    heir = {"nonce": "b" * 16, "machine": "elsewhere"}
    assert create_exclusively(tmp_path / f"claim-after-{first.record['nonce']}.json", heir)
    until = time.monotonic() + 5
    while not first.lost:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not first.held()


def test_an_owner_whose_attempt_was_removed_finds_out_and_does_not_make_it_again(tmp_path):
    claim = take(tmp_path)
    (claim.attempt / "beat").unlink()
    claim.attempt.rmdir()
    until = time.monotonic() + 5
    while not claim.lost:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not claim.attempt.exists()


def test_a_claim_can_be_succeeded_once(tmp_path):
    record = foreign(tmp_path)
    path = tmp_path / f"claim-after-{record['nonce']}.json"
    made = [create_exclusively(path, {"nonce": str(k)}) for k in range(3)]
    assert made == [True, False, False]
    assert owner(tmp_path)["nonce"] == "0"


def test_a_sleeper_that_shows_its_old_claim_late_changes_nothing(tmp_path):
    record = foreign(tmp_path)
    heir = take(tmp_path, timeout=0.1, waiting=lambda _record: None)
    (tmp_path / "claim.json").write_text(json.dumps(record))
    assert heir.held()
    heir.stop_beat()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"nonce": 3}', b"null", b"\xff\xfe"])
def test_a_damaged_claim_is_taken_over_after_the_timeout(tmp_path, content):
    (tmp_path / "claim.json").write_bytes(content)
    with pytest.raises(TimeoutError):
        take(tmp_path, timeout=5)
    for _ in range(2):  # also where the successor's claim is damaged in turn
        claim = take(tmp_path, timeout=0.1, waiting=lambda _record: None)
        assert claim.held()
        claim.stop_beat()
        for path in tmp_path.glob("claim*.json"):
            path.write_bytes(content)


def test_an_owner_that_cannot_be_looked_up_for_once_goes_on_beating(tmp_path, monkeypatch):
    claim = take(tmp_path)
    answers = iter([OSError(116, "Stale file handle")] * 3)

    def stale(folder):
        for error in answers:
            raise error
        return owner(folder)

    monkeypatch.setattr(claims, "owner", stale)
    time.sleep(0.3)
    before = (claim.attempt / "beat").read_text()
    time.sleep(0.3)
    assert (claim.attempt / "beat").read_text() != before
    claim.stop_beat()


def test_a_claim_is_let_go_where_the_run_turns_out_to_have_failed(tmp_path):
    answers = iter([False])

    def over():
        for answer in answers:
            return answer
        raise UserError("failed before")

    with pytest.raises(UserError, match="failed before"):
        take(tmp_path, over=over)
    assert owner(tmp_path)["released"]
    assert not any(thread.name == "lsexp-claim" for thread in threading.enumerate())


def test_many_processes_at_once_get_one_claim(tmp_path):
    code = (
        "import pathlib, sys, time; from lsexp.runs.claims import acquire\n"
        "class Waited(Exception): pass\n"
        "def waiting(record): raise Waited\n"
        "print('ready', flush=True); at = float(sys.stdin.readline())\n"
        "while time.time() < at: pass\n"
        "try:\n"
        "    acquire(pathlib.Path(sys.argv[1]), timeout=99, environment={}, over=lambda: False,"
        " waiting=waiting)\n"
        "    print('mine', flush=True); sys.stdin.readline()\n"
        "except Waited: print('waited', flush=True)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(6)
    ]
    assert {process.stdout.readline() for process in started} == {"ready\n"}
    at = time.time() + 0.1
    for process in started:
        process.stdin.write(f"{at}\n")
    said = sorted(process.stdout.readline().strip() for process in started)
    for process in started:  # the owner has waited for all of them
        process.communicate()
    assert said == ["mine"] + ["waited"] * 5


def test_nothing_is_claimed_where_the_run_has_ended(tmp_path):
    assert take(tmp_path, over=lambda: True) is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ended_while_it_was_claimed_is_left_alone(tmp_path):
    answers = iter([False, True, True])
    assert take(tmp_path, over=lambda: next(answers)) is None
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_claims_are_exclusive_too(tmp_path, monkeypatch):
    def no_links(*_names):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    assert create_exclusively(tmp_path / "claim.json", {"nonce": "1"})
    assert not create_exclusively(tmp_path / "claim.json", {"nonce": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]


def test_release_keeps_an_attempt_that_can_be_resumed_and_only_that(tmp_path):
    claim = take(tmp_path)
    claim.release()
    assert not claim.attempt.exists()
    claim = take(tmp_path)
    (claim.attempt / "checkpoint.pt").write_bytes(b"")
    claim.release()
    assert [path.name for path in claim.attempt.iterdir()] == ["checkpoint.pt"]


def test_release_after_a_takeover_does_not_touch_the_heir(tmp_path):
    first = take(tmp_path)
    heir = {"nonce": "b" * 16, "machine": "elsewhere"}
    create_exclusively(tmp_path / f"claim-after-{first.record['nonce']}.json", heir)
    first.release()
    assert owner(tmp_path)["nonce"] == "b" * 16


def test_nothing_is_claimed_where_an_attempt_cannot_be_made(tmp_path, monkeypatch):
    def full(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space"):
        take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_without_a_thread_to_beat_is_let_go(tmp_path, monkeypatch):
    def none(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(RuntimeError, match="thread"):
            take(tmp_path)
    assert owner(tmp_path)["released"]
    assert not list(tmp_path.glob("attempt-*"))
    take(tmp_path).release()


def test_an_attempt_that_is_taken_away_before_it_is_claimed_is_made_anew(tmp_path, monkeypatch):
    """This process slept; whoever was quicker has cleared what is not its own."""
    write, tries = Path.write_text, []

    def sleep_then_write(path, text, *arguments, **keywords):
        if path.name == "beat":
            tries.append(path)
            if len(tries) == 1:
                path.parent.rmdir()
        return write(path, text, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", sleep_then_write)
    claimed = take(tmp_path)
    assert claimed.held()
    assert [path.parent == claimed.attempt for path in tries] == [False, True]
    claimed.release()


@pytest.mark.parametrize(
    "nonce", ["a/b", "../../x", "a\0b", "a" * 300, "\ud800", "", "A\n", 3, None, ["a"]]
)
def test_a_claim_whose_nonce_could_be_no_name_is_damaged(tmp_path, nonce):
    (tmp_path / "claim.json").write_text(json.dumps({"nonce": nonce, "machine": "elsewhere"}))
    assert owner(tmp_path) == {"nonce": "damaged-claim"}


def test_claims_that_go_round_in_a_ring_have_an_owner(tmp_path):
    for name, nonce in (("claim", "a"), ("claim-after-a", "b"), ("claim-after-b", "a")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"nonce": nonce}))
    assert owner(tmp_path)["nonce"] == "a"


@pytest.mark.parametrize("what", ["folder", "pipe", "deep"])
def test_what_is_no_claim_is_taken_over(tmp_path, what):
    path = tmp_path / "claim.json"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 100_000)
    assert owner(tmp_path) == {"nonce": "damaged-claim"}


def test_a_beat_that_is_no_text_stands_still(tmp_path):
    record = foreign(tmp_path)
    beat = tmp_path / f"attempt-{record['nonce']}" / "beat"
    beat.write_bytes(b"\xff\xfe")
    watch = Watch(tmp_path, 0.0)
    assert watch.idle(record)
