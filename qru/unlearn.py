"""Unlearning: one forward over forget and retain together, one loss, one step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from qru import loop, models
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
    """What the model before unlearning says. For LoRA it is the same model with its adapter disabled."""

    def __init__(self, model: torch.nn.Module, config: RunConfig, frozen: torch.nn.Module | None) -> None:
        assert (frozen is None) == (config.adapter == "lora")
        self.model = model if frozen is None else frozen
        self.disabled = model.disable_adapter if frozen is None else nullcontext

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor, labels: torch.Tensor, distribution: bool = False) -> Said:
        training = self.model.training
        self.model.eval()  # dropout is the policy's alone
        with self.disabled():
            answer = said(self.model, ids, labels, distribution)
        self.model.train(training)
        return answer


def unlearn(
    model: torch.nn.Module,
    tokenizer,
    corpus: Corpus,
    config: RunConfig,
    *,
    frozen: Callable[[], torch.nn.Module],
    forget_score: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    checks_per_epoch: int = 2,
    checkpoint: Path | None = None,
    label: str = "unlearn",
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """Unlearn ``corpus.raw["forget"]`` from a model.

    Args:
        model: the target, as ``models.load`` gives it; changed in place.
        tokenizer: of the target.
        corpus: its ``forget`` and ``retain1`` documents are trained on.
        config: resolved (no field is ``None`` but ``forget_goal``).
        frozen: loads a second copy of the target; called only by full fine-tuning with a term that needs it.
        forget_score: model -> VerbMem and KnowMem (percent) on the stopping half; needed with ``forget_goal``.
        checks_per_epoch: how often the goal is looked at.
        checkpoint: where to resume from and to save to.
        label: shown beside the progress bar.

    Returns:
        The trained model (still wrapped by peft for LoRA) and one dict per step.
    """
    forget_name, retain_name = parse_method(config.method)
    forget_term = forget_terms[forget_name]
    retain_term = retain_terms[retain_name] if retain_name else None
    context = model.config.max_position_embeddings
    forget = models.rows(corpus.raw["forget"], tokenizer, context)
    retain = models.rows(corpus.raw["retain1"], tokenizer, context)
    if not forget or (retain_term and not retain):
        raise ValueError(f"corpus {corpus.name!r} has {len(forget)} forget and {len(retain)} retain1 rows; need both.")

    model, optimizer = models.as_trainable(model, config)
    wanted = {forget_term.reference, retain_term.reference if retain_term else None}
    needs_frozen = config.adapter == "full" and wanted != {None}
    reference = Reference(model, config, frozen() if needs_frozen else None) if wanted != {None} else None
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batch = config.batch_size
    device = next(model.parameters()).device

    def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = loop.pad(rows, padding)
        return ids.to(device), labels.to(device)

    before: list[torch.Tensor] = []  # NPO's reference, one row of log-probabilities a forget document, computed once
    if forget_term.reference == "log_probs":
        for start in range(0, len(forget), batch):
            part = forget[start : start + batch]
            with loop.autocast(device):  # in the policy's precision, so that the ratio starts at zero
                answer = reference(*padded(part))
            before += [row[: len(ids) - 1] for row, ids in zip(answer.log_probs, part, strict=True)]

    def loss_of(model: torch.nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = loop.order(len(forget), batch, step, config.seed)
        rows = [forget[i] for i in chosen]
        if retain_term:
            # Pairs run on their own clock, so each forget document meets ever new retain documents.
            rows += [retain[i] for i in loop.order(len(retain), batch, step, config.seed + 1)][: len(chosen)]
        ids, labels = padded(rows)
        full = bool(retain_term and retain_term.reference == "distribution")
        policy_forget, policy_retain = split(said(model, ids, labels, full), len(chosen))
        reference_forget = None
        if before:
            log_probs = torch.nn.utils.rnn.pad_sequence([before[i] for i in chosen], batch_first=True)
            log_probs = torch.nn.functional.pad(log_probs, (0, ids.shape[1] - 1 - log_probs.shape[1]))
            reference_forget = Said(log_probs, policy_forget.mask)
        loss = forget_loss = forget_term(policy_forget, reference_forget, config.beta)
        logged = {"forget": forget_loss.item()}
        if retain_term:
            reference_retain = reference(ids[len(chosen) :], labels[len(chosen) :], True) if full else None
            retain_loss = retain_term(policy_retain, reference_retain)
            loss = forget_loss + config.retain_weight * retain_loss
            logged["retain"] = retain_loss.item()
        return loss, logged

    per_epoch = -(-len(forget) // batch)
    every = max(1, per_epoch // checks_per_epoch)

    def check(step: int) -> tuple[bool, dict[str, float]] | None:
        if (step + 1) % every:
            return None
        scores = forget_score(model)
        return all(value <= config.forget_goal for value in scores.values()), scores

    history = loop.fit(
        model,
        optimizer,
        loss_of,
        config.epochs * per_epoch,
        label=label,
        seed=config.seed,
        check=check if config.forget_goal is not None else None,
        checkpoint=checkpoint,
    )
    return model, history
