"""Fixtures for all tests."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Small tensors: more threads would only wait for each other, the more so beside another worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

UNPACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack"


collect_ignore = ["warm.py"]

SLOWEST = ("test_sweep", "test_faults", "test_cli", "test_snapshots", "test_networks", "test_bench")
"""Files that start many processes: first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


SETS = ("mnist", "cifar10", "cifar100")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder that holds the real mnist.npz, cifar10.npz and cifar100.npz; only to be read."""
    given = os.environ.get("LSEXP_TEST_DATA")
    folder = Path(given) if given else Path(tempfile.gettempdir(), "lsexp-test-data")
    missing = [name for name in SETS if not (folder / f"{name}.npz").is_file()]
    if missing and given:
        pytest.fail(f"LSEXP_TEST_DATA={given}: has no {', '.join(missing)}")
    if missing and not UNPACK.is_file():
        pytest.skip(f"no real data: LSEXP_TEST_DATA is not set and there is no {UNPACK}")
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: several workers may do this at once.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, UNPACK, scratch, *missing]
            subprocess.run(command, check=True, capture_output=True)
            for name in missing:
                Path(scratch, f"{name}.npz").rename(folder / f"{name}.npz")
    return folder
