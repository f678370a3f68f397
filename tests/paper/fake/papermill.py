"""In the place of papermill: a notebook does in no time what the graph expects of it; those named by ``FAIL`` fail."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from qru.records import say

*_, executed, _, given = sys.argv
values = json.loads(given)
name = Path(executed).stem
Path(executed).write_text("{}")
with open(os.environ["DONE"], "a") as done:
    done.write(f"{name}\n")
if os.environ.get("FAIL", "no run") in name:
    raise ValueError("it was told to fail")
if "out" in values:
    Path(values["out"]).parent.mkdir(exist_ok=True)
    for ending in (".typ", ".tex") if name.startswith("table_") else (".pdf", ".svg"):
        shown = [json.loads(Path(path).read_text())["scores"] for path in values["records"]]
        Path(values["out"] + ending).write_text(json.dumps(shown) if ending == ".pdf" else f"#{json.dumps(str(shown))}")
else:
    folder = Path(os.environ["QRU_HOME"]) / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    record = {key: {} for key in ("config", "scores", "crossings", "cost", "provenance")}
    record["provenance"] = {"home": os.environ["QRU_HOME"]}
    (folder / "record.json").write_text(json.dumps(record))
    say(f"record: {folder / 'record.json'}")
