"""Hyperparameters per scale, method and arm, and the rule they were chosen by."""

from __future__ import annotations

from dataclasses import replace

from qru.config import RunConfig
from qru.objectives import parse_method

# (method, adapter, weights) -> learning_rate, epochs, retain_weight; chosen by the rule in qru/choose.py.
MINI: dict[tuple[str, str, str], tuple[float, int, float]] = {
    ("ga", "full", "bf16"): (5e-05, 4, 5.0),
    ("ga", "full", "fp32"): (2.5e-05, 4, 5.0),
    ("ga", "lora", "fp32"): (0.00025, 2, 5.0),
    ("ga_gdr", "full", "bf16"): (0.0001, 4, 5.0),
    ("ga_gdr", "full", "fp32"): (5e-05, 4, 5.0),
    ("ga_gdr", "lora", "fp32"): (0.00025, 4, 5.0),
    ("ga_klr", "full", "bf16"): (0.0001, 2, 5.0),
    ("ga_klr", "full", "fp32"): (2.5e-05, 4, 5.0),
    ("ga_klr", "lora", "fp32"): (0.00025, 2, 5.0),
    ("npo", "full", "bf16"): (0.0001, 2, 1.0),
    ("npo", "full", "fp32"): (2.5e-05, 4, 1.0),
    ("npo", "lora", "fp32"): (0.00025, 2, 1.0),
    ("npo_gdr", "full", "bf16"): (0.0002, 1, 1.0),
    ("npo_gdr", "full", "fp32"): (5e-05, 2, 1.0),
    ("npo_gdr", "lora", "fp32"): (0.00025, 2, 1.0),
    ("npo_klr", "full", "bf16"): (0.0001, 2, 1.0),
    ("npo_klr", "full", "fp32"): (5e-05, 2, 1.0),
    ("npo_klr", "lora", "fp32"): (0.00025, 2, 1.0),
}

SMOKE = (1e-4, 1, 1.0)
BATCH_SIZE = {"smoke": 4, "mini": 4, "muse": 16}  # muse: QRU (arXiv 2602.13151)
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


def _training(config: RunConfig, weights: str) -> tuple[float, int, float]:
    """Learning rate, epochs and λ of a scale, method and arm."""
    if config.scale == "smoke":  # nothing is learned there; any method runs, also one that was added just now
        return SMOKE
    # bf16 adapters take what was chosen for fp32 ones: a comparison of the two is one of precision alone.
    cell = config.method, config.adapter, "fp32" if config.adapter == "lora" else weights
    if config.scale == "mini" and cell in MINI:
        return MINI[cell]
    if config.scale == "muse" and config.method in MUSE:
        epochs, weight = MUSE[config.method]
        return (LORA_RATE, LORA_EPOCHS, weight) if config.adapter == "lora" else (FULL_RATE, epochs, weight)
    if None in (given := (config.learning_rate, config.epochs, config.retain_weight)):
        search = f", or run python -m qru.choose {config.method} and put its line into qru/defaults.py"
        raise ValueError(
            f"no defaults have been chosen at {config.scale} for {' '.join(cell)}: give learning_rate, epochs and "
            f"retain_weight{search if config.scale == 'mini' else ''}."
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
        A config that says everything a run depends on; only ``forget_goal`` may still be ``None``, and ``target``,
        ``retrained`` and ``tokenizer`` where the embedded models are meant or the tokenizer beside the target.
    """
    parse_method(config.method)
    weights = config.weights or ("fp32" if config.adapter == "lora" else "bf16")
    rate, epochs, weight = _training(config, weights)
    rank, alpha = _lora(config)
    if config.scale == "muse" and config.target is None and (known := hub_corpus(config.corpus)):
        config = replace(config, **MUSE_MODELS[known])
    return replace(
        config,
        weights=weights,
        learning_rate=rate if config.learning_rate is None else config.learning_rate,
        epochs=epochs if config.epochs is None else config.epochs,
        retain_weight=weight if config.retain_weight is None else config.retain_weight,
        batch_size=BATCH_SIZE[config.scale] if config.batch_size is None else config.batch_size,
        lora_rank=rank if config.lora_rank is None else config.lora_rank,
        lora_alpha=alpha if config.lora_alpha is None else float(config.lora_alpha),
    )
