"""What ``test_processes`` runs in one process and, by torchrun, in two: small trainings, and what came of them.

    torchrun --nproc-per-node 2 several_processes.py FOLDER CASE… [--save DIR [--die-at STEP]]

A case may be run twice under names of its own: "bf16" and "bf16@killed".

Losses are computed in fp32 whatever the CPU has: what is left between one process and two is the order of additions.
"""

import argparse
import os
import signal
from pathlib import Path

import torch

from qru import loop, models, parallel, processes
from qru.config import RunConfig
from qru.corpora import load_corpus
from qru.defaults import resolve
from qru.metrics import token_log_probs
from qru.unlearn import unlearn

# name -> settings, how much of a batch at once. The 12 forget documents of the smoke corpus in batches of 11 make steps
# with unequal shares and steps in which one process has none; in batches of 5, shares of 3 and 2, then of 1 and 1.
CASES = {
    "fp32": ({"method": "npo_klr", "weights": "fp32", "batch_size": 11, "forget_goal": 0.0}, {}),
    "fp32-gdr": ({"method": "ga_gdr", "weights": "fp32", "batch_size": 5}, {"at_once": 2}),
    "bf16": ({"method": "npo_klr", "weights": "bf16", "batch_size": 5}, {"gradient_checkpointing": True}),
    "bf16-gdr": ({"method": "ga_gdr", "weights": "bf16", "batch_size": 11}, {}),
    "lora": ({"method": "npo_klr", "adapter": "lora", "batch_size": 11}, {}),
    "lora-gdr": ({"method": "ga_gdr", "adapter": "lora", "batch_size": 5}, {"gradient_checkpointing": True}),
    "hidden": ({"method": "rmu_actr", "weights": "fp32", "batch_size": 5}, {"gradient_checkpointing": True}),
    "negated": ({"method": "taskvector", "weights": "fp32", "batch_size": 11}, {}),
    "preferred": ({"method": "idkdpo_gdr", "adapter": "lora", "batch_size": 5}, {"at_once": 2}),
}  # fmt: skip


def trained(case: str, start: Path, checkpoint: Path | None = None) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """History and whole state of one case; the state is empty in all processes but the first."""
    settings, held = CASES[case.partition("@")[0]]
    settings = {"epochs": 2, "learning_rate": 1e-4, "lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.0} | settings
    model, tokenizer = models.load(start)
    corpus = load_corpus("books", scale="smoke")

    def surprise(model) -> dict[str, float]:
        """Stands in for VerbMem, and never meets the goal: nats of two documents."""
        return {"verbmem": -sum(row.sum().item() for row in token_log_probs(model.eval(), tokenizer, texts))}

    texts = corpus.raw["forget"][:2]
    model, history = unlearn(
        model,
        tokenizer,
        corpus,
        resolve(RunConfig(scale="smoke", **settings)),
        frozen=lambda: models.load(start)[0],
        forget_score=surprise,
        checkpoint=checkpoint,
        **held,
    )
    return history, processes.whole_state(model)


def die_while_saving(step: int, replace=os.replace) -> None:
    """The second process kills torchrun and itself when all have written a step and it has yet to name its share."""
    seen = []

    def kill_then(source, target):
        if str(target).endswith("1-of-2") and str(source).endswith(loop.NEWER):
            seen.append(target)
            if len(seen) == step:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(source, target)

    os.replace = kill_then


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("start", type=Path)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--die-at", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    loop.compute_precision = lambda device: "fp32"
    parallel.leave_with(os.getppid())
    processes.join(torch.device("cpu"))
    (given.save / f"pid-{processes.rank()}").write_text(str(os.getpid()))
    if given.die_at:
        fit = loop.fit
        loop.fit = lambda *a, **k: fit(*a, **k, checkpoint_seconds=0)
        die_while_saving(given.die_at)
    for case in given.cases:
        outcome = trained(case, given.start, given.save / f"{case}.training")
        if processes.rank() == 0:
            torch.save(outcome, given.save / f"{case}.pt")
    processes.leave()


if __name__ == "__main__":
    main()
