"""What the process that commands are forked from has done before: composed once, and drawn once.

Where that fails it is told, and tests are slower.
"""

import contextlib
import io
import traceback

from lsexp.cli import main
from lsexp.figures import grid, styled


@styled
def draw() -> None:
    figure, [[axis]] = grid(1, 1)
    axis.plot([0, 1], label="some")
    axis.legend()
    for form in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=form)


try:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["sweep", "eps", "--cfg", "job"]) == 0
    draw()
except Exception:
    traceback.print_exc()
