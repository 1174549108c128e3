"""Downloads, against a server of this machine that behaves as badly as the real ones."""

import gzip
import hashlib
import io
import multiprocessing
import os
import pickle
import tarfile
import time
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from support import serving

from lsexp.config import DataConfig
from lsexp.data import download, load, sources
from lsexp.data.canonical import canonical
from lsexp.data.download import fetch
from lsexp.errors import UserError
from lsexp.files import whose

OF_ANOTHER = "file~00000000-1-2-00000000.part"
"""Begun by a process of another machine."""

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how it behaves; the rest names the file."""

    def do_GET(self):
        behaviour, _, name = self.path[1:].partition("/")
        self.server.asked.append((behaviour, name, self.headers.get("Range")))
        getattr(self, f"be_{behaviour}")(self.server.files.get(name, b""))

    def send(self, content, *, status=200, length=None, kind="application/octet-stream"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def be_good(self, content):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send(content[start:], status=206 if start else 200)

    def be_plain(self, content):
        self.send(content)  # knows no Range

    def be_cut(self, content):
        self.send(content[: len(content) // 3], length=len(content))

    def be_html(self, _content):
        self.send(b"<html>Sign in</html>", kind="text/html; charset=utf-8")

    def be_busy(self, _content):
        self.send_error(503)

    def be_gone(self, _content):
        self.send_error(404)

    def be_other(self, content):
        self.send(content[::-1])

    def be_silent(self, content):
        self.send(content[:1000], length=len(content))
        self.server.closing.wait(10)

    def be_slow(self, content):
        self.send(b"", length=len(content))
        for start in range(0, len(content), 2000):
            self.wfile.write(content[start : start + 2000])
            if self.server.closing.wait(0.05):
                return

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server():
    with serving(Handler) as server:
        server.files, server.asked = {"file": CONTENT}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server


def get(server, to, *behaviours):
    fetch([f"{server.url}/{behaviour}/file" for behaviour in behaviours], to, MD5)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_whole_and_only_once(server, tmp_path):
    get(server, tmp_path / "file", "good")
    get(server, tmp_path / "file", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert left(tmp_path) == ["file"]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("cut", r"broke off"),
        ("html", "web page"),
        ("busy", "503"),
        ("gone", "404"),
        ("other", "md5"),
    ],
)
def test_a_bad_mirror_is_told_and_the_next_is_taken(server, tmp_path, bad, why):
    with pytest.raises(UserError, match=why) as caught:
        get(server, tmp_path / "file", bad)
    assert caught.value.exit_code == 1
    assert f"/{bad}/file" in str(caught.value)
    assert not (tmp_path / "file").exists()
    get(server, tmp_path / "file", bad, "good")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_a_mirror_sent_before_it_broke_off_is_not_fetched_again(server, tmp_path):
    get(server, tmp_path / "file", "cut", "good")
    assert server.asked[-1] == ("good", "file", f"bytes={len(CONTENT) // 3}-")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_mirror_that_cannot_continue_sends_the_whole_file(server, tmp_path):
    get(server, tmp_path / "file", "cut", "plain")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_beginning_is_thrown_away(server, tmp_path):
    (tmp_path / OF_ANOTHER).write_bytes(b"something else")
    os.utime(tmp_path / OF_ANOTHER, (1, 1))
    get(server, tmp_path / "file", "good", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert left(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_continued(server, tmp_path):
    (tmp_path / OF_ANOTHER).write_bytes(CONTENT[:5000])
    os.utime(tmp_path / OF_ANOTHER, (1, 1))
    get(server, tmp_path / "file", "good")
    assert server.asked == [("good", "file", "bytes=5000-")]
    assert left(tmp_path) == ["file"]


def test_what_a_killed_process_of_this_machine_left_is_continued_at_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    for size in (100, 5000):
        killed = context.Process(target=begin, args=(tmp_path, size))
        killed.start()
        killed.join()
    assert len(left(tmp_path)) == 2
    get(server, tmp_path / "file", "good")
    assert server.asked == [("good", "file", "bytes=5000-")]
    assert left(tmp_path) == ["file"]


def begin(folder, size):
    (folder / f"file{whose()}.part").write_bytes(CONTENT[:size])


def test_what_another_process_is_writing_is_left_to_it(server, tmp_path):
    here = f"file{whose()}.part"
    for name in (OF_ANOTHER, here):
        (tmp_path / name).write_bytes(CONTENT[:5000])
    get(server, tmp_path / "file", "good")
    assert left(tmp_path) == sorted(["file", OF_ANOTHER, here])
    assert server.asked == [("good", "file", None)]


def test_a_silent_mirror_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.3)
    start = time.monotonic()
    with pytest.raises(UserError, match="sent nothing for"):
        get(server, tmp_path / "file", "silent")
    assert time.monotonic() - start < 3
    get(server, tmp_path / "file", "silent", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_slow_mirror_is_left_while_there_is_another_and_waited_for_else(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "CRAWL_SECONDS", 0.3)
    get(server, tmp_path / "file", "slow", "good")
    assert [behaviour for behaviour, *_ in server.asked] == ["slow", "good"]
    (tmp_path / "file").unlink()
    server.files["file"] = CONTENT[:30_000]
    fetch([f"{server.url}/slow/file"], tmp_path / "file", hashlib.md5(CONTENT[:30_000]).hexdigest())
    assert (tmp_path / "file").read_bytes() == CONTENT[:30_000]


def test_no_server_at_all(tmp_path):
    with pytest.raises(UserError, match=r"failed: .*refused"):
        fetch(["http://127.0.0.1:9/file"], tmp_path / "file", MD5)


def test_a_damaged_file_that_is_there_is_said_to_be_so(server, tmp_path):
    (tmp_path / "file").write_bytes(b"half")
    with pytest.raises(UserError, match=r"file is damaged, or another file .*503"):
        get(server, tmp_path / "file", "busy")
    get(server, tmp_path / "file", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_full_disk_is_told_as_such(server, tmp_path, monkeypatch):
    def full(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(UserError, match="No space left on device"):
        get(server, tmp_path / "file", "good")


# Public sets


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def mnist(server, monkeypatch):
    """A small MNIST that the server has, and that is taken for the real one."""
    from torchvision import datasets

    rng = np.random.RandomState(0)
    arrays = {
        "train-images-idx3-ubyte.gz": rng.randint(0, 256, (40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte.gz": np.arange(40, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte.gz": rng.randint(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte.gz": np.arange(10, dtype=np.uint8),
    }
    server.files = {name: idx(array) for name, array in arrays.items()}
    resources = [(name, hashlib.md5(data).hexdigest()) for name, data in server.files.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    parts = [
        array.astype(np.int64) if array.ndim == 1 else array[..., None] for array in arrays.values()
    ]
    expected = canonical("mnist", sources.Arrays(*parts, tuple("0123456789")))
    public = sources.PUBLIC["mnist"]._replace(
        archives=tuple(arrays),
        mirrors=(f"{server.url}/busy/{{}}", f"{server.url}/good/{{}}"),
        digests=(expected.train_digest, expected.test_digest),
    )
    monkeypatch.setitem(sources.PUBLIC, "mnist", public)
    return expected


def test_a_public_set_is_downloaded_unpacked_verified_and_remembered(
    server, mnist, tmp_path, capsys
):
    found = load(DataConfig(name="mnist"), str(tmp_path))
    assert found.digest == mnist.digest
    assert found.arrays.classes == tuple("0123456789")
    np.testing.assert_array_equal(found.arrays.train_images, mnist.arrays.train_images)
    asked = len(server.asked)
    assert load(DataConfig(name="mnist"), str(tmp_path)).digest == mnist.digest
    assert len(server.asked) == asked
    assert capsys.readouterr().out == ""


def test_an_npz_is_used_before_anything_is_fetched(server, mnist, tmp_path):
    a = mnist.arrays
    np.savez(
        tmp_path / "mnist.npz",
        x_train=a.train_images, y_train=a.train_labels, x_test=a.test_images, y_test=a.test_labels,
    )  # fmt: skip
    assert load(DataConfig(name="mnist"), str(tmp_path)).digest == mnist.digest
    assert server.asked == []


def test_archives_that_are_there_are_used_without_network(server, mnist, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in server.files.items():
        (folder / name).write_bytes(content)
    assert load(DataConfig(name="mnist"), str(tmp_path)).digest == mnist.digest
    assert server.asked == []


@pytest.mark.parametrize("damage", ["missing", "cut", "labels"])
def test_what_torchvision_has_unpacked_is_used_and_its_damage_told(server, mnist, tmp_path, damage):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in server.files.items():
        (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(content))
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    assert load(DataConfig(name="mnist"), str(tmp_path)).digest == mnist.digest
    hurt = folder / "t10k-labels-idx1-ubyte"
    if damage == "missing":
        hurt.unlink()
    else:
        content = whole[hurt]
        hurt.write_bytes(content[:-3] if damage == "cut" else content[:-1] + b"\0")
    with pytest.raises(UserError, match=rf"remove {folder}, and it is fetched again"):
        load(DataConfig(name="mnist"), str(tmp_path))
    hurt.write_bytes(whole[hurt])
    assert load(DataConfig(name="mnist"), str(tmp_path)).digest == mnist.digest
    assert server.asked == []


def test_data_url_names_a_folder_or_an_address(server, mnist, tmp_path):
    local = tmp_path / "usb stick"
    local.mkdir()
    for name, content in server.files.items():
        (local / name).write_bytes(content)
    found = load(DataConfig(name="mnist", url=str(local)), str(tmp_path / "a"))
    assert found.digest == mnist.digest
    assert server.asked == []
    url = f"{server.url}/plain/"
    assert load(DataConfig(name="mnist", url=url), str(tmp_path / "b")).digest == mnist.digest
    with pytest.raises(UserError, match=r"data\.url='~nosuchuser/x': "):
        load(DataConfig(name="mnist", url="~nosuchuser/x"), str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"data\.url=.*goes with mnist"):
        load(DataConfig(name="digits", url=url), str(tmp_path))


def test_a_set_that_is_not_the_original_is_refused(server, mnist, tmp_path, monkeypatch):
    public = sources.PUBLIC["mnist"]._replace(digests=("0" * 64, "0" * 64))
    monkeypatch.setitem(sources.PUBLIC, "mnist", public)
    with pytest.raises(UserError, match="content digest differs"):
        load(DataConfig(name="mnist"), str(tmp_path))


def test_without_network_one_line_says_what_to_put_where(server, mnist, tmp_path, monkeypatch):
    public = sources.PUBLIC["mnist"]._replace(mirrors=("http://127.0.0.1:9/{}",))
    monkeypatch.setitem(sources.PUBLIC, "mnist", public)
    with pytest.raises(UserError) as caught:
        load(DataConfig(name="mnist"), str(tmp_path))
    said = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in said
    for part in (
        "data=mnist:",
        "mnist.npz",
        "t10k-labels-idx1-ubyte.gz",
        str(tmp_path),
        "data.url=",
    ):
        assert part in said


def test_cifar_comes_as_one_archive(server, tmp_path, monkeypatch):
    """A small CIFAR-10 as its authors pack it: pickles in a tar."""
    from torchvision import datasets

    rng = np.random.RandomState(0)
    members, sums = {}, {}
    for k, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        pixels = rng.randint(0, 256, (20, 3072), dtype=np.uint8)
        members[name] = pickle.dumps({"data": pixels, "labels": [(k + n) % 10 for n in range(20)]})
    members["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            sums[name] = hashlib.md5(content).hexdigest()
    server.files = {"cifar-10-python.tar.gz": buffer.getvalue()}
    reader = datasets.CIFAR10
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(buffer.getvalue()).hexdigest())
    train = [[name, sums[name]] for name in members if name.startswith("data")]
    monkeypatch.setattr(reader, "train_list", train)
    monkeypatch.setattr(reader, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums["batches.meta"]})
    public = sources.PUBLIC["cifar10"]._replace(digests=None)
    monkeypatch.setitem(sources.PUBLIC, "cifar10", public)
    archive = f"{server.url}/good/cifar-10-python.tar.gz"
    found = load(DataConfig(name="cifar10", url=archive), str(tmp_path))
    assert found.arrays.classes == tuple("abcdefghij")
    assert found.arrays.train_images.shape == (100, 32, 32, 3)
    first = pickle.loads(members["data_batch_1"])["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (found.arrays.train_images == first).all((1, 2, 3)).any()


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_the_real_sets_are_verified_by_content(real_data, tmp_path, name):
    (tmp_path / f"{name}.npz").symlink_to(real_data / f"{name}.npz")
    found = load(DataConfig(name=name), str(tmp_path))
    assert found.num_classes == (100 if name == "cifar100" else 10)
    assert len(found.arrays.test_labels) == 10_000
