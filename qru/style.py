"""How figures look: one palette, one set of sizes, and the words for models, metrics and precisions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.pyplot as plt

# Okabe and Ito's colours: told apart by colour-blind readers. Markers and line styles say the same in greyscale.
INK = "#222222"
MUTED = "#767676"
ARMS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ARM_MARKERS = ("o", "s", "^", "D", "v", "P")
ARM_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
MODELS = {"target": (INK, "*", "-"), "retrained": (MUTED, "X", ":")}

RC = {
    "figure.facecolor": "white",  # said outright: a dark JupyterLab theme must not shine through
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the house style, leaving the notebook's own settings as they are."""
    with plt.rc_context(RC):
        yield


def precision_label(name: str) -> str:
    """``rtn-int4-g128`` -> ``int4 g128``; short enough for an axis."""
    return name.removeprefix("rtn-").replace("-", " ")
