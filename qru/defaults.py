"""Hyperparameters per scale, method and arm, and the rule they were chosen by."""

from __future__ import annotations

from dataclasses import replace

from qru.config import WHOLE, RunConfig, regime
from qru.objectives import parse_method

# --- mini: one regime for every arm, in which the arms can be compared at equal forgetting ------------------------

GOAL = 25.0  # percent, of VerbMem on the stopping half; near what the retrained models say of text they never saw
STEPS, EPOCHS = 900, 18  # at most; 100 documents two at a time are 50 steps an epoch
# Adam's step is at most 1.17 learning rates at this beta2 (7.3 at 0.999), so that it is known which weights of bf16 can
# move (qru.optimizers). Llama-2 was pretrained with it; the papers on unlearning state none.
MINI_BETA2 = 0.95
# Steps between two looks at the goal: arms without a dead zone pass it quickly.
CHECK_SLOW, CHECK_FAST = 40, 10
# Family of arms -> learning rate, λ; by the rule in qru/choose.py, which mostly gave the same for the corpora and
# methods it was applied to. The arms of full fine-tuning share theirs whatever the type of their weights, so that they
# differ in it alone.
MINI: dict[str, tuple[float, float]] = {"full": (2.61e-05, 5.0), "lora": (0.00013, 5.0)}
# Corpus, forget term, family -> where the rule gave something else.
MINI_OTHER: dict[tuple[str, str, str], tuple[float, float]] = {("news", "ga", "full"): (5.23e-05, 5.0)}

# A part of the forget set, where no goal can be watched: four times the rate, so that the smallest is forgotten, too.
PARTS_RATE, PARTS_EPOCHS = 4, 5

SMOKE = (1e-4, 1, 1.0)
BETA2 = 0.999  # AdamW's own, at smoke and muse
BATCH_SIZE = {"smoke": 4, "mini": 2, "muse": 16}  # muse: QRU (arXiv 2602.13151)
LORA = (32, 64.0)  # rank and alpha at smoke and mini; ours

# --- muse: Llama-2-7B on MUSE, as in QRU (arXiv 2602.13151) ---------------------------------------------------------

FULL_RATE = 1e-5  # QRU: full fine-tuning, AdamW, constant
# QRU states neither gradient clipping nor weight decay: norm 1 and none, the defaults of transformers' Trainer.
# QRU searched 1e-4 and 7e-4 for LoRA and does not say which was best where: we take the one nearer to full fine-tuning.
LORA_RATE = 1e-4
LORA_EPOCHS = 5  # QRU
# QRU, full fine-tuning: epochs and λ. It gives λ for no LoRA cell, so LoRA takes the same.
MUSE: dict[str, tuple[int, float]] = {
    "ga": (10, 100.0),  # λ is not read without a retain term
    "ga_gdr": (10, 100.0),
    "ga_klr": (5, 100.0),
    "npo": (5, 0.1),
    "npo_gdr": (10, 0.1),
    "npo_klr": (5, 0.1),
}
# QRU: rank and alpha of the best LoRA cell. It has none for a forget term alone: ga and npo take those of …_gdr.
MUSE_LORA: dict[str, dict[str, tuple[int, float]]] = {
    "books": {"ga_gdr": (16, 16.0), "ga_klr": (16, 16.0), "npo_gdr": (64, 128.0), "npo_klr": (16, 32.0)},
    "news": {"ga_gdr": (64, 64.0), "ga_klr": (64, 64.0), "npo_gdr": (16, 16.0), "npo_klr": (64, 128.0)},
}

# MUSE's own models (arXiv 2407.06460) by the corpus they belong to, pinned. Their repositories hold weights alone; the
# tokenizer is Llama-2's, here from a copy that needs no licence to be accepted first.
MUSE_MODELS: dict[str, dict[str, str]] = {
    "muse-bench/MUSE-Books": {
        "target": "muse-bench/MUSE-Books_target@c8dd3fb23a726762ec66d277933c7cff6767f3c2",
        "retrained": "muse-bench/MUSE-Books_retrain@1d67430e4e8bdf2a65823740e909792519175ac2",
        "tokenizer": "NousResearch/Llama-2-7b-hf@8efe6c9b93655b934e27bd9981e3ec13e55aee9d",
    },
    "muse-bench/MUSE-News": {
        "target": "muse-bench/MUSE-News_target@a2f39769e9a0b98ec1cdd12f65e9962502208935",
        "retrained": "muse-bench/MUSE-News_retrain@324ef49ee0a038078aba7d8de831edf57235c9b3",
        "tokenizer": "NousResearch/Llama-2-7b-hf@8efe6c9b93655b934e27bd9981e3ec13e55aee9d",
    },
}


def hub_corpus(corpus: str) -> str | None:
    """Which of MUSE's corpora on the Hub a corpus is, whatever its revision and capitals; ``None``: neither."""
    name = corpus.partition("@")[0].casefold()
    return next((known for known in MUSE_MODELS if known.casefold() == name), None)


def searched_corpus(corpus: str) -> str | None:
    """``"books"`` or ``"news"``: the corpus that LoRA's rank and alpha were searched on, by the end of a name.

    Args:
        corpus: a name, a Hub id or a folder: ``"muse-bench/MUSE-News"``, ``"data/news"``.

    Returns:
        ``None`` for a corpus that is neither.
    """
    last = corpus.partition("@")[0].rstrip("/").rpartition("/")[2].casefold()
    return next((known for known in MUSE_LORA if last in (known, f"muse-{known}")), None)


def note(config: RunConfig) -> str | None:
    """What a user should know of a choice that ``resolve`` made for them, or ``None``."""
    chosen = config.lora_rank is None or config.lora_alpha is None
    if config.scale == "muse" and config.adapter == "lora" and chosen and searched_corpus(config.corpus) is None:
        return (
            f"no LoRA rank and alpha are published for corpus {config.corpus!r}: taking those of MUSE-Books. "
            "Give lora_rank and lora_alpha to choose."
        )
    return None


def family(adapter: str) -> str:
    """Which arms share a learning rate: ``"lora"``, or ``"full"`` for all that step matrices of full size."""
    return "lora" if adapter == "lora" else "full"


def dead_zone(config: RunConfig) -> bool:
    """Whether an arm steps weights that are stored in bf16, and rounds them to the nearest: see ``qru.optimizers``."""
    weights = config.weights or ("fp32" if config.adapter == "lora" else "bf16")
    return config.adapter == "full" and weights == "bf16" and config.rounding == "nearest"


def _training(config: RunConfig) -> tuple[float, int, float]:
    """Learning rate, epochs and λ of a scale, method and arm."""
    if config.scale == "smoke":  # nothing is learned there; any method runs, also one that was added just now
        return SMOKE
    if regime(config.scale) == "mini":
        cell = (config.corpus, parse_method(config.method)[0], family(config.adapter))
        rate, weight = MINI_OTHER.get(cell, MINI[cell[-1]])
        return (rate, EPOCHS, weight) if config.forget_set == WHOLE else (PARTS_RATE * rate, PARTS_EPOCHS, weight)
    if config.method in MUSE:
        epochs, weight = MUSE[config.method]
        return (LORA_RATE, LORA_EPOCHS, weight) if config.adapter == "lora" else (FULL_RATE, epochs, weight)
    if None in (given := (config.learning_rate, config.epochs, config.retain_weight)):
        raise ValueError(
            f"no defaults are published at {config.scale} for {config.method} {config.adapter}: give learning_rate, "
            "epochs and retain_weight."
        )
    return given


def _lora(config: RunConfig) -> tuple[int, float]:
    """LoRA's rank and alpha."""
    if config.scale != "muse":
        return LORA
    cells = MUSE_LORA[searched_corpus(config.corpus) or "books"]
    return cells.get(config.method, cells.get(f"{config.method}_gdr", LORA))


def resolve(config: RunConfig) -> RunConfig:
    """Fill every field that was left at ``None`` with the default of the method and arm.

    Returns:
        A config that says everything a run depends on; ``None`` stays where it means something: no goal, the embedded
        models, the tokenizer beside the target, moments as the weights, every metric.
    """
    parse_method(config.method)
    rate, epochs, weight = _training(config)
    rank, alpha = _lora(config)
    if config.scale == "muse" and config.target is None and (known := hub_corpus(config.corpus)):
        config = replace(config, **MUSE_MODELS[known])
    mini = regime(config.scale) == "mini"
    if mini and config.epochs is None and config.forget_goal is None and config.forget_set == WHOLE:
        config = replace(config, forget_goal=GOAL, goal_metrics=config.goal_metrics or ("verbmem",))
    if mini and config.forget_goal is not None and config.check_steps is None:
        config = replace(config, check_steps=CHECK_SLOW if dead_zone(config) else CHECK_FAST)
    if config.forget_goal is None and (config.goal_metrics or config.check_steps):
        raise ValueError(
            f"goal_metrics is {config.goal_metrics!r} and check_steps {config.check_steps!r}, but there is no goal to "
            "look at: give forget_goal, or leave them out."
        )
    weights = config.weights or ("fp32" if config.adapter == "lora" else "bf16")
    return replace(
        config,
        weights=weights,
        moments=None if config.moments == weights else config.moments,
        learning_rate=rate if config.learning_rate is None else config.learning_rate,
        adam_beta2=(MINI_BETA2 if mini else BETA2) if config.adam_beta2 is None else config.adam_beta2,
        epochs=epochs if config.epochs is None else config.epochs,
        retain_weight=weight if config.retain_weight is None else config.retain_weight,
        batch_size=BATCH_SIZE[regime(config.scale)] if config.batch_size is None else config.batch_size,
        lora_rank=rank if config.lora_rank is None else config.lora_rank,
        lora_alpha=alpha if config.lora_alpha is None else float(config.lora_alpha),
    )
