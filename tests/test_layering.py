"""Imports run one way. Read from the sources, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qru"

# Part of the package -> level. A part imports from lower levels only; parts of one level are siblings.
LEVELS = {
    "registry": 0, "paths": 0, "style": 0, "counts": 0,
    "config": 1, "records": 1, "reported": 1, "kernel_record": 1, "notebook": 1, "processes": 1, "tensor_file": 1,
    "watch": 1,
    "ops": 2, "corpora": 2, "optimizers": 2, "checkpoint": 2, "cost": 2, "loop": 2, "parallel": 2, "tables": 2,
    "models": 3, "launch": 3, "figures": 3, "typeset": 3, "peft_adapter": 3,
    "guards": 4, "sure": 4,
    "objectives": 4, "quantizers": 4, "metrics": 4, "kernel_figures": 4, "why_figures": 4, "shards": 4,
    "sheet": 4, "evaluation_sheet": 5, "print_figures": 5, "paper_tables": 5, "paper_figures": 6,
    "defaults": 5, "forget_sets": 5, "verdict": 5, "unlearn": 5, "checkpoint_audit": 5,
    "calibration": 5,
    "formats": 5,
    "compress": 6, "prediction": 6, "audit_report": 6,
    "scoring": 7, "movement": 7, "ship": 7, "ship_card": 2, "ship_input": 6, "ship_record": 2,
    "ship_llmcompressor": 1, "ship_figures": 4, "ship_bench": 8,
    "inputs": 8,
    "pipeline": 9,
    "bounds": 5, "transforms": 7, "cells": 8, "certificate": 10, "certificate_page": 10,
    "certificate_figures": 4, "certificate_runs": 11,
    "arms": 10, "budget": 10, "preparation": 10, "choose": 10, "guard_record": 10, "widgets": 10, "train": 10,
    "cli": 11, "experiments": 11, "why": 11,
    "why_records": 12, "why_verdict": 12, "update_record": 12, "why_sheets": 13,
    "method_tables": 6, "method_figures": 7, "overlap_tables": 7, "overlap_record": 8, "attack_tables": 7,
    "quail_tables": 7, "calibration_tables": 7, "margin_record": 8,
    "paper_words": 14, "method_facts": 15, "paper_facts": 16,
}  # fmt: skip
WITHOUT_TORCH = (
    "registry", "paths", "style", "config", "records", "notebook", "kernel_record", "tables", "figures", "typeset",
    "watch", "ship_record",
    "kernel_figures", "why_figures", "reported", "sheet", "paper_tables", "paper_figures", "print_figures",
    "evaluation_sheet", "ship_figures", "certificate_figures",
    "method_tables", "method_figures", "overlap_tables", "quail_tables", "calibration_tables", "attack_tables",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports; what it takes from ``qru`` itself is named ``qru.<name>``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add(f"qru.{part_of(path)}")
        elif isinstance(node, ast.ImportFrom) and node.module == "qru":
            names |= {f"qru.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("qru.")}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    part = part_of(path)
    assert part in LEVELS, f"qru/{part} is new: give it a level in {Path(__file__).name}"
    for other in own(imported(path)) - {part}:
        assert other in LEVELS, f"{path.name} imports qru.{other}, which is no part of the package"
        assert LEVELS[other] < LEVELS[part], (
            f"qru/{path.relative_to(PACKAGE)} (level {LEVELS[part]}) imports qru.{other} (level {LEVELS[other]})"
        )


@pytest.mark.parametrize("path", [p for p in sources() if part_of(p) in WITHOUT_TORCH], ids=lambda path: path.stem)
def test_the_paper_side_never_names_torch(path):
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "peft", "accelerate"}
    assert own(names) <= set(WITHOUT_TORCH)


def test_the_paper_side_runs_without_torch():
    code = f"import sys, {', '.join(f'qru.{part}' for part in WITHOUT_TORCH)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
