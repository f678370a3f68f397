"""Hyperparameters per scale, method and arm, and the rule they were chosen by."""

from __future__ import annotations

from dataclasses import replace

from qru.config import WHOLE, RunConfig, regime
from qru.corpora import has_labels
from qru.guards import settled
from qru.objectives import forget_terms, parse_method, retain_terms

# --- mini: one regime for every arm, in which the arms can be compared at equal forgetting ------------------------

GOAL = 25.0  # percent, of VerbMem on the stopping half; near what the retrained models say of text they never saw
# Percent, of forget accuracy on the stopping half: what the retrained model of tweets scores (13.3), to the nearest 5.
ACCURACY_GOAL = 15.0
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
# Methods that qru/choose.py does not name take what it gave for others, unmeasured; so do all but ga_gdr on tweets,
# where what a classifier is certain of has next to no gradient.
# Corpus, method or forget term, family -> where the rule gave something else.
MINI_OTHER: dict[tuple[str, str, str], tuple[float, float]] = {
    ("news", "ga", "full"): (5.23e-05, 5.0),
    ("books", "ga_gdr", "full"): (2.61e-05, 1.0),
    ("books", "simnpo_gdr", "full"): (2.61e-05, 1.0),
    ("tweets", "ga_gdr", "full"): (5.23e-05, 1.0),
    ("tweets", "ga_gdr", "lora"): (0.00013, 1.0),
}

# A part of the forget set, where no goal can be watched: four times the rate, so that the smallest is forgotten, too.
PARTS_RATE, PARTS_EPOCHS = 4, 5

# SURE (arXiv 2410.16454) masks most modules and steps the others ten times as far (1e-4) as full fine-tuning (1e-5).
SURE_RATE = 10

SMOKE = (1e-4, 1, 1.0)
BETA2 = 0.999  # AdamW's own, at smoke and muse
BATCH_SIZE = {"smoke": 4, "mini": 2, "muse": 16}  # muse: QRU (arXiv 2602.13151)
LORA = (32, 64.0)  # rank and alpha at smoke and mini; ours
# RMU's c. It makes hidden states longer: those of mini's target are 24 to 31 long (books, tokens after the first, in
# layers 0 to 3), so ours is some four times that; what it does to forgetting was not measured. muse: the paper's, for
# Zephyr-7B.
STEERING = {"smoke": 100.0, "mini": 100.0, "muse": 6.5}

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

# SURE on BOOKS: λ and percentile; 5 epochs. Other methods take λ of full fine-tuning and the lower percentile, ours.
MUSE_SURE: dict[str, tuple[float, float]] = {"npo_klr": (20.0, 90.0), "ga_gdr": (400.0, 99.0)}
SURE_EPOCHS, PERCENTILE = 5, 90.0

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
    return config.adapter in ("full", "sure") and weights == "bf16" and config.rounding == "nearest"


def _training(config: RunConfig) -> tuple[float, int, float]:
    """Learning rate, epochs and λ of a scale, method and arm."""
    if config.scale == "smoke":  # nothing is learned there; any method runs, also one that was added just now
        return SMOKE
    if regime(config.scale) == "mini":
        arms = family(config.adapter)
        cells = [(config.corpus, name, arms) for name in (config.method, parse_method(config.method)[0])]
        rate, weight = next((MINI_OTHER[cell] for cell in cells if cell in MINI_OTHER), MINI[arms])
        rate *= SURE_RATE if config.adapter == "sure" else 1
        return (rate, EPOCHS, weight) if config.forget_set == WHOLE else (PARTS_RATE * rate, PARTS_EPOCHS, weight)
    if config.method in MUSE:
        epochs, weight = MUSE[config.method]
        if config.adapter == "sure":
            return SURE_RATE * FULL_RATE, SURE_EPOCHS, MUSE_SURE.get(config.method, (weight,))[0]
        return (LORA_RATE, LORA_EPOCHS, weight) if config.adapter == "lora" else (FULL_RATE, epochs, weight)
    if None in (given := (config.learning_rate, config.epochs, config.retain_weight)):
        raise ValueError(
            f"no defaults are published at {config.scale} for {config.method} {config.adapter}: give learning_rate, "
            "epochs and retain_weight."
        )
    return given


def _options(config: RunConfig) -> dict[str, float | None]:
    """The fields that one method alone reads: given, or its default; refused where another method is named."""
    forget, retain = parse_method(config.method)
    term = forget_terms[forget]
    read_by = {
        "gamma": forget == "simnpo",
        "steering": forget == "rmu",
        "hidden_layer": term.hidden or bool(retain and retain_terms[retain].hidden),
        "task_scaling": term.negated,
    }
    for name, used in read_by.items():
        if getattr(config, name) is not None and not used:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, but method {config.method!r} does not read it: leave it out."
            )
    if config.task_scaling is not None and config.forget_goal is not None:
        raise ValueError(
            f"task_scaling is {config.task_scaling!r} and forget_goal {config.forget_goal!r}: the goal is what chooses "
            "the scaling. Leave one of them out."
        )
    given = {
        "beta": term.beta,
        "gamma": 0.0 if read_by["gamma"] else None,
        "steering": STEERING[regime(config.scale)] if read_by["steering"] else None,
        "task_scaling": 1.0 if term.negated and config.forget_goal is None else None,
    }
    return {name: value if getattr(config, name) is None else getattr(config, name) for name, value in given.items()}


def _guarded(config: RunConfig) -> RunConfig:
    """The config with the options of its guard, and SURE's percentile, filled in."""
    if config.guard and forget_terms[parse_method(config.method)[0]].negated:
        raise ValueError(
            f"guard {config.guard!r} with method {config.method!r}: it is trained the other way and turned round at "
            "the end, where a guard does nothing. Leave guard out, or take another method."
        )
    if config.adapter == "sure" and config.sure_percentile is None:
        published = MUSE_SURE.get(config.method, (None, PERCENTILE)) if config.scale == "muse" else (None, PERCENTILE)
        config = replace(config, sure_percentile=published[1])
    return settled(config)


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
    config = _guarded(config)
    rate, epochs, weight = _training(config)
    rank, alpha = _lora(config)
    if config.scale == "muse" and config.target is None and (known := hub_corpus(config.corpus)):
        config = replace(config, **MUSE_MODELS[known])
    mini = regime(config.scale) == "mini"
    asked = config.epochs is None and config.task_scaling is None
    if mini and asked and config.forget_goal is None and config.forget_set == WHOLE:
        goal, watched = (ACCURACY_GOAL, "forget_accuracy") if has_labels(config.corpus) else (GOAL, "verbmem")
        config = replace(config, forget_goal=goal, goal_metrics=config.goal_metrics or (watched,))
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
        **_options(config),
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
