"""What all studies share."""

from pathlib import Path

from lsexp.runs.catalog import Entry
from lsexp.studies import Trained, mixed, run_row


def trained(precision, device="cpu", recipe="mine", status="finished"):
    entry = Entry(Path("run"), status)
    entry.config = {"recipe": recipe, "precision": precision}
    entry.metrics = {"provenance": {"device": device, "command": []}}
    return Trained({"eps": 0.0, "seed": 0}, entry)


def test_precisions_and_devices_that_are_mixed_are_told():
    alike = [trained("bf16"), trained("bf16"), trained("fp32", status="failed")]
    assert mixed(alike) == []
    assert mixed([*alike, trained("fp32", recipe="students")]) == []  # nobody compares these
    assert mixed([*alike, trained("fp32"), trained("bf16", device="cuda")]) == [
        "mixed precisions: of mine 3 of bf16, 1 of fp32; differences between runs are of these too",
        "mixed devices: of mine 3 of cpu, 1 of cuda; differences between runs are of these too",
    ]


def went_on(*parts):
    """A finished run of processes, each (device, class of CPU, torch, commit)."""
    one = trained("bf16")
    one.entry.metrics["provenance"]["segments"] = [
        {
            "environment": {"device": device, "cpu_class": cpu_class, "torch": torch},
            "git": {"commit": commit, "dirty": False},
        }
        for device, cpu_class, torch, commit in parts
    ]
    one.entry.metrics["test"] = one.entry.metrics["val"] = None
    return one


def test_a_run_that_went_on_elsewhere_is_of_both_places():
    here, there = ("cpu", "amx_bf16", "2.14", "b"), ("H200", "avx512_bf16", "2.11", "a")
    row = run_row(went_on(there, there, here, ("cpu", "fp32", "2.14", "c")))
    assert row["device"] == "H200, then cpu"
    assert row["cpu_class"] == "amx_bf16, then fp32"  # of a GPU's host it does not matter
    assert row["torch"] == "2.11, then 2.14"
    assert row["commit"] == "a, then b, then c"
    moved = went_on(here, ("cpu", "fp32", "2.14", "b"))
    assert mixed([went_on(here), moved]) == [
        "mixed classes of CPU: of mine 1 of amx_bf16, 1 of amx_bf16, then fp32; differences "
        "between runs are of these too"
    ]
