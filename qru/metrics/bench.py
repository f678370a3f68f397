"""How fast ``evaluate`` is against MUSE's protocol carried out one example at a time, at the same scores.

    python -m qru.metrics.bench                   # the mini target on the embedded books, one thread
    python -m qru.metrics.bench --smoke           # seconds: a small untrained model, to keep this file honest

The other side does what MUSE's evaluator does: ``model.generate`` with its KV cache for one prompt after another, and
one forward pass a text for PrivLeak. Ours has batches, one copy of the in-context examples, an end where an answer
would be cut anyway, and VerbMem's true text as a draft, which helps most where a model still knows it; ``--model
retrained`` measures one that does not. Every generated string, every log-probability (to 1e-5 of its size, or of 1) and
every score is compared before anything is timed. Timings are interleaved metric by metric, so that a busy machine slows
both alike; medians over rounds are reported, with the spread (interquartile range over median). Loading, and the
retrained model's scores, which are computed once and stored, count for neither side.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qru import models, paths, records
from qru.corpora import load_corpus
from qru.metrics import checks, generation
from qru.metrics.evaluation import METRICS, evaluate
from qru.metrics.knowmem import NEW_TOKENS as ANSWER_TOKENS
from qru.metrics.knowmem import STOPS, question_prompts
from qru.metrics.logprobs import token_log_probs
from qru.metrics.membership import retrained_scores
from qru.metrics.privleak import min_k_score, privleak
from qru.metrics.rouge import rouge_l
from qru.metrics.score import Score
from qru.metrics.verbmem import NEW_TOKENS as PASSAGE_TOKENS

SUBJECTS = {"knowmem": "forget", "utility": "retain", "disjoint": "disjoint"}
# Of max(1, |log p|). Float32 itself is no better: against float64, one text at a time, log-probabilities of the mini
# model are off by up to 3e-5 nats, where they are about -24.
LOG_PROB_TOLERANCE = 1e-5


# --- the protocol, one example at a time ----------------------------------------------------------------------------


def continued(model, tokenizer, prompt: str, new_tokens: int) -> str:
    """What transformers generates greedily for one prompt."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    return generation.decoded(tokenizer, made[0, ids.shape[1] :])


def passages_alone(model, tokenizer, corpus) -> tuple[list[str], list[float]]:
    """VerbMem: responses and ROUGE-L F1."""
    responses, scores = [], []
    for example in corpus.verbmem:
        truth = [tokenizer.bos_token_id, *tokenizer(example["gt"], add_special_tokens=False)["input_ids"]]
        truth = generation.decoded(tokenizer, truth[:PASSAGE_TOKENS])
        responses.append(continued(model, tokenizer, example["prompt"], PASSAGE_TOKENS))
        scores.append(rouge_l(truth, responses[-1]))
    return responses, scores


def questions_alone(model, tokenizer, corpus, subject: str) -> tuple[list[str], list[float]]:
    """KnowMem and its kin: responses and ROUGE-L F1."""
    asked = corpus.knowmem[f"{subject}_qa"]
    prompts = question_prompts(corpus.knowmem[f"{subject}_qa_icl"], [pair["question"] for pair in asked])
    responses, scores = [], []
    for pair, prompt in zip(asked, prompts, strict=True):
        response = continued(model, tokenizer, prompt, ANSWER_TOKENS)
        for stop in STOPS:
            response = response.split(stop)[0]
        responses.append(response)
        scores.append(rouge_l(pair["answer"], response))
    return responses, scores


def log_probs_alone(model, tokenizer, texts: list[str]) -> list[torch.Tensor]:
    """Log-probability of every token of each text, one forward pass a text."""
    found = []
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        found.append(table.gather(-1, ids[0, 1:, None])[:, 0])
    return found


def leak_alone(model, tokenizer, corpus, reference: dict[str, list[float]]) -> dict[str, list[float]]:
    """PrivLeak's scores by side, and the value under ``"value"``."""
    sides = {
        side: [min_k_score(values) for values in log_probs_alone(model, tokenizer, corpus.privleak[side])]
        for side in ("forget", "holdout")
    }
    return sides | {"value": [privleak(*sides.values(), reference["forget"], reference["holdout"])]}


# --- verify, then time ----------------------------------------------------------------------------------------------


def contestants(model, tokenizer, corpus, reference) -> dict[str, dict[str, Callable[[], object]]]:
    """Metric -> "ours" and "alone" -> what to run."""

    def ours(name: str) -> Callable[[], Score]:
        return lambda: evaluate(model, tokenizer, corpus, retrained=reference, metrics=(name,), progress=False)[name]

    def alone(name: str) -> Callable[[], object]:
        if name == "verbmem":
            return lambda: passages_alone(model, tokenizer, corpus)
        if name == "privleak":
            return lambda: leak_alone(model, tokenizer, corpus, reference)
        return lambda: questions_alone(model, tokenizer, corpus, SUBJECTS[name])

    return {name: {"ours": ours(name), "alone": alone(name)} for name in METRICS}


def verify(model, tokenizer, corpus, runs: dict[str, dict[str, Callable[[], object]]]) -> dict:
    """Raise unless both sides say the same; returns what was compared and how often rounding had a say."""
    strings = 0
    for name, run in runs.items():
        score, plain = run["ours"](), run["alone"]()
        if name == "privleak":
            close = all(
                abs(a - b) <= LOG_PROB_TOLERANCE
                for side in ("forget", "holdout")
                for a, b in zip(score.per_example[side], plain[side], strict=True)
            )
            # An exact AUC, from scores that agree to 1e-5: a pair that lies closer could fall on either side.
            if not close or abs(score.value - plain["value"][0]) > 1e-9:
                raise AssertionError(f"privleak is {score.value}, one text at a time {plain['value'][0]}")
            continue
        responses, scores = plain
        for i, (a, b) in enumerate(zip(score.responses, responses, strict=True)):
            if a != b:
                raise AssertionError(f"{name}, example {i}: {a!r} in a batch, {b!r} alone")
        if score.per_example != scores:
            raise AssertionError(f"{name}: the responses are the same and their scores are not")
        strings += len(responses)
    texts = [text for side in ("forget", "holdout") for text in corpus.privleak[side]]
    ours, alone = (
        torch.cat(token_log_probs(model, tokenizer, texts)),
        torch.cat(log_probs_alone(model, tokenizer, texts)),
    )
    apart = (ours - alone).abs()
    if (worst := float((apart / alone.abs().clamp(min=1)).max())) > LOG_PROB_TOLERANCE:
        raise AssertionError(f"a log-probability differs by {worst} of its size, more than {LOG_PROB_TOLERANCE}")
    unguarded = _strings_without_the_guard(model, tokenizer, corpus, runs)
    return {
        "strings": strings,
        "log_probs": len(apart),
        "log_probs_more_than_1e-5_apart": int((apart > 1e-5).sum()),
        "largest_log_prob_difference": float(apart.max()),
        **unguarded,
    }


def _strings_without_the_guard(model, tokenizer, corpus, runs) -> dict[str, int]:
    """How many rows are generated again alone, and how many strings would differ if they were not."""
    generate, redone = generation._generate, []

    def counted(model, rows, *rest, **settings):
        redone.append(len(rows) == 1)
        return generate(model, rows, *rest, **settings)

    names = [name for name in runs if name != "privleak"]
    with mock.patch.object(generation, "_generate", counted):
        guarded = [response for name in names for response in runs[name]["ours"]().responses]
    with mock.patch.object(checks, "NEAR_TIE_ULPS", -1):
        bare = [response for name in names for response in runs[name]["ours"]().responses]
    return {
        "generated_again_alone": sum(redone),
        "would_differ_otherwise": sum(a != b for a, b in zip(guarded, bare, strict=True)),
    }


def spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    if len(times) < 2:
        return 0.0
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return (third - first) / median


def bench(model, tokenizer, corpus, reference, rounds: int, say: Callable[[str], None] = print) -> dict:
    """Verify and time one model.

    Args:
        model: in float32 on the CPU.
        tokenizer: its.
        corpus: with all five of METRICS.
        reference: the retrained model's scores.
        rounds: timed rounds; both sides run once a round, metric by metric.
        say: takes lines of progress.

    Returns:
        What was verified; for each metric and the total: seconds of either side (median), spread and ratio.

    Raises:
        AssertionError: a string, a log-probability or a score differs; nothing is timed then.
    """
    runs = contestants(model, tokenizer, corpus, reference)
    verified = verify(model, tokenizer, corpus, runs)
    say(f"equal: {verified}")
    times = {name: {side: [] for side in ("ours", "alone")} for name in (*runs, "total")}
    for round_ in range(rounds):
        for name, sides in runs.items():
            for side, run in sides.items():
                start = time.perf_counter()
                run()
                times[name][side].append(time.perf_counter() - start)
        for side in ("ours", "alone"):
            times["total"][side].append(sum(times[name][side][round_] for name in runs))
        ours, alone = (times["total"][side][-1] for side in ("ours", "alone"))
        say(f"round {round_ + 1} of {rounds}: {ours:.2f} s against {alone:.2f} s, {alone / ours:.1f}x")
    measured = {}
    for name, sides in times.items():
        seconds = {side: statistics.median(values) for side, values in sides.items()}
        measured[name] = {
            "seconds": seconds,
            "spread": {side: spread(values) for side, values in sides.items()},
            "ratio": seconds["alone"] / seconds["ours"],
        }
    return {
        "verified": verified,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),  # over 1, 5, 15 minutes at the end: who else wanted the cores
        "metrics": measured,
    }


def small_model(corpus) -> tuple[LlamaForCausalLM, object]:
    """An untrained Llama of smoke's sizes and a tokenizer for it, in a second."""
    tokenizer = models.train_tokenizer(corpus.privleak["forget"], 400)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(shape).eval(), tokenizer


def main(argv: list[str] | None = None) -> dict:
    """Command line; prints a line per metric and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="books", help="an embedded corpus")
    parser.add_argument("--model", choices=["target", "retrained"], default="target", help="which mini model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a small untrained model on the smoke corpus, one round")
    parser.add_argument("--json", type=Path, help="write the record here and not under runs/evaluation")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    scale = "smoke" if given.smoke else "mini"
    corpus = load_corpus(given.corpus, scale=scale)
    if given.smoke:
        model, tokenizer = small_model(corpus)
        retrained = model
    else:
        if not models.made(corpus, scale):
            parser.error(
                f"the mini models of {given.corpus} are not made yet (some minutes): run `papermill "
                f"notebooks/01_prepare.ipynb runs/01.ipynb -p corpus {given.corpus}`, or take --smoke"
            )
        target, retrained, tokenizer = models.load_models(corpus, scale=scale)
        model = target if given.model == "target" else retrained
    reference = retrained_scores(retrained, tokenizer, corpus)
    result = bench(model, tokenizer, corpus, reference, 1 if given.smoke else given.rounds, records.say)
    which = "untrained" if given.smoke else given.model
    result = {
        "what": "evaluate, VerbMem with its true text as a draft, against MUSE's protocol one example at a time",
        "config": {"corpus": given.corpus, "scale": scale, "model": which},
        **result,
        "provenance": records.provenance(),
    }
    for name, found in result["metrics"].items():
        ours, alone = found["seconds"]["ours"], found["seconds"]["alone"]
        records.say(f"{name:9} {ours:7.2f} s  one at a time {alone:7.2f} s  {found['ratio']:5.1f}x")
    folder = f"{given.corpus}-{scale}-{which}-{given.threads}"
    path = given.json or paths.runs_dir() / "evaluation" / folder / "record.json"
    records.write_json(path, result)
    records.say(f"record: {path}")
    return result


if __name__ == "__main__":
    main()
