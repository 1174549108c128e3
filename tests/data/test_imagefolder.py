"""A folder of the user's pictures: what is read, how it is made one size, what is refused."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY

from lsexp.cli import main
from lsexp.config import DataConfig
from lsexp.data import imagefolder, load
from lsexp.errors import UserError

RNG = np.random.RandomState(0)
RED, BLUE, WHITE = (200, 30, 10), (10, 30, 200), (255, 255, 255)


def plain(colour, size=(6, 6), mode="RGB"):
    return Image.new(mode, size, colour)


def noise(width=6, height=6, rng=RNG):
    return Image.fromarray(rng.randint(0, 256, (height, width, 3)).astype(np.uint8))


def encoded(picture, ending="png", **options):
    stream = io.BytesIO()
    picture.save(
        stream, {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending), **options
    )
    return stream.getvalue()


def write(root, files):
    """Files below `root`, by path: pictures, or bytes as they are."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content = encoded(content, path.suffix[1:].lower())
        path.write_bytes(content)
    return root


@pytest.fixture
def pictures(tmp_path):
    """Two classes, two pictures each for training and one for the test."""
    rng = np.random.RandomState(1)
    names = [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in "ab"]
    return write(
        tmp_path / "pets",
        {name: noise(rng=rng) for name in (*names, "test/cat/a.png", "test/dog/a.png")},
    )


def get(root, image_size=6):
    config = DataConfig(name="imagefolder", path=str(root), image_size=image_size)
    return load(config, str(root.parent / "data"))


def one(root, content, name="x.png", image_size=6, base=None):
    """What becomes of one picture, the only one of class b; those of class a are `base`."""
    base = base or plain(RED)
    write(root, {f"train/b/{name}": content, "train/a/a.png": base, "test/a/a.png": base})
    arrays = get(root, image_size).arrays
    return arrays.train_images[arrays.train_labels == 1][0]


def refusal(root, exit_code=2, **options):
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as caught:
        get(root, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


# Sizes.


def test_a_plain_picture_stays_plain_at_every_size(tmp_path):
    for number, (width, height) in enumerate([(6, 6), (3, 3), (40, 17), (17, 40), (1, 5)]):
        image = one(tmp_path / str(number), plain(RED, (width, height)))
        np.testing.assert_array_equal(image, np.full((6, 6, 3), RED))


def test_the_middle_of_a_landscape_is_kept(tmp_path):
    """16 x 4 pixels, red but for the middle 4, which are blue on the left, white on the right."""
    pixels = np.full((4, 16, 3), RED, np.uint8)
    pixels[:, 6:8], pixels[:, 8:10] = BLUE, WHITE
    image = one(tmp_path / "wide", Image.fromarray(pixels), image_size=4)
    np.testing.assert_array_equal(image[:, :2], np.full((4, 2, 3), BLUE))
    np.testing.assert_array_equal(image[:, 2:], np.full((4, 2, 3), WHITE))
    tall = Image.fromarray(pixels.transpose(1, 0, 2))
    np.testing.assert_array_equal(
        one(tmp_path / "tall", tall, image_size=4), image.transpose(1, 0, 2)
    )


def test_halving_two_pixels_of_two_colours(tmp_path):
    """Far from the border between them the colours are the old ones, mirrored they are the same."""
    pixels = np.full((16, 32, 3), 40, np.uint8)
    pixels[:, 16:] = 240
    image = one(tmp_path / "two", Image.fromarray(pixels), image_size=8)
    assert image[:, :3].max() == 40
    assert image[:, 5:].min() == 240
    np.testing.assert_array_equal(image.astype(int) + image[:, ::-1], 280)


def test_it_is_what_torchvision_makes_of_them(tmp_path):
    from torchvision.transforms import v2

    rng = np.random.RandomState(2)
    transform = v2.Compose([v2.Resize(9, antialias=True), v2.CenterCrop(9)])
    sizes = [(9, 9), (30, 20), (20, 31), (7, 5), (100, 12), (9, 14)]
    for number, (width, height) in enumerate(sizes):
        picture = noise(width, height, rng)
        image = one(tmp_path / str(number), picture, image_size=9)
        np.testing.assert_array_equal(image, np.asarray(transform(picture)))


def test_it_is_what_torchvisions_imagefolder_gives(tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    rng = np.random.RandomState(3)
    names = ["b/1.png", "b/deep/er/2.PNG", "B/3.jpg", "a10/4.Jpeg", "a9/5.webp", "a9/6.bmp"]
    files = {f"{split}/{name}": noise(11, 8, rng) for split in ("train", "test") for name in names}
    for name, picture in files.items():
        ending = Path(name).suffix[1:].lower().replace("jpg", "jpeg")
        files[name] = encoded(picture, ending)
    root = write(tmp_path / "pets", files)
    transform = v2.Compose([v2.Resize(5), v2.CenterCrop(5)])
    theirs = {split: ImageFolder(root / split, transform) for split in ("train", "test")}
    ours = get(root, 5)
    assert ours.arrays.classes == tuple(theirs["train"].classes) == ("B", "a10", "a9", "b")
    for split, images, labels in (
        ("train", ours.arrays.train_images, ours.arrays.train_labels),
        ("test", ours.arrays.test_images, ours.arrays.test_labels),
    ):
        expected = sorted((np.asarray(image).tobytes(), label) for image, label in theirs[split])
        found = zip((image.tobytes() for image in images), labels.tolist(), strict=True)
        assert sorted(found) == expected


def test_endings_are_torchvisions():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert imagefolder.ENDINGS == IMG_EXTENSIONS


@pytest.mark.data
def test_real_cifar_as_png_comes_back_exactly_and_is_the_same_data(real_data, tmp_path):
    with np.load(real_data / "cifar10.npz") as file:
        chosen = {
            split: [np.flatnonzero(file[f"y_{split}"] == k)[:n] for k in range(10)]
            for split, n in (("train", 4), ("test", 2))
        }
        own = {}
        for split, groups in chosen.items():
            indices = np.concatenate(groups)
            own[f"x_{split}"] = file[f"x_{split}"][indices]
            own[f"y_{split}"] = file[f"y_{split}"][indices]
    np.savez(tmp_path / "own.npz", **own)
    for split in ("train", "test"):
        pairs = zip(own[f"x_{split}"], own[f"y_{split}"], strict=True)
        for number, (image, label) in enumerate(pairs):
            write(
                tmp_path / "cifar", {f"{split}/{int(label)}/{number}.png": Image.fromarray(image)}
            )
    packed = load(DataConfig(name="npz", path=str(tmp_path / "own.npz")), str(tmp_path / "data"))
    ours = get(tmp_path / "cifar", 32)
    assert len(ours.arrays.train_labels) + len(ours.arrays.test_labels) == 60
    assert ours.digest == packed.digest
    for mine, theirs in zip(ours.arrays, packed.arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)


# Colour.


def test_grey_pictures_get_one_channel_only_if_all_are_grey(tmp_path):
    grey = plain(70, mode="L")
    image = one(tmp_path / "grey", plain(90, mode="L"), base=grey)
    np.testing.assert_array_equal(image, np.full((6, 6, 1), 90))
    bits = one(tmp_path / "bits", plain(1, mode="1"), base=grey)
    np.testing.assert_array_equal(bits, np.full((6, 6, 1), 255))
    mixed = one(tmp_path / "mixed", plain(90, mode="L"), base=plain(RED))
    np.testing.assert_array_equal(mixed, np.full((6, 6, 3), 90))


def test_one_coloured_picture_in_the_test_set_makes_all_colour(tmp_path):
    write(
        tmp_path / "own",
        {
            "train/a/1.png": plain(1, mode="L"),
            "train/b/1.png": plain(2, mode="L"),
            "test/b/1.png": plain(RED),
        },
    )
    assert get(tmp_path / "own").image_shape == (6, 6, 3)


def transparent_palette():
    picture = plain(0, mode="P")
    picture.putpalette([*RED, *BLUE])
    picture.paste(1, (0, 0, 3, 6))
    return encoded(picture, transparency=0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (plain((*RED, 255), mode="RGBA"), RED),
        (plain((*RED, 0), mode="RGBA"), WHITE),
        # 51 of 255 are a fifth: red 200 / 5 + 255 * 4 / 5 = 244, and so on.
        (plain((*RED, 51), mode="RGBA"), (244, 210, 206)),
        (plain((100, 51), mode="LA"), (224, 224, 224)),
        (encoded(plain(RED), transparency=RED), WHITE),
        (plain(RED).quantize(), RED),
    ],
    ids=["opaque", "transparent", "fifth", "grey", "one colour", "palette"],
)
def test_transparent_pictures_lie_on_white(tmp_path, content, expected):
    np.testing.assert_array_equal(one(tmp_path / "own", content), np.full((6, 6, 3), expected))


def test_a_palette_with_a_transparent_entry(tmp_path):
    image = one(tmp_path / "own", transparent_palette())
    np.testing.assert_array_equal(image[:, :3], np.full((6, 3, 3), BLUE))
    np.testing.assert_array_equal(image[:, 3:], np.full((6, 3, 3), WHITE))


def test_transparent_greys_stay_grey(tmp_path):
    image = one(tmp_path / "own", plain((100, 51), mode="LA"), base=plain(3, mode="L"))
    np.testing.assert_array_equal(image, np.full((6, 6, 1), 224))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path, ending):
    rows = np.array([0, 255, 256, 32768, 65279, 65535], np.uint16)
    picture = Image.fromarray(np.repeat(rows[:, None], 6, axis=1))
    base = plain(3, mode="L")
    image = one(tmp_path / "own", encoded(picture, ending), f"x.{ending}", base=base)
    assert image[:, 0, 0].tolist() == [0, 0, 1, 128, 254, 255]
    assert image.shape == (6, 6, 1)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    picture = Image.fromarray(np.full((6, 6), 70000, dtype))
    root = tmp_path / "own"
    with pytest.raises(UserError, match=r"x\.tif: cannot be .* save it with 8 or 16") as caught:
        one(root, encoded(picture, "tif"), "x.tif")
    assert caught.value.exit_code == 1


def test_cmyk_becomes_rgb(tmp_path):
    image = one(tmp_path / "own", plain((0, 255, 255, 0), mode="CMYK"), "x.jpg")
    np.testing.assert_allclose(image, np.full((6, 6, 3), (255, 0, 0)), atol=2)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_the_orientation_of_exif_is_applied(tmp_path, ending):
    """Stored lying (6: turn it clockwise), blue at the left: upright, blue is on top."""
    picture = plain(RED, (24, 24))
    picture.paste(BLUE, (0, 0, 12, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if ending == "webp" else {}
    content = encoded(picture, ending, exif=exif, **options)
    image = one(tmp_path / "own", content, f"x.{ending}").astype(int)
    assert np.abs(image[:2] - BLUE).max() < 6
    assert np.abs(image[-2:] - RED).max() < 6


def test_exif_that_cannot_be_read_does_no_harm(tmp_path):
    content = encoded(plain(RED), "jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x01")
    assert one(tmp_path / "1", content, "x.jpg").shape == (6, 6, 3)
    content = encoded(plain(RED), "jpg", exif=b"Exif\0\0nonsense")
    assert one(tmp_path / "2", content, "x.jpg").shape == (6, 6, 3)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = {"save_all": True, "append_images": [plain(BLUE)]}
    for number, ending in enumerate(["png", "webp"]):
        options = {"lossless": True} if ending == "webp" else {}
        content = encoded(plain(RED), ending, **frames, **options)
        image = one(tmp_path / str(number), content, f"x.{ending}")
        np.testing.assert_array_equal(image, np.full((6, 6, 3), RED))


# One order, one digest, one copy.


def test_the_same_pixels_in_an_npz_are_the_same_data(pictures, tmp_path):
    own = {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    for path in pictures.glob("*/*/*.png"):
        split, name = path.parts[-3:-1]
        own[f"x_{split}"].append(np.asarray(Image.open(path)))
        own[f"y_{split}"].append(int(name == "dog"))
    np.savez(tmp_path / "own.npz", **own)
    packed = load(DataConfig(name="npz", path=str(tmp_path / "own.npz")), str(tmp_path / "data"))
    ours = get(pictures)
    assert (ours.name, ours.arrays.classes) == ("pets", ("cat", "dog"))
    assert ours.digest == packed.digest
    np.testing.assert_array_equal(ours.arrays.train_images, packed.arrays.train_images)


def test_names_of_files_do_not_matter(pictures, tmp_path):
    before = get(pictures)
    for number, path in enumerate(sorted(pictures.glob("*/*/*.png"))):
        path.rename(path.with_name(f"{99 - number}.PNG"))
    (pictures / "train" / "cat" / "deep").mkdir()
    moved = next((pictures / "train" / "cat").glob("*.PNG"))
    moved.rename(moved.parent / "deep" / moved.name)
    after = get(pictures)
    assert after.digest == before.digest
    np.testing.assert_array_equal(after.arrays.train_images, before.arrays.train_images)


def test_the_class_decides_the_label(pictures):
    before = get(pictures)
    (pictures / "train" / "cat" / "a.png").rename(pictures / "train" / "dog" / "moved.png")
    assert get(pictures).digest != before.digest


@pytest.fixture
def never_read(monkeypatch):
    def refuse(*_args):
        raise AssertionError("it was imported again")

    return lambda: monkeypatch.setattr(imagefolder, "read", refuse)


def test_it_is_imported_once(pictures, never_read):
    first = get(pictures)
    (pictures / "train" / ".DS_Store").touch()
    (pictures / "notes.txt").touch()
    never_read()
    second = get(pictures)
    assert second.digest == first.digest
    assert isinstance(second.arrays.train_images, np.memmap)


def test_two_sizes_live_side_by_side(pictures, never_read):
    small, large = get(pictures, 3), get(pictures, 6)
    assert (small.image_shape, large.image_shape) == ((3, 3, 3), (6, 6, 3))
    never_read()
    assert (get(pictures, 3).digest, get(pictures, 6).digest) == (small.digest, large.digest)


def changed(pictures):
    write(pictures, {"train/cat/a.png": plain(RED)})


def touched(pictures):
    """Another picture of the same length, at another time."""
    path = pictures / "train" / "cat" / "a.png"
    length = path.stat().st_size
    content = encoded(plain(RED))
    path.write_bytes(content + bytes(length - len(content)))
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == length


def added(pictures):
    write(pictures, {"test/dog/new.png": plain(RED)})


def removed(pictures):
    (pictures / "train" / "dog" / "b.png").unlink()


def swapped(pictures):
    """Nothing but the names changes: what was a cat is a dog."""
    (pictures / "train" / "cat").rename(pictures / "train" / "x")
    (pictures / "train" / "dog").rename(pictures / "train" / "cat")
    (pictures / "train" / "x").rename(pictures / "train" / "dog")


def exchanged(pictures):
    """Two pictures of one length and time change places, as out of an archive."""
    one, other = (pictures / "train" / kind / f"{kind}.bmp" for kind in ("cat", "dog"))
    for path in (one, other):
        os.utime(path, ns=(1, 1))
    one.rename(pictures / "aside")
    other.rename(one)
    (pictures / "aside").rename(other)


def test_pictures_that_change_places_change_labels(pictures):
    write(pictures, {"train/cat/cat.bmp": plain(RED), "train/dog/dog.bmp": plain((0, 0, 9))})
    for kind in ("cat", "dog"):
        os.utime(pictures / "train" / kind / f"{kind}.bmp", ns=(1, 1))
    before = get(pictures)
    exchanged(pictures)
    assert get(pictures).train_digest != before.train_digest


@pytest.mark.parametrize("change", [changed, touched, added, removed, swapped])
def test_a_change_leads_to_a_new_import_that_replaces_the_old(pictures, change):
    other = get(pictures, 5)
    before = get(pictures)
    imported = pictures.parent / "data" / "imported"
    assert len(list(imported.iterdir())) == 2
    change(pictures)
    assert get(pictures).digest != before.digest
    assert len(list(imported.iterdir())) == 2
    assert get(pictures, 5).digest != other.digest


def test_a_folder_moved_is_the_same_data(pictures, tmp_path):
    before = get(pictures)
    after = get(pictures.rename(tmp_path / "my pets.v2"))
    assert (after.name, after.digest) == ("my_pets_v2", before.digest)


def test_the_folder_one_is_in_has_its_name_and_copy(pictures, monkeypatch, never_read):
    get(pictures)
    never_read()
    monkeypatch.chdir(pictures)
    config = DataConfig(name="imagefolder", path=".", image_size=6)
    assert load(config, str(pictures.parent / "data")).name == "pets"


# What is left out.


def test_what_is_hidden_or_no_image_is_left_out_and_said_once(pictures, capsys):
    plain_digest = get(pictures).digest
    assert "left out" not in capsys.readouterr().err
    shutil.rmtree(pictures.parent / "data")
    more = {
        "train/.cache/a.png": noise(),
        "train/cat/.hidden.png": noise(),
        "train/cat/.hidden/a.png": noise(),
        "train/dog/notes.txt": b"these are dogs",
        "train/direct.png": noise(),
        "test/dog/a.gif": b"GIF",
        "notes.txt": b"about all this",
        "extra/cat/a.png": noise(),
    }
    assert get(write(pictures, more)).digest == plain_digest
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 1
    assert "6 files left out" in said[0]
    assert "such as train/.cache" in said[0]
    assert get(pictures).digest == plain_digest
    assert "left out" not in capsys.readouterr().err


def test_val_beside_the_others_is_not_read_which_is_said(pictures, capsys):
    before = get(pictures).digest
    shutil.rmtree(pictures.parent / "data")
    assert get(write(pictures, {"val/cat/a.png": noise()})).digest == before
    assert "val/ is not read; val is split off from train/" in capsys.readouterr().err


def test_links_are_followed_but_not_in_circles(pictures, tmp_path):
    before = get(pictures).digest
    cats = pictures / "train" / "cat"
    cats.rename(tmp_path / "elsewhere")
    cats.symlink_to(tmp_path / "elsewhere")
    (cats / "again").symlink_to(cats)
    assert get(pictures).digest == before


def test_a_link_to_nothing_is_told(pictures):
    (pictures / "train" / "cat" / "gone.png").symlink_to("nowhere.png")
    assert "gone.png: No such file or directory" in refusal(pictures, exit_code=1)


def test_a_pipe_is_no_picture(pictures):
    os.mkfifo(pictures / "train" / "cat" / "pipe.png")
    assert len(get(pictures).arrays.train_labels) == 4


def test_file_names_of_other_encodings(pictures):
    name = os.fsdecode(b"train/cat/K\xe4tzchen.png")
    assert len(get(write(pictures, {name: noise()})).arrays.train_labels) == 5
    assert len(get(pictures).arrays.train_labels) == 5
    write(pictures, {name: b"no"})
    assert "cannot be read" in refusal(pictures, exit_code=1)


# What is refused.


def test_a_path_is_needed_and_must_be_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.path=DIR, a folder with train/<class>/"):
        load(DataConfig(name="imagefolder"), str(tmp_path))
    assert "absent: no such folder" in refusal(tmp_path / "absent")
    (tmp_path / "own.npz").touch()
    assert "is a file" in refusal(tmp_path / "own.npz")
    assert "data=npz" in refusal(tmp_path / "own.npz")


def test_the_other_source_is_hinted_at_for_a_folder(pictures):
    with pytest.raises(UserError, match=r"is a folder .*data=imagefolder"):
        load(DataConfig(name="npz", path=str(pictures)), str(pictures.parent))


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_sets_are_needed(pictures, split):
    (pictures / split).rename(pictures / "other")
    message = refusal(pictures)
    assert f"data.path={pictures}: has no {split}/ (found other, " in message
    assert "it must hold train/<class>/ and test/<class>/" in message


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_val_in_place_of_test_is_hinted_at(pictures, name):
    (pictures / "test").rename(pictures / name)
    assert f"rename {name}/ to test/" in refusal(pictures)
    assert "only ever evaluated" in refusal(pictures)


def test_pictures_directly_in_train_are_hinted_at(tmp_path):
    root = write(tmp_path / "own", {"train/a.png": noise(), "test/a.png": noise()})
    message = refusal(root)
    assert f"{root / 'train'}: has no folders of classes" in message
    assert "left out: 2 files, such as train/a.png" in message


def test_one_class_is_too_few(pictures):
    for split in ("train", "test"):
        shutil.rmtree(pictures / split / "dog")
    assert "has only the class cat; at least two are needed" in refusal(pictures)


def test_a_class_without_images_is_named(pictures):
    write(pictures, {"train/eel/pictures.txt": b"none yet"})
    message = refusal(pictures)
    assert f"{pictures / 'train' / 'eel'}: a class without images" in message
    assert "left out: 1 file, such as train/eel/pictures.txt" in message


def test_a_class_of_the_test_set_only_is_named(pictures):
    write(pictures, {"test/eel/a.png": noise()})
    message = refusal(pictures)
    assert "has the class eel, which train/ does not have (it has cat, dog)" in message


def test_a_class_may_be_absent_from_the_test_set_but_not_all(pictures):
    shutil.rmtree(pictures / "test" / "dog")
    assert get(pictures).arrays.classes == ("cat", "dog")
    (pictures / "test" / "cat" / "a.png").unlink()
    assert "has no images" in refusal(pictures)


PHOTO = encoded(noise(40, 30), "jpg")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"no picture", "damaged, or none of BMP"),
        (PHOTO[: len(PHOTO) // 2], "truncated"),
        (PHOTO[:-40], "truncated"),
        (PHOTO[:100], "("),
        (encoded(noise(40, 30))[:-400], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of BMP"),
    ],
    ids=["empty", "text", "half a JPEG", "most of a JPEG", "its head", "most of a PNG", "program"],
)
def test_a_damaged_file_is_named(pictures, content, reason):
    write(pictures, {"train/dog/broken.jpg": content})
    message = refusal(pictures, exit_code=1)
    assert message.startswith(f"{pictures / 'train' / 'dog' / 'broken.jpg'}: cannot be read as an")
    assert reason in message
    assert "0x" not in message
    assert not (pictures.parent / "data").exists()


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "tif", "webp", "pgm"])
def test_no_truncated_file_is_taken_for_whole(tmp_path, ending):
    picture = noise(20, 20).convert("L") if ending == "pgm" else noise(20, 20)
    whole = encoded(picture, ending)
    path = tmp_path / "x"
    path.write_bytes(whole)
    expected = np.asarray(imagefolder._open(str(path)))
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:length])
        try:
            found = imagefolder._open(str(path))
        except Exception:
            continue
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_flipped_bit_in_a_png_is_noticed(pictures):
    path = pictures / "train" / "cat" / "a.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert str(path) in refusal(pictures, exit_code=1)


def test_all_damaged_files_are_told_at_once(pictures):
    broken = {f"train/dog/x{number}.png": b"no" for number in range(8)}
    message = refusal(write(pictures, broken), exit_code=1)
    assert "x0.png: cannot be read" in message
    assert "nor can train/dog/x1.png, train/dog/x2.png" in message
    assert "and 2 more" in message


def test_too_many_pixels_are_refused_and_many_are_not(pictures, monkeypatch):
    write(pictures, {"train/dog/large.png": plain(RED, (40, 30))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns of 1200
    get(pictures)
    shutil.rmtree(pictures.parent / "data")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    message = refusal(pictures, exit_code=1)
    assert f"{pictures / 'train' / 'dog' / 'large.png'}: " in message
    assert "more than 1,000 pixels" in message


def test_a_thread_of_a_picture_is_refused(pictures):
    write(pictures, {"train/dog/thin.png": plain(RED, (30_000, 1))})
    assert "30000 x 1 pixels are too narrow" in refusal(pictures, exit_code=1, image_size=100)


def test_a_file_that_may_not_be_read_is_named(pictures, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = refusal(pictures, exit_code=1)
    assert "train/cat/a.png: cannot be read as an image (Permission denied)" in message


# Memory.


def test_images_that_would_not_fit_the_memory_are_refused_before_they_are_read(
    pictures, monkeypatch
):
    # Six images of 6 x 6 pixels in 3 colours, twice: 1296 bytes.
    monkeypatch.setattr(imagefolder, "available_memory", lambda: 1295)
    with monkeypatch.context() as patched:
        patched.setattr(imagefolder, "_open", None)
        message = refusal(pictures, exit_code=1)
    assert "data.image_size=6: 6 images take 1.3 kB of memory" in message
    assert "1.3 kB is free" in message
    assert "data.image_size=5 or less" in message
    assert "at most 5 images would fit" in message
    get(pictures, 5)
    monkeypatch.setattr(imagefolder, "available_memory", lambda: 1296)
    get(pictures)
    monkeypatch.setattr(imagefolder, "available_memory", lambda: 0)
    get(pictures)  # imported already


def test_a_system_that_does_not_tell_is_trusted(pictures, monkeypatch):
    monkeypatch.setattr(imagefolder, "available_memory", lambda: None)
    get(pictures)


# The commands.


def data(capsys, *words):
    code = main(["data", *words])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_a_folder_is_checked_and_measured(pictures, capsys, monkeypatch):
    own = f"data_dir={pictures.parent / 'data'}"
    code, out, _ = data(capsys, str(pictures), "data.image_size=5", own)
    assert code == 0
    assert out[1].split()[1:9] == ["4", "2", "5", "x", "5", "colour", "2", "450"]
    monkeypatch.chdir(pictures.parent)
    code, out, _ = data(capsys, "pets", own)
    assert (code, out[1].split()[3:6]) == (0, ["32", "x", "32"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["no/such"], "data.path=no/such: no such folder"),
        (["pest"], "pest: no such data set"),
        (["./pets", "data.image_size=0"], "data.image_size=0: must be at least 1"),
        (["./pets", "data.image_size=5000"], "data.image_size=5000: must be at least 1 and at"),
        (["./pets", "data.image_size=x"], "data.image_size=x: must be a whole number"),
        (["imagefolder"], "needs data.path=DIR"),
    ],
)
def test_wrong_words(pictures, capsys, monkeypatch, words, part):
    monkeypatch.chdir(pictures.parent)
    code, out, err = data(capsys, *words)
    assert (code, out, len(err.splitlines())) == (2, [], 1)
    assert part in err


def test_training_on_ones_own_pictures(tmp_path, monkeypatch, capsys):
    """Bright and dark pictures of all sizes and kinds: the network tells them apart."""
    rng = np.random.RandomState(4)
    for split, number in (("train", 20), ("test", 5)):
        for label, name in enumerate(["dark", "bright"]):
            for i in range(number):
                width, height = rng.randint(9, 40, 2)
                pixels = rng.randint(0, 100, (height, width, 3)) + 150 * label
                picture = Image.fromarray(pixels.astype(np.uint8))
                write(
                    tmp_path / "my light",
                    {f"{split}/{name}/{i}.{'jpg' if i % 2 else 'png'}": picture},
                )
    words = ["data=imagefolder", "data.path=my light", "data.image_size=8", "data_dir=data"]
    monkeypatch.chdir(tmp_path)
    code = main(["train", *TINY, "precision=fp32", *words, "model.widths=[16]"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "32 train, 8 val, 10 test, 2 classes" in err
    folder = out.splitlines()[-1]
    assert folder.startswith("runs/my_light-mlp-eps0-seed0-")
    metrics = (tmp_path / folder / "metrics.json").read_text()
    assert '"accuracy": 1.0' in metrics

    write(tmp_path / "my light", {"train/dark/broken.jpg": b"no"})
    assert main(["train", *TINY, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lsexp: my light/train/dark/broken.jpg: cannot be read")
    (tmp_path / "my light" / "test").rename(tmp_path / "my light" / "val")
    assert main(["train", *TINY, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lsexp: data.path=my light: has no test/")
