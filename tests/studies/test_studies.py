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


def test_a_run_that_went_on_elsewhere_is_of_both_devices():
    one = trained("bf16")
    on = [{"environment": {"device": device}} for device in ("H200", "H200", "cpu")]
    one.entry.metrics["provenance"]["segments"] = on
    one.entry.metrics["test"] = one.entry.metrics["val"] = None
    assert run_row(one)["device"] == "H200, then cpu"
