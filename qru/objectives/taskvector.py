"""Learning the forget documents, to take what was learned away."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qru import processes
from qru.objectives import Said, Settings, forget_terms, needs, token_mean

# λ that are tried in this order where a goal is to be met; ours. Powers of two, so that in bf16 a factor of λ is exact.
LADDER = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@forget_terms.register("taskvector")
@needs(reference=None, negated=True)
def taskvector(policy: Said, reference: None, settings: Settings) -> torch.Tensor:
    """Task vector: minimise the cross-entropy of the forget documents, then go from the target the other way.

        L = CE(θ) = −E_t log P_θ(y_t | y_<t),   then θ = θ_0 − λ (θ_ft − θ_0)

    The second half is ``subtract``, after training: until then the model knows the documents ever better, so no goal is
    looked at. A retain term is trained along with its own sign (ours): the target is about where it is smallest, so to
    second order it is the same on both sides, and keeps the vector, and with it its negative, out of directions in
    which retain documents change.

    Args:
        policy: what the model being trained says of the forget batch; log_probs (B, T), natural log.
        reference, settings: not used.

    Returns:
        The term, a scalar in nats a token.

    Source: Ilharco et al. 2023 (arXiv 2212.04089), §2 and §3, "forgetting via negation"; MUSE (arXiv 2407.06460), §4.
    """
    return -token_mean(policy.log_probs, policy.mask)


def negated(start: torch.Tensor, tuned: torch.Tensor, scaling: float) -> torch.Tensor:
    """θ_0 − λ (θ_ft − θ_0), in fp32.

    Args:
        start, tuned: of one shape.
        scaling: λ.
    """
    return start.float() - scaling * (tuned.float() - start.float())


class TaskVector:
    """The weights that training starts from, and then the way from those that it ended at.

    Every full-size arm's result is rounded to bf16 once, after the negation: what is looked at is what is stored. The
    arm still decides what was stepped, and so which weights the vector moves. Of an adapter, B is negated and A kept:
    θ_ft − θ_0 is (α/r) B A.

    Args:
        model: ready to train, before any step and before a checkpoint is read; several processes each keep their part.
        adapter: as in ``RunConfig``.
    """

    def __init__(self, model: torch.nn.Module, adapter: str) -> None:
        self.lora = adapter == "lora"
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = [p for name, p in trained.items() if not self.lora or "lora_B" in name]
        self.start = self._parts()

    def _parts(self) -> list[torch.Tensor]:
        # Copies lie in main memory: a GPU has no room for them beside the moments.
        return [processes.own_part(p).to("cpu", copy=True) for p in self.parameters]

    @torch.no_grad()
    def subtract(
        self, scalings: tuple[float, ...], reached: Callable[[], tuple[bool, dict[str, float]]] | None
    ) -> dict:
        """Go from the start against what was learned, by the first λ that reaches the goal, or else by the last.

        Args:
            scalings: λ to try, in order.
            reached: (goal met?, numbers to log) of the model as it stands; ``None``: the first λ is taken unseen.

        Returns:
            What to log: ``task_scaling``, the numbers of the λ that was taken, ``stopped`` if it met the goal.
        """
        tuned = self._parts()
        for scaling in scalings:
            for parameter, start, end in zip(self.parameters, self.start, tuned, strict=True):
                value = negated(start, end, scaling)
                processes.own_part(parameter).copy_(value if self.lora else value.bfloat16())
            met, scores = processes.agreed(reached()) if reached else (None, {})
            if met or not reached:
                break
        return {"task_scaling": scaling} | scores | ({"stopped": 1.0} if met else {})
