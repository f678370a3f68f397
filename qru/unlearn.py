"""Unlearning: one forward over forget and retain together, one loss, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from qru import loop, models, processes, sure
from qru.config import RunConfig
from qru.corpora import Corpus
from qru.guards import guards
from qru.objectives import Said, Settings, forget_terms, parse_method, retain_terms
from qru.objectives.dpo import endings, opening, preferred_rows
from qru.objectives.idkdpo import refusals
from qru.objectives.rmu import control, steered_layer
from qru.objectives.taskvector import LADDER, TaskVector


def said(
    model: torch.nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    distribution: bool = False,
    layer: int | None = None,
    logits: bool = False,
) -> Said:
    """Run the model and read off what it says of the tokens that follow the first, or of the class of a whole text.

    Args:
        ids: (B, T), padded on the right.
        labels: (B, T), ``loop.IGNORED`` on padding; for a classifier the classes, (B, 1).
        distribution: keep the whole log-softmax.
        layer: keep what this decoder layer, from 0, passes on at each of those tokens; not of a classifier.
        logits: keep them as they are before the softmax.

    Returns:
        Log-probabilities (B, T − 1) and, if asked for, (B, T − 1, V) and (B, T − 1, D), in fp32 whatever the model
        computes in. A classifier says one thing of a text, the class that it was given: (B, 1), and (B, 1, C) over all
        classes.
    """
    answer = model(input_ids=ids, use_cache=False, output_hidden_states=layer is not None)
    raw, hidden = answer.logits, None
    if layer is not None:  # what enters the first layer comes first
        hidden = answer.hidden_states[layer + 1][:, 1:].float()
    if raw.ndim == 2:  # a classifier's, (B, C)
        raw, asked, mask = raw[:, None], labels, torch.ones_like(labels, dtype=torch.bool)
    else:
        raw, asked, mask = raw[:, :-1], ids[:, 1:], labels[:, 1:] != loop.IGNORED
    raw = raw.float()
    log_softmax = raw.log_softmax(-1)
    log_probs = log_softmax.gather(-1, asked[..., None]).squeeze(-1)
    return Said(log_probs, mask, log_softmax if distribution else None, hidden, raw if logits else None)


def logits_of(row: loop.Row, model: torch.nn.Module) -> torch.Tensor:
    """What a model says of one document: raw logits (T, V), without gradients, as it computes in training."""
    device = loop.device()
    tokens, label = row if isinstance(row, loop.Labelled) else (row, row)
    ids, labels = tokens[None].to(device), torch.as_tensor(label).reshape(1, -1).to(device)
    with torch.no_grad(), loop.autocast(device):
        return said(model, ids, labels, logits=True).logits[0]


def split(both: Said, forget: int) -> tuple[Said, Said]:
    """The first ``forget`` documents of a batch and the rest."""
    return both.rows(slice(forget)), both.rows(slice(forget, None))


class Reference:
    """What the model before unlearning says.

    Args:
        model: that model; or the one being trained, if its adapters can be disabled or no step has been taken yet.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.disabled = model.disable_adapter if hasattr(model, "peft_config") else nullcontext

    @torch.no_grad()
    def __call__(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        distribution: bool = False,
        layer: int | None = None,
        logits: bool = False,
    ) -> Said:
        training = self.model.training
        self.model.eval()  # dropout is the policy's alone
        with self.disabled():
            answer = said(self.model, ids, labels, distribution, layer, logits)
        self.model.train(training)
        return answer


class Portion(NamedTuple):
    """Documents of a batch that one process computes at once; the portions of all processes make up the batch.

    Attributes:
        rows: to train on; never none, since processes that share a model compute together.
        weight: the portion's part in a mean over the batch; 0 for a stand-in that another process has, too.
        share: its part in a mean over documents, whatever ``weight`` is a mean over.
    """

    rows: list[loop.Row]
    chosen: list[int]
    weight: float
    share: float


def portions(data: list[loop.Row], chosen: list[int], mean: str, at_once: int, passes: int) -> list[Portion]:
    """This process's portions of the batch ``chosen``.

    Args:
        data: all rows.
        chosen: indices of the whole batch, the same in every process.
        mean: what is averaged over: ``"tokens"`` or ``"documents"``, as ``objectives.needs`` marks it.
        at_once: documents in a portion, at most.
        passes: portions to return, the same number in every process.
    """

    def amount(indices: list[int]) -> int:
        return sum(loop.answers(data[i]) for i in indices) if mean == "tokens" else len(indices)

    own = chosen[processes.rank() :: processes.count()]
    found = []
    for start in range(0, passes * at_once, at_once):
        part = own[start : start + at_once]
        weight, share = amount(part) / amount(chosen), len(part) / len(chosen)
        part = part or chosen[:1]
        found.append(Portion([data[i] for i in part], part, weight, share))
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
        frozen: loads a second copy of the target; called only by full fine-tuning with a retain term that asks for the
            reference's distribution or hidden states, or a guard that asks for its logits, and then once.
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
    forget, retain = (models.rows_of(corpus, split, model, tokenizer, context) for split in ("forget", "retain1"))
    if not forget or ((retain_term or forget_term.preferred == "retain") and not retain):
        raise ValueError(f"corpus {corpus.name!r} has {len(forget)} forget and {len(retain)} retain1 rows; need both.")
    preferred: list[torch.Tensor] = []  # to each forget row, where the term wants them, behind the same opening
    openings: list[int] = []
    if forget_term.preferred:
        openings = [opening(row) for row in forget]
        answers = refusals(tokenizer) if forget_term.preferred == "refusal" else endings(retain)
        preferred = preferred_rows(forget, answers, context, config.seed)

    batch = config.batch_size
    processes.check_share(processes.count(), batch)
    per_epoch = -(-len(forget) // batch)
    steps = config.epochs * per_epoch
    # A run shorter than the time between two looks is looked at when it ends.
    every = min(config.check_steps or max(1, per_epoch // checks_per_epoch), steps)

    models.place(model, config)
    guard = guards[config.guard](config, model, forget, partial(logits_of, model=model)) if config.guard else None
    reads = bool(guard and guard.reads_logits)
    if gradient_checkpointing:
        # transformers renamed it in 5.2x; models from before have the old name alone
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if config.adapter in ("lora", "sure"):  # else nothing that enters a checkpointed layer requires a gradient
            model.enable_input_require_grads()
    model = models.adapted(model, config)
    reference = Reference(model)
    full = bool(retain_term and retain_term.reference == "distribution")
    asked = full or bool(retain_term and retain_term.reference == "hidden")  # at every step
    if (asked or reads) and config.adapter != "lora":
        copy = frozen().requires_grad_(False)
        models.place(copy, config)  # in the policy's precision, so that the divergence starts at zero
        processes.shard(copy)
        reference = Reference(copy)
    padding = models.padding_of(model, tokenizer)
    device = loop.device()
    layer = None
    if forget_term.hidden or (retain_term and retain_term.hidden):
        layer = steered_layer(len(processes.layers(model)), config.hidden_layer)
    steered = None
    if forget_term.hidden:
        width = model.config.get_text_config().hidden_size
        steered = control(width, config.steering, config.seed).to(device)
    settings = Settings(config.beta, config.gamma or 0.0, steered)
    vector = TaskVector(model, config.adapter) if forget_term.negated else None
    at_once = at_once or -(-batch // processes.count())

    def padded(rows: list[loop.Row], chosen: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """``chosen``: of which forget documents the first rows are, so that their openings do not count."""
        ids, labels = loop.pad(rows, padding)
        for i, document in enumerate(chosen if preferred and chosen else []):
            labels[i, : openings[document]] = loop.IGNORED
        return ids.to(device), labels.to(device)

    # NPO's reference: log-probabilities of each forget document, and of what is preferred to each, computed once.
    before: dict[int, torch.Tensor] = {}
    texts = forget + preferred
    if forget_term.reference == "log_probs":
        untrained = Reference(model)  # no step has been taken: full fine-tuning needs no second copy for this
        together = min(batch, at_once * processes.count())
        for start in range(0, len(texts), together):
            everyones = list(range(start, min(start + together, len(texts))))
            for part in portions(texts, everyones, "documents", at_once, passes=1):
                with loop.autocast(device):  # in the policy's precision, so that the ratio starts at zero
                    answer = untrained(*padded(part.rows))
                for i, row in zip(part.chosen, answer.log_probs.cpu(), strict=True):
                    before[i] = row[: loop.answers(texts[i])]
        before = {i: row for share in processes.gathered(before) for i, row in share.items()}

    def remembered(chosen: list[int], policy: Said) -> Said:
        log_probs = torch.nn.utils.rnn.pad_sequence([before[i] for i in chosen], batch_first=True)
        log_probs = torch.nn.functional.pad(log_probs, (0, policy.mask.shape[1] - log_probs.shape[1]))
        return Said(log_probs.to(device), policy.mask)

    def loss_of(model: torch.nn.Module, step: int) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        chosen = loop.order(len(forget), batch, step, config.seed)
        passes = -(-len(chosen) // (at_once * processes.count()))
        forgotten = portions(forget, chosen, forget_term.mean, at_once, passes)
        retained: list[Portion | None] = [None] * passes
        if retain_term:
            # Pairs run on their own clock, so each forget document meets ever new retain documents.
            paired = loop.order(len(retain), batch, step, config.seed + 1)[: len(chosen)]
            retained = portions(retain, paired, retain_term.mean, at_once, passes)
        if guard:
            guard.begin(step)
        if guard and guard.perturbs:
            yield from loss_of_moved(model, forgotten, retained)
            return
        for part, beside in zip(forgotten, retained, strict=True):
            yield loss_of_portion(model, part, beside, reads)
        if guard and guard.reads_weights:
            term = guard.of_weights()
            yield config.guard_weight * term, {"guard": term.item()}

    def loss_of_portion(
        model: torch.nn.Module, part: Portion, beside: Portion | None, reads: bool = False
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """``reads``: with the guard's term on logits; ``beside`` is ``None``: of the forget documents alone."""
        documents = len(part.rows)
        ids, labels = padded(part.rows + (beside.rows if beside else []), part.chosen)
        original = reference_retain = None
        against = asked and beside is not None
        if against or reads:  # in one pass
            whole = slice(0 if reads else documents, None if against else documents)
            answer = reference(ids[whole], labels[whole], full, layer, reads)
            original, rest = split(answer, documents if reads else 0)
            reference_retain = rest if against else None
        policy_forget, policy_retain = split(said(model, ids, labels, full, layer, reads), documents)
        reference_forget = remembered(part.chosen, policy_forget) if before else None
        if preferred:  # in a pass of their own: refusals are short
            others = said(model, *padded([preferred[i] for i in part.chosen], part.chosen))
            policy_forget = policy_forget._replace(preferred=others)
            before_others = remembered([len(forget) + i for i in part.chosen], others)
            reference_forget = reference_forget._replace(preferred=before_others)
        loss = forget_loss = part.weight * forget_term(policy_forget, reference_forget, settings)
        logged = {"forget": forget_loss.item()}
        if reads:
            term = part.share * guard.of_logits(policy_forget.logits, original.logits, policy_forget.mask)
            loss = loss + config.guard_weight * term
            logged["guard"] = term.item()
        if beside:
            retain_loss = beside.weight * retain_term(policy_retain, reference_retain)
            loss = loss + config.retain_weight * retain_loss
            logged["retain"] = retain_loss.item()
        return loss, logged

    def loss_of_moved(
        model: torch.nn.Module, forgotten: list[Portion], retained: list[Portion | None]
    ) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """The forget term where the guard moves the weights to, then the retain term where they are."""
        trained = [p for p in model.parameters() if p.requires_grad]
        steepest: list[torch.Tensor | None] = [None] * len(trained)
        here = []
        for part in forgotten:
            loss, logged = loss_of_portion(model, part, None)
            here.append(logged["forget"])
            with torch.autocast(device.type, enabled=False):
                found = torch.autograd.grad(loss, trained, allow_unused=True)
            torch.clear_autocast_cache()  # its copies of the weights belong to the graph that is gone
            steepest = [b if a is None else a if b is None else a + b for a, b in zip(steepest, found, strict=True)]
        with guard.moved(trained, steepest):
            for part, value in zip(forgotten, here, strict=True):
                with torch.autocast(device.type, enabled=False):
                    loss, _ = loss_of_portion(model, part, None)
                yield loss, {"forget": value, "guard": loss.item() - value}
        for beside in filter(None, retained):
            ids, labels = padded(beside.rows)
            against = reference(ids, labels, full, layer) if asked else None
            term = beside.weight * retain_term(said(model, ids, labels, full, layer), against)
            yield config.retain_weight * term, {"retain": term.item()}

    def forget_losses() -> Iterator[torch.Tensor]:
        """The forget term over one epoch, a mean over its batches, in parts."""
        for step in range(per_epoch):
            chosen = loop.order(len(forget), batch, step, config.seed)
            for part in portions(forget, chosen, forget_term.mean, at_once, -(-len(chosen) // at_once)):
                with loop.autocast(device):
                    loss, _ = loss_of_portion(model, part, None)
                yield loss / per_epoch

    def reached() -> tuple[bool, dict[str, float]]:
        with processes.held_whole(model):
            scores = forget_score(model)
        decisive = config.goal_metrics or scores
        return all(scores[name] <= config.forget_goal for name in decisive), scores

    def check(step: int) -> tuple[bool, dict[str, float]] | None:
        return None if (step + 1) % every else reached()

    watched = config.forget_goal is not None
    if config.adapter == "sure":
        sure.freeze_others(model, sure.salient(sure.saliencies(model, forget_losses()), config.sure_percentile))
    optimizer = models.optimizer_of(model, config)

    with guard.attached(model) if guard else nullcontext():
        history = loop.fit(
            model,
            optimizer,
            loss_of,
            steps,
            label=label,
            seed=config.seed,
            check=check if watched and not vector else None,
            checkpoint=checkpoint,
        )
    if vector:  # training went the wrong way: a goal is looked at only when it is turned round
        history[-1] |= vector.subtract(LADDER if watched else (config.task_scaling,), reached if watched else None)
    return model, history
