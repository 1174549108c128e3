"""Our training against the conventional trainer's, the same networks, in turns in one run.

    python scripts/bench/compare.py [RECIPE ...] [--rounds 3] [--seconds 8]

In each round, for each recipe: the conventional trainer as such code ships (one process, torch's
threads, two loaders), as many of it at once as there are cores (one thread and one loader each),
and a sweep of ours. Prints medians, their range and the ratios; writes all rounds as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = ["mnist_mlp", "cifar10_alexnet", "cifar10_resnet56_thin", "cifar10_resnet56"]
CONVENTIONAL = str(Path(__file__).with_name("conventional.py"))
WAYS = ("conventional", "conventional at once", "lsexp sweep")


def conventional(recipe: str, seconds: float, processes: int) -> float:
    """Images per second of so many processes together."""
    words = [sys.executable, CONVENTIONAL, recipe, "--seconds", str(seconds)]
    if processes > 1:
        words += ["--threads", "1", "--loaders", "1"]
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    total = 0.0
    for process in running:
        out, err = process.communicate()
        if process.returncode:
            sys.exit(err)
        total += json.loads(out)["images_per_second"]
    return total


def ours(recipe: str, seconds: float) -> tuple[float, dict]:
    """Images per second of a sweep, and all that `lsexp bench` tells."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["bench", f"recipe={recipe}", f"seconds={seconds}", f"out_dir={folder}"]
        done = subprocess.run(
            [sys.executable, "-m", "lsexp.cli", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(Path(done.stdout.split()[-1]).read_text())
    return found["recipes"][0]["sweep"]["value"], found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/bench/compare.json"))
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rounds: dict[str, list[dict]] = {recipe: [] for recipe in given.recipes}
    for number in range(given.rounds):
        for recipe in given.recipes:
            rate, bench = ours(recipe, given.seconds)
            found = {
                "conventional": conventional(recipe, given.seconds, 1),
                "conventional at once": conventional(recipe, given.seconds, cores),
                "lsexp sweep": rate,
                "bench": bench,
            }
            rounds[recipe].append(found)
            print(number, recipe, {way: round(found[way]) for way in WAYS}, file=sys.stderr)
    print(f"{'images/s, median (range)':<24}" + "".join(f"{way:>30}" for way in WAYS) + "   ratio")
    for recipe, results in rounds.items():
        cells, middle = [], {}
        for way in WAYS:
            rates = [result[way] for result in results]
            middle[way] = statistics.median(rates)
            cells.append(f"{middle[way]:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")
        limit = statistics.median(
            result["bench"]["recipes"][0]["sweep"]["of_limit"] for result in results
        )
        ratio = middle["lsexp sweep"] / middle["conventional"]
        at_once = middle["lsexp sweep"] / middle["conventional at once"]
        print(
            f"{recipe:<24}"
            + "".join(f"{cell:>30}" for cell in cells)
            + f"   {ratio:.1f}x, {at_once:.1f}x; {100 * limit:.0f} % of the limit"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rounds, indent=1) + "\n")
    print(given.out)


if __name__ == "__main__":
    main()
