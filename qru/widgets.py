"""Controls for JupyterLab over the weights of a recorded run."""

from __future__ import annotations

import io
from collections.abc import Sequence

import ipywidgets
import torch

from qru import figures, models, movement
from qru.compress import audit
from qru.ops import QuantSpec
from qru.records import Record
from qru.tables import labelled


def crossing_sliders(
    *records: Record,
    bits: Sequence[int] = (2, 3, 4, 8),
    groups: Sequence[str] = ("g32", "g64", "g128", "row", "tensor"),
) -> ipywidgets.Widget:
    """Bits and group size as sliders; crossings of every layer, computed anew from the saved weights at each move.

    Args:
        records: runs to show, one row of the figure each.
        bits, groups: the stops of the sliders; the middle of the scale is where they start.

    Returns:
        The widget, to be the last expression of a cell.
    """
    weights = {
        label: [models.load_weights(folder, torch.bfloat16) for folder in movement.checkpoints(record)]
        for label, record in labelled(*records).items()
    }
    wide = ipywidgets.Layout(width="380px")
    sliders = {
        "bits": ipywidgets.SelectionSlider(options=bits, value=bits[len(bits) // 2], description="bits", layout=wide),
        "group": ipywidgets.SelectionSlider(
            options=groups, value=groups[len(groups) // 2], description="group", layout=wide
        ),
    }

    # A picture of our own, not ipywidgets' Output: a front end answers an Output on the very socket on which nbclient
    # waits for the cell's end, and now and then (pyzmq's edge-triggered events) it then waits for ever.
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="1000px"))

    def show(_: object = None) -> None:
        spec = QuantSpec.parse(f"rtn-int{sliders['bits'].value}-{sliders['group'].value}")
        reports = {label: {spec.name: audit(*pair, spec)} for label, pair in weights.items()}
        drawn = io.BytesIO()
        figures.crossings(reports, spec.name).savefig(drawn, bbox_inches="tight")
        picture.value = drawn.getvalue()

    for slider in sliders.values():
        slider.observe(show, names="value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox(list(sliders.values())), picture])
