"""What the process that commands are forked from has done before: composed once, and drawn once."""

import contextlib
import io

from lsexp.cli import main
from lsexp.figures import grid, styled


@styled
def draw() -> None:
    figure, [[axis]] = grid(1, 1)
    axis.plot([0, 1], label="some")
    axis.legend()
    for form in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=form)


with contextlib.redirect_stdout(io.StringIO()):
    main(["sweep", "eps", "--cfg", "job"])
draw()
