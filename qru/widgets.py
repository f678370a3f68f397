"""Controls for JupyterLab over the weights of a recorded run."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
from IPython.display import display

from qru import figures, models, movement
from qru.compress import audit
from qru.ops import QuantSpec
from qru.records import Record
from qru.tables import arm_label


def group_label(group_size: int | str) -> str:
    return {-1: "row", "tensor": "tensor"}.get(group_size, str(group_size))


def crossing_sliders(
    *records: Record,
    bits: Sequence[int] = (2, 3, 4, 8),
    group_sizes: Sequence[int | str] = (32, 64, 128, -1, "tensor"),
) -> ipywidgets.Widget:
    """Bits and group size as sliders; crossings of every layer, computed anew from the saved weights at each move.

    Args:
        records: runs to show, one row of the figure each.
        bits, group_sizes: the stops of the sliders; −1 is the row and ``"tensor"`` the whole matrix.

    Returns:
        The widget, to be the last expression of a cell.
    """
    weights = {arm_label(r): [models.load(folder)[0] for folder in movement.checkpoints(r)] for r in records}
    wide = ipywidgets.Layout(width="380px")
    bit_slider = ipywidgets.SelectionSlider(options=list(bits), value=4, description="bits", layout=wide)
    group_slider = ipywidgets.SelectionSlider(
        options=[(group_label(g), g) for g in group_sizes], value=128, description="group size", layout=wide
    )

    def show(bits: int, group_size: int | str) -> None:
        spec = QuantSpec(bits=bits, group_size=group_size)
        display(figures.crossings({label: audit(*pair, spec) for label, pair in weights.items()}, spec.name))

    picture = ipywidgets.interactive_output(show, {"bits": bit_slider, "group_size": group_slider})
    return ipywidgets.VBox([ipywidgets.HBox([bit_slider, group_slider]), picture])
