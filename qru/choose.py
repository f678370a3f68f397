"""How the learning rates and λ at mini were chosen: ``python -m qru.choose`` reruns the search and prints them.

The rule: on each corpus with seed 1000, which is never reported, with each method of ``SEARCHED``, and with the arm of
each family that public code uses (bf16 weights for full fine-tuning, fp32 adapters for LoRA), try the rates of the grid
from the smallest up, and for each λ from the largest down; take the first pair with which VerbMem on the stopping half
of the forget examples reaches ``qru.defaults.GOAL`` (of labels: forget accuracy, and ``ACCURACY_GOAL``) within
``qru.defaults.EPOCHS``, which are ``STEPS`` steps on texts and 1,080 on tweets. An attempt is given up after half of
``STEPS`` if that is still over 90. The rates of full fine-tuning are the
largest at which no step of Adam reaches a power of two, but for rounding of bf16 moments, so that each stands for one
edge of the dead zone (``qru.optimizers``).

The smallest rate that works is the closest to the papers, whose updates are small; the largest λ keeps most. Nothing
measured after quantization enters the choice. The other arms and methods take the same pair: arms of a family then
differ in one thing alone, those of two families in their rates, too.

The methods of ``COMPARED``, which came later, are searched for full fine-tuning alone, and from the smallest rate up
with which any of ``SEARCHED`` came to the goal on their corpus. Guards take the pair of the method that they guard.
Those of ``LEFT`` were searched so, too, up to the third pair of rate and λ. With none did they come to the goal: they
end at a VerbMem of 29 to 46, with the last near 30 for half of the steps, so that the search was left there.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qru import models, optimizers
from qru.config import RunConfig
from qru.corpora import load_corpus
from qru.defaults import MINI, MINI_BETA2, STEPS, resolve
from qru.metrics import evaluate
from qru.parallel import side_by_side
from qru.paths import runs_dir
from qru.records import say, write_json
from qru.scoring import forget_halves
from qru.unlearn import unlearn

SEED = 1000
SEARCHED = {
    "books": ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr"),
    "news": ("ga_klr", "npo_klr"),
    "tweets": ("ga_gdr",),
}
COMPARED = {"books": ("simnpo_gdr", "rmu_actr")}
LEFT = {"books": ("dpo_gdr", "idkdpo_gdr")}  # searched as those of COMPARED, and left without a pair
HOPELESS = 90.0  # percent, of what is to be forgotten, half way
WEIGHTS = (5.0, 1.0)


def just_under(power: int) -> float:
    """The largest round learning rate at which no step of Adam reaches 2^power."""
    return math.floor(2.0**power / optimizers.largest_step(MINI_BETA2) * 1e7) / 1e7


FULL = tuple(just_under(power) for power in (-16, -15, -14, -13))
RATES = {"full": FULL, "lora": tuple(10 * rate for rate in FULL)}
REACHED = {("books", "full"): MINI["full"][0]}  # the smallest rate with which a method of SEARCHED came to the goal


class Enough(Exception):
    """Raised inside training once the rest of it does not matter."""


def trajectory(config: RunConfig, enough: Callable[[list[dict[str, float]]], bool]) -> list[dict[str, float]]:
    """What is to be forgotten (percent) of the stopping half at every check of a run on an embedded corpus.

    Args:
        config: resolved, with a ``forget_goal``.
        enough: what was seen so far -> whether to stop.

    Returns:
        One dict a check; a loss that is not finite ends them with infinite scores.
    """
    corpus = load_corpus(config.corpus, scale=config.scale)
    made = models.prepare(corpus, config.scale)
    target, tokenizer = models.load(made.target)
    stopping, _ = forget_halves(corpus)
    seen = []

    def forget_score(model):
        found = evaluate(model, tokenizer, corpus, metrics=tuple(stopping), examples=stopping, progress=False)
        seen.append({name: score.value for name, score in found.items()})
        if enough(seen):
            raise Enough
        return seen[-1]

    label = f"{config.method} {config.adapter} {config.weights} {config.learning_rate:g} {config.retain_weight:g}"
    try:
        unlearn(
            target, tokenizer, corpus, config, frozen=lambda: models.load(made.target)[0],
            forget_score=forget_score, label=label,
        )  # fmt: skip
    except Enough:
        pass
    except FloatingPointError:
        seen.append(dict.fromkeys(config.goal_metrics, float("inf")))
    return seen


def choose(corpus: str, method: str, adapter: str) -> tuple[float, float, list[dict[str, Any]]]:
    """Learning rate and λ by the rule above, for a method and ``"full"`` or ``"lora"``, and every attempt."""
    tried = []
    least = REACHED.get((corpus, adapter), 0.0) if method in COMPARED.get(corpus, ()) else 0.0
    for rate in (rate for rate in RATES[adapter] if rate >= least):
        for weight in WEIGHTS:
            settings = {"corpus": corpus, "method": method, "adapter": adapter}
            settings |= {"learning_rate": rate, "retain_weight": weight}
            config = resolve(RunConfig(seed=SEED, **settings))
            (watched,) = config.goal_metrics

            def enough(seen: list[dict[str, float]], config: RunConfig = config, watched: str = watched) -> bool:
                hopeless = config.check_steps * len(seen) >= STEPS / 2 and seen[-1][watched] > HOPELESS
                return hopeless or seen[-1][watched] <= config.forget_goal

            seen = trajectory(config, enough)
            last, steps = seen[-1][watched], config.check_steps * len(seen)
            say(f"{corpus} {method} {adapter} {rate:g} {weight:g}: {watched} {last:.0f} after {steps} steps")
            documents = len(load_corpus(corpus, scale=config.scale).raw["forget"])
            most = config.epochs * math.ceil(documents / config.batch_size)
            looks = {"looked_every": config.check_steps, "at_most": most}
            tried.append(settings | {watched: round(last, 1), "steps": steps} | looks)
            if last <= config.forget_goal:
                return rate, weight, tried
    raise ValueError(f"{corpus} {method} {adapter} reaches the goal at no rate of the grid.")


def cells(corpora: Sequence[str]) -> list[tuple[str, str, str]]:
    """(corpus, method, ``"full"`` or ``"lora"``) of every search on some corpora."""
    searched = [(c, m, a) for c in corpora for m, a in itertools.product(SEARCHED[c], RATES)]
    return searched + [(c, m, "full") for c in corpora for m in COMPARED.get(c, ())]


if __name__ == "__main__":
    asked = cells(sys.argv[1:] or list(SEARCHED))
    found = side_by_side(choose, asked)
    for (corpus, method, adapter), (rate, weight, _) in zip(asked, found, strict=True):
        print(f"{corpus} {method} {adapter}: learning rate {rate:g}, λ {weight:g}")
    tried = [attempt for *_, attempts in found for attempt in attempts]
    write_json(runs_dir() / "choice.json", {"seed": SEED, "tried": tried})
