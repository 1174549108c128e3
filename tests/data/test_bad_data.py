"""Data that are no good, through the command: one line that tells which file and what of it, an
exit code, and nothing left behind that looks whole."""

import contextlib
import hashlib
import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import serving

from lsexp.cli import main
from lsexp.config import DataConfig
from lsexp.data import download, load, sources
from lsexp.data.imagefolder import class_name

RNG = np.random.RandomState(0)
ARRAYS = {
    "x_train": RNG.randint(0, 256, (20, 4, 5)).astype(np.uint8),
    "y_train": np.arange(20) % 2,
    "x_test": RNG.randint(0, 256, (6, 4, 5)).astype(np.uint8),
    "y_test": np.arange(6) % 2,
}


@pytest.fixture
def told(tmp_path, capsys):
    """Check a data set by name or path; its digest, or the line that tells what is wrong."""

    def told(name, *words, code=None):
        data_dir = tmp_path / "data"
        before = set(data_dir.rglob("*"))
        done = main(["data", str(name), *words, f"data_dir={data_dir}"])
        out, err = capsys.readouterr()
        if code is None:
            assert done == 0, err
            return out.splitlines()[1].split()[-1], err
        assert (done, out) == (code, "")
        [line] = err.splitlines()
        assert line.startswith("lsexp: ")
        new = set(data_dir.rglob("*")) - before
        assert [path for path in new if path.is_file() and path.suffix != ".part"] == []
        return line

    return told


# Arrays.


def npy(shape, kind="|u1", content=b""):
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


def packed(path, **members):
    """An .npz like ARRAYS but for `members`, as bytes."""
    np.savez(path, **{key: value for key, value in ARRAYS.items() if key not in members})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        for key, content in members.items():
            file.writestr(f"{key}.npy", content)
    return path


def test_the_order_of_axes_and_bytes_does_not_matter(tmp_path, told):
    np.savez(tmp_path / "one.npz", **ARRAYS)
    other = {**ARRAYS, "x_train": np.asfortranarray(ARRAYS["x_train"])}
    np.savez(tmp_path / "other.npz", **{**other, "y_train": ARRAYS["y_train"].astype(">i4")})
    assert told(tmp_path / "one.npz") == told(tmp_path / "other.npz")


NO_PIXELS = {
    "nan": np.full((20, 4, 5), np.nan),
    "shares": ARRAYS["x_train"] / 255,
    "big-endian": ARRAYS["x_train"].astype(">u2"),
    "signed": ARRAYS["x_train"].astype(np.int8),
    "complex": ARRAYS["x_train"].astype(complex),
    "text": ARRAYS["x_train"].astype(str),
    "raw": np.zeros((20, 4, 5), "V3"),
    "dates": ARRAYS["x_train"].astype("M8[s]"),
}


@pytest.mark.parametrize("kind", NO_PIXELS)
def test_what_is_no_pixel_is_told(tmp_path, told, kind):
    path = tmp_path / "own.npz"
    np.savez(path, **{**ARRAYS, "x_train": NO_PIXELS[kind]})
    line = told(path, code=2)
    assert f"{path}: x_train is {NO_PIXELS[kind].dtype}; pixels must be uint8, 0 to 255" in line


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (npy((10**11 // 20, 4, 5), content=b"few"), "Unable to allocate|EOF|array is too big"),
        (npy((20, 4, 5), "<U500000000"), "Unable to allocate|EOF"),
        (npy((-1, 4, 5)), "negative"),
        (npy((20, 4, 5)).replace(b"(20, 4, 5)", b"exit(3)   "), "malformed"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "own.npz"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 20000) + b"{" * 20000, "large"),
    ],
    ids=["too long", "too wide", "less than none", "code", "deep", "long header"],
)
def test_headers_are_not_believed(tmp_path, told, member, why):
    path = packed(tmp_path / "own.npz", x_train=member)
    line = told(path, code=2)
    assert f"{path}: cannot be read as .npz (" in line
    assert any(one in line for one in why.split("|"))


def test_an_array_under_another_name_is_told(tmp_path, told):
    np.save(tmp_path / "own.npy", ARRAYS["x_train"])
    path = (tmp_path / "own.npy").rename(tmp_path / "own.npz")
    assert "cannot be read as .npz (File is not a zip file)" in told(path, code=2)


def test_what_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path, told, monkeypatch):
    """Eight MB of zeros, in eight kB."""
    many = npy((400_000, 4, 5), content=bytes(8_000_000))
    path = packed(tmp_path / "own.npz", x_train=many, y_train=npy((400_000,), "<i8"))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(sources, "available_memory", lambda: 15_999_999)
    tracemalloc.start()
    line = told(path, code=1)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{path}: its images take 16.0 MB of memory to import, and 16.0 MB is free" in line
    assert most < 4_000_000
    monkeypatch.setattr(sources, "available_memory", lambda: None)
    assert "cannot be read" in told(path, code=2)  # for want of labels


def test_a_hundred_gigabytes_are_refused_by_what_the_file_says(tmp_path, told, monkeypatch):
    path = packed(tmp_path / "own.npz", x_train=npy((20, 4, 5), content=bytes(400)))
    whole = path.read_bytes()
    size = struct.pack("<I", 528)
    assert whole.count(size) >= 2  # once before the member, once in the table at the end
    path.write_bytes(whole.replace(size, struct.pack("<I", 4_000_000_000)))
    monkeypatch.setattr(sources, "available_memory", lambda: 7_000_000_000)
    assert "take 8.0 GB of memory to import, and 7.0 GB is free" in told(path, code=1)


def test_a_class_without_a_test_image_is_told_in_a_line(tmp_path, told):
    path = tmp_path / "own.npz"
    np.savez(path, **{**ARRAYS, "y_test": np.zeros(6, int)})
    _, err = told(path)
    assert err == f"{path}: y_test has no image of class 1; the others are tested\n"
    assert told(path)[1] == ""  # imported


def test_names_of_classes_can_be_printed():
    assert class_name("a cat, ü 猫 $x$ <b>|") == "a cat, ü 猫 $x$ <b>|"
    odd = ["a\nb", "a\\nb", "\x1b[31m", "\x00", "\u2028", "\x85", "\udcff", "\udcfe", "\t"]
    shown = [class_name(name) for name in odd]
    assert len(set(shown) - {"a\\nb"}) == len(odd) - 2
    for name in shown:
        assert name.isprintable()
        name.encode()


@pytest.mark.parametrize("letter", ["a", "é", "猫"])
def test_a_long_name_leaves_room_for_that_of_a_run(tmp_path, letter):
    path = tmp_path / (letter * (250 // len(letter.encode())) + ".npz")
    np.savez(path, **ARRAYS)
    name = load(DataConfig(name="npz", path=str(path)), str(tmp_path / "data")).name
    assert set(name) == {letter}
    assert 140 < len(name.encode()) <= 150
    assert list((tmp_path / "data" / "imported").glob(f"{name}-*"))


# Pictures.


def encoded(width=8, height=8, ending="PNG"):
    stream = io.BytesIO()
    pixels = RNG.randint(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, ending)
    return stream.getvalue()


@pytest.fixture
def pictures(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            (tmp_path / "pets" / split / name / "a.png").write_bytes(encoded())
    return tmp_path / "pets"


def _chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(bytes(99)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _chunk(b"IEND", b"")


def gif(side):
    image = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + image


def tiff(side):
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, side), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def webp(side):
    lossless = b"VP8L" + struct.pack("<I", 6) + b"\x2f\xff\xff\xff\x00\x00"
    last = struct.pack("<I", side - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + last + last + lossless
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(side):
    return b"BM" + struct.pack("<IHHIIiiHH6I", 54, 0, 0, 54, 40, side, side, 1, 24, *[0] * 6)


def ppm(side):
    return f"P6 {side} {side} 255\n".encode()


@pytest.mark.parametrize("make", [png, gif, tiff, webp, bmp, ppm])
def test_a_picture_that_claims_to_be_enormous_is_refused(pictures, told, make):
    path = pictures / "train" / "cat" / "bomb.png"  # what it is, its content says
    path.write_bytes(make(50_000))
    line = told(pictures, code=1)
    assert f"{path}: cannot be read as an image (more than 178,956,970 pixels)" in line


def test_text_in_a_picture_that_unpacks_to_much_is_refused(pictures, told):
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000)))
    path = pictures / "train" / "cat" / "bomb.png"
    path.write_bytes(encoded().replace(_chunk(b"IEND", b""), text + _chunk(b"IEND", b"")))
    assert "cannot be read as an image (Decompressed data too large" in told(pictures, code=1)


def test_a_file_larger_than_any_picture_is_not_read(pictures, told):
    path = pictures / "train" / "cat" / "a.png"
    os.truncate(path, 2_000_000_000)  # without a block on disk
    line = told(pictures, code=1)
    assert f"{path}: cannot be read as an image (its file has 2.0 GB, more than 1.4 GB)" in line


def test_links_to_what_never_ends_are_not_followed(pictures, told, tmp_path):
    before, _ = told(pictures)
    os.mkfifo(tmp_path / "pipe")
    for number, to in enumerate(["/dev/zero", "/dev/tty", tmp_path / "pipe"]):
        (pictures / "train" / "cat" / f"{number}.png").symlink_to(to)
    digest, _ = told(pictures)
    assert digest == before  # imported already
    (pictures / "train" / "cat" / "b.png").write_bytes(encoded())
    assert "3 files left out" in told(pictures)[1]
    for number in range(3):
        (pictures / "train" / "cat" / f"{number}.png").unlink()
    (pictures / "test" / "dog" / "proc.png").symlink_to("/proc/version")  # of 0 bytes, it says
    assert "proc.png: cannot be read as an image (it is empty)" in told(pictures, code=1)


def test_circles_of_links_are_told(pictures, told):
    path = pictures / "train" / "cat" / "circle.png"
    path.symlink_to("circle.png")
    assert f"{path}: Too many levels of symbolic links" in told(pictures, code=1)


def test_a_folder_that_may_not_be_read_is_told(pictures, told, monkeypatch):
    def refuse(folder, real=os.scandir):
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{pictures / 'train' / 'dog'}: Permission denied" in told(pictures, code=1)


def test_a_class_without_pictures_in_the_test_set_is_told_in_a_line(pictures, told):
    (pictures / "test" / "dog" / "a.png").unlink()
    expected = f"data.path={pictures}: test/ has no image of class dog; the others are tested\n"
    assert told(pictures)[1] == expected
    assert told(pictures)[1] == ""  # imported
    (pictures / "test" / "dog").rmdir()
    assert told(pictures, "data.image_size=5")[1] == expected


def test_pictures_of_all_sizes_and_names(pictures, told):
    for number, name in enumerate(["a\nb", "ü 猫", "$x$", "-rf", "\x1b[31m"]):
        content = encoded(8 + number, 30 - number)
        (pictures / "train" / "cat" / f"{name}.png").write_bytes(content)
    assert told(pictures)[1] == ""
    path = pictures / "train" / "cat" / "c\nd.png"
    path.write_bytes(b"no")
    assert "train/cat/c d.png: cannot be read as an image" in told(pictures, code=1)


# Mirrors.


class Mirror(BaseHTTPRequestHandler):
    """The first part of the path says how it behaves."""

    def do_GET(self):
        getattr(self, self.path.split("/")[1])()

    def send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked has gone
            self.wfile.write(content)

    def cut(self):
        self.send(200, bytes(1000), Content_Length="5000")

    def page(self):
        self.send(200, b"<html>Sign in</html>", Content_Type="text/html", Content_Length="20")

    def broken(self):
        self.send(500, b"", Content_Length="0")

    def more(self):
        self.send(200, bytes(5000), Content_Length="1000")

    def odd(self):
        self.send(200, bytes(5000), Content_Length="many")

    def silent(self):
        self.server.closing.wait(10)

    def elsewhere(self):
        self.send(302, Location=self.server.secret.as_uri(), Content_Length="0")

    def circle(self):
        self.send(302, Location=self.path, Content_Length="0")

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def mirror(tmp_path):
    with serving(Mirror) as server:
        server.secret = tmp_path / "secret"
        yield server


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("cut", "broke off after 1,000 of 5,000 bytes"),
        ("page", "answered a web page instead of the file"),
        ("broken", "answered 500 Internal Server Error"),
        ("more", "sent another file (its md5 differs)"),
        ("odd", "broke off: "),
        ("silent", "sent nothing for 0 s"),
        ("elsewhere", "answered 302 "),
        ("circle", "answered 302 "),
    ],
)
def test_a_bad_mirror_is_told(tmp_path, told, mirror, monkeypatch, behaviour, why):
    monkeypatch.setattr(download, "SILENCE", 0.3)
    # What the mirror leads to is just what is wanted, so that it would be taken.
    mirror.secret.write_bytes(b"a secret")
    name = "cifar-10-python.tar.gz"
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(b"a secret").hexdigest())
    url = f"http://127.0.0.1:{mirror.server_port}/{behaviour}/"
    line = told("cifar10", f"data.url={url}", code=1)
    assert f"data=cifar10: {name}: no mirror gave it: {url}{name} {why}" in line
    assert f"put cifar10.npz (Keras' layout) into {tmp_path / 'data'}" in line
    assert not (tmp_path / "data" / name).exists()
    assert not sources.is_here("cifar10", str(tmp_path / "data"))


def test_a_known_set_with_one_pixel_changed_is_told(tmp_path, told, monkeypatch):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "mnist.npz"
    np.savez(path, **ARRAYS)
    found = load(DataConfig(name="npz", path=str(path)), str(tmp_path / "elsewhere"))
    public = sources.PUBLIC["mnist"]
    known = public._replace(digests=(found.train_digest, found.test_digest))
    monkeypatch.setitem(sources.PUBLIC, "mnist", known)
    changed = ARRAYS["x_test"].copy()
    changed[0, 0, 0] ^= 1
    np.savez(path, **{**ARRAYS, "x_test": changed})
    done = main(["data", "mnist", f"data_dir={tmp_path / 'data'}"])
    assert done == 2
    assert [one.name for one in (tmp_path / "data").iterdir()] == ["mnist.npz"]
    np.savez(path, **ARRAYS)
    assert told("mnist")[0] == "verified"
