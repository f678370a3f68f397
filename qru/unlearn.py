"""Unlearning: one forward over forget and retain together, one loss, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from qru import loop, models, processes
from qru.config import RunConfig
from qru.corpora import Corpus
from qru.objectives import Said, forget_terms, parse_method, retain_terms


def said(model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor, distribution: bool = False) -> Said:
    """Run the model and read off what it says of the tokens that follow the first.

    Args:
        ids, labels: (B, T); labels are ``loop.IGNORED`` on padding.
        distribution: keep the whole log-softmax.

    Returns:
        Log-probabilities (B, T − 1) and, if asked for, (B, T − 1, V), in fp32 whatever the model computes in.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    mask = labels[:, 1:] != loop.IGNORED
    log_softmax = logits.log_softmax(-1)
    log_probs = log_softmax.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return Said(log_probs, mask, log_softmax if distribution else None)


def split(both: Said, forget: int) -> tuple[Said, Said]:
    """The first ``forget`` documents of a batch and the rest."""
    first = Said(*(part if part is None else part[:forget] for part in both))
    rest = Said(*(part if part is None else part[forget:] for part in both))
    return first, rest


class Reference:
    """What the model before unlearning says.

    Args:
        model: that model; or the one being trained, if its adapters can be disabled or no step has been taken yet.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.disabled = model.disable_adapter if hasattr(model, "peft_config") else nullcontext

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor, labels: torch.Tensor, distribution: bool = False) -> Said:
        training = self.model.training
        self.model.eval()  # dropout is the policy's alone
        with self.disabled():
            answer = said(self.model, ids, labels, distribution)
        self.model.train(training)
        return answer


class Portion(NamedTuple):
    """Documents of a batch that one process computes at once; the portions of all processes make up the batch.

    Attributes:
        rows: of tokens; never none, since processes that share a model compute together.
        weight: the portion's part in a mean over the batch; 0 for a stand-in that another process has, too.
    """

    rows: list[torch.Tensor]
    chosen: list[int]
    weight: float


def portions(data: list[torch.Tensor], chosen: list[int], mean: str, at_once: int, passes: int) -> list[Portion]:
    """This process's portions of the batch ``chosen``.

    Args:
        data: token rows (T,).
        chosen: indices of the whole batch, the same in every process.
        mean: what is averaged over: ``"tokens"`` or ``"documents"``, as ``objectives.needs`` marks it.
        at_once: documents in a portion, at most.
        passes: portions to return, the same number in every process.
    """

    def amount(indices: list[int]) -> int:
        return sum(len(data[i]) - 1 for i in indices) if mean == "tokens" else len(indices)

    own = chosen[processes.rank() :: processes.count()]
    found = []
    for start in range(0, passes * at_once, at_once):
        part = own[start : start + at_once]
        weight = amount(part) / amount(chosen)
        part = part or chosen[:1]
        found.append(Portion([data[i] for i in part], part, weight))
    return found


def unlearn(
    model: torch.nn.Module,
    tokenizer,
    corpus: Corpus,
    config: RunConfig,
    *,
    frozen: Callable[[], torch.nn.Module],
    forget_score: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    checks_per_epoch: int = 2,
    at_once: int | None = None,
    gradient_checkpointing: bool = False,
    checkpoint: Path | None = None,
    label: str = "unlearn",
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """Unlearn ``corpus.raw["forget"]`` from a model.

    Args:
        model: the target, as ``models.load`` gives it; changed in place, moved to ``loop.device()``.
        tokenizer: of the target.
        corpus: its ``forget`` and ``retain1`` documents are trained on.
        config: resolved (no field is ``None`` but ``forget_goal``).
        frozen: loads a second copy of the target; called only by full fine-tuning with a term that asks for the
            reference's distribution at every step.
        forget_score: model -> VerbMem and KnowMem (percent) on the stopping half; needed with ``forget_goal``.
        checks_per_epoch: how often the goal is looked at.
        at_once: forget documents, and as many retain documents, in one forward pass of one process; ``None``: all of
            its share of a batch. The losses do not depend on it.
        gradient_checkpointing: keep one activation a layer and compute the others again backwards.
        checkpoint: where to resume from and to save to.
        label: shown beside the progress bar.

    Returns:
        The trained model (still wrapped by peft for LoRA, sharded if several processes trained it) and one dict per
        step.

    Raises:
        ValueError: the corpus has no rows to train on, more processes share a batch than it has documents, or the goal
            would first be looked at after the last step; before any step.
        FloatingPointError: the loss is NaN or infinite (names the step).
    """
    forget_name, retain_name = parse_method(config.method)
    forget_term = forget_terms[forget_name]
    retain_term = retain_terms[retain_name] if retain_name else None
    context = models.context(model, config.scale)
    forget = models.rows(corpus.raw["forget"], tokenizer, context)
    retain = models.rows(corpus.raw["retain1"], tokenizer, context)
    if not forget or (retain_term and not retain):
        raise ValueError(f"corpus {corpus.name!r} has {len(forget)} forget and {len(retain)} retain1 rows; need both.")

    batch = config.batch_size
    processes.check_share(processes.count(), batch)
    per_epoch = -(-len(forget) // batch)
    steps = config.epochs * per_epoch
    # A run shorter than the time between two looks is looked at when it ends.
    every = min(config.check_steps or max(1, per_epoch // checks_per_epoch), steps)

    models.place(model, config)
    if gradient_checkpointing:
        # transformers renamed it in 5.2x; models from before have the old name alone
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if config.adapter == "lora":  # else nothing that enters a checkpointed layer requires a gradient
            model.enable_input_require_grads()
    model, optimizer = models.as_trainable(model, config)
    reference = Reference(model)
    full = bool(retain_term and retain_term.reference == "distribution")
    if full and config.adapter != "lora":
        copy = frozen().requires_grad_(False)
        models.place(copy, config)  # in the policy's precision, so that the divergence starts at zero
        processes.shard(copy)
        reference = Reference(copy)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = loop.device()
    at_once = at_once or -(-batch // processes.count())

    def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = loop.pad(rows, padding)
        return ids.to(device), labels.to(device)

    before: dict[int, torch.Tensor] = {}  # NPO's reference: log-probabilities of each forget document, computed once
    if forget_term.reference == "log_probs":
        untrained = Reference(model)  # no step has been taken: full fine-tuning needs no second copy for this
        together = min(batch, at_once * processes.count())
        for start in range(0, len(forget), together):
            everyones = list(range(start, min(start + together, len(forget))))
            for part in portions(forget, everyones, "documents", at_once, passes=1):
                with loop.autocast(device):  # in the policy's precision, so that the ratio starts at zero
                    answer = untrained(*padded(part.rows))
                for i, row in zip(part.chosen, answer.log_probs.cpu(), strict=True):
                    before[i] = row[: len(forget[i]) - 1]
        before = {i: row for share in processes.gathered(before) for i, row in share.items()}

    def loss_of(model: torch.nn.Module, step: int) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        chosen = loop.order(len(forget), batch, step, config.seed)
        passes = -(-len(chosen) // (at_once * processes.count()))
        forgotten = portions(forget, chosen, forget_term.mean, at_once, passes)
        retained: list[Portion | None] = [None] * passes
        if retain_term:
            # Pairs run on their own clock, so each forget document meets ever new retain documents.
            paired = loop.order(len(retain), batch, step, config.seed + 1)[: len(chosen)]
            retained = portions(retain, paired, retain_term.mean, at_once, passes)
        for part, beside in zip(forgotten, retained, strict=True):
            yield loss_of_portion(model, part, beside)

    def loss_of_portion(
        model: torch.nn.Module, part: Portion, beside: Portion | None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        documents = len(part.rows)
        ids, labels = padded(part.rows + (beside.rows if beside else []))
        reference_retain = reference(ids[documents:], labels[documents:], True) if full else None
        policy_forget, policy_retain = split(said(model, ids, labels, full), documents)
        reference_forget = None
        if before:
            log_probs = torch.nn.utils.rnn.pad_sequence([before[i] for i in part.chosen], batch_first=True)
            log_probs = torch.nn.functional.pad(log_probs, (0, ids.shape[1] - 1 - log_probs.shape[1]))
            reference_forget = Said(log_probs.to(device), policy_forget.mask)
        loss = forget_loss = part.weight * forget_term(policy_forget, reference_forget, config.beta)
        logged = {"forget": forget_loss.item()}
        if beside:
            retain_loss = beside.weight * retain_term(policy_retain, reference_retain)
            loss = forget_loss + config.retain_weight * retain_loss
            logged["retain"] = retain_loss.item()
        return loss, logged

    def check(step: int) -> tuple[bool, dict[str, float]] | None:
        if (step + 1) % every:
            return None
        with processes.held_whole(model):
            scores = forget_score(model)
        decisive = config.goal_metrics or scores
        return all(scores[name] <= config.forget_goal for name in decisive), scores

    history = loop.fit(
        model,
        optimizer,
        loss_of,
        steps,
        label=label,
        seed=config.seed,
        check=check if config.forget_goal is not None else None,
        checkpoint=checkpoint,
    )
    return model, history
