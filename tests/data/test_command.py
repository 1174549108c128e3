import numpy as np
import pytest

from lsexp.cli import main


def data(capsys, *words):
    code = main(["data", *words])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_without_names_it_tells_what_is_here(capsys, tmp_path, monkeypatch):
    (tmp_path / "mnist.npz").touch()
    code, out, _ = data(capsys, f"data_dir={tmp_path}")
    here = {line.split()[0]: line.split(maxsplit=1)[1] for line in out[1:-1]}
    assert code == 0
    assert here["mnist"] == "mnist.npz"
    assert here["cifar10"] == "no"
    assert here["digits"].startswith("always")
    assert out[-1] == f"in {tmp_path}; `lsexp data NAME data_dir={tmp_path}` fetches"
    monkeypatch.setenv("LSEXP_DATA_DIR", str(tmp_path))
    assert data(capsys)[1][-1] == f"in {tmp_path}; `lsexp data NAME` fetches"


def test_a_file_of_ones_own_is_checked_and_measured(capsys, tmp_path):
    images = np.zeros((30, 5, 4, 3), np.uint8)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    code, out, _ = data(capsys, str(tmp_path / "own.npz"), f"data_dir={tmp_path / 'data'}")
    assert code == 0
    assert out[1].split()[1:9] == ["30", "30", "5", "x", "4", "colour", "3", "3.6"]
    assert "verified" not in out[1]
    (tmp_path / "own.npz").write_text("no")
    code, _, err = data(capsys, str(tmp_path / "own.npz"))
    assert code == 2
    assert "cannot be read as .npz" in err


@pytest.mark.data
def test_a_known_set_is_verified(capsys, real_data, tmp_path):
    (tmp_path / "mnist.npz").symlink_to(real_data / "mnist.npz")
    code, out, _ = data(capsys, "mnist", f"data_dir={tmp_path}")
    assert code == 0
    assert out[1].endswith("verified")
    assert "60,000" in out[1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["mnits"], "did you mean mnist?"),
        (["--all"], "no such flag"),
        (["data.path=x"], "no such key"),
        (["none.npz"], "no such file"),
        ([""], "no such data set"),
        (["digits", "data.url=x"], "data.url=x: goes with a set that is fetched (mnist,"),
        (["data.url=x"], "data.url=x: goes with a set that is fetched (mnist,"),
    ],
)
def test_wrong_words(capsys, tmp_path, words, part):
    code, out, err = data(capsys, *words, f"data_dir={tmp_path}")
    assert (code, out) == (2, [])
    assert part in err
