"""What configurations refer to, corpora and models: found and checked before anything is trained or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from qru import calibration, checkpoint, guards, models, processes
from qru.config import RunConfig, regime
from qru.corpora import REVISIONS, Corpus, load_corpus
from qru.corpora.corpus import registry
from qru.defaults import hub_corpus, resolve
from qru.metrics import Options
from qru.metrics import registry as metrics
from qru.metrics.evaluation import check_texts
from qru.objectives import forget_terms, parse_method, retain_terms
from qru.objectives.rmu import steered_layer
from qru.quantizers import load_quantizer
from qru.scoring import forget_halves


class Inputs(NamedTuple):
    """A configuration, resolved, and what it refers to.

    given: the models that a user named, or ``None`` for the embedded ones.
    """

    config: RunConfig
    corpus: Corpus
    given: models.Checkpoints | None

    def models(self) -> models.Checkpoints:
        """The models; embedded ones are made if they are not there."""
        return self.given or models.prepare(self.corpus, self.config.scale)


def find(configs: Sequence[RunConfig], train: bool = True) -> list[Inputs]:
    """What configurations refer to, in their order; nothing is trained and no model loaded.

    Args:
        configs: what is to be run.
        train: ``False`` if models are only to be scored: then the corpus needs nothing to train on.

    Raises:
        ValueError: a field has an impossible value, or what it names cannot be found or used.
    """
    configs = [resolve(config) for config in configs]
    for config in configs:
        _check_has_models(config)
    configs = [_checked(config, None) for config in configs]  # what needs no corpus and no model comes first
    corpora = {(c.corpus, c.scale): corpus_of(c.corpus, c.scale) for c in configs}
    for corpus in corpora.values():
        if not corpus.measurable:
            raise ValueError(
                f"corpus {corpus.name!r} has nothing to measure with: give it verbmem/, knowmem/ or privleak/ (forget "
                "and holdout)."
            )
    for config in configs:
        if train:
            _check_retain(config, corpora[config.corpus, config.scale])
        _check_goal(config, corpora[config.corpus, config.scale])
        calibration.check([load_quantizer(name) for name in config.quantizers], corpora[config.corpus, config.scale])
        _check_metrics(config, corpora[config.corpus, config.scale])
    named = {_names(c): None for c in configs if c.target is not None}
    given = {names: models.given(*names) for names in named}
    for config in configs:
        if config.target is not None:
            for role in ("target", "retrained"):
                models.check_kind(corpora[config.corpus, config.scale], getattr(given[_names(config)], role), role)
    for at in dict.fromkeys((c.corpus, c.scale, _names(c)) for c in configs if c.target is not None):
        _check_scorable(corpora[at[:2]], given[at[2]], chat_template=at[2][-1])
    found = [(config, given.get(_names(config))) for config in configs]
    return [Inputs(_checked(config, made), corpora[config.corpus, config.scale], made) for config, made in found]


def _names(config: RunConfig) -> tuple[str | None, str | None, str | None, bool]:
    return config.target, config.retrained, config.tokenizer, config.chat_template


def _check_retain(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a method with a retain term where it has nothing to train on, and one of tokens for a classifier."""
    forget_term, retain_term = parse_method(config.method)
    for name, known in ((forget_term, forget_terms), (retain_term, retain_terms)):
        if name and corpus.labels and (known[name].hidden or known[name].preferred):
            raise ValueError(
                f"method {config.method!r} with corpus {corpus.name!r}: {name} reads every token of a document, and a "
                "classifier says one thing of the whole. Take ga, npo, simnpo or taskvector, alone or with gdr or klr."
            )
    if forget_terms[forget_term].preferred == "retain" and not any(text.strip() for text in corpus.raw["retain1"]):
        raise ValueError(
            f"method {config.method!r} prefers texts to retain, and corpus {corpus.name!r} has none: add raw/retain1 "
            "(to your own texts: retain), or take idkdpo, which prefers refusals."
        )
    if retain_term and not any(text.strip() for text in corpus.raw["retain1"]):
        raise ValueError(
            f"method {config.method!r} trains on texts to retain, and corpus {corpus.name!r} has none: add raw/retain1 "
            f"(to your own texts: retain), or take method {forget_term!r}, which has no retain term."
        )


def _check_metrics(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a metric that does not exist or that the corpus has no data for."""
    for name in config.metrics or ():
        metrics[name]  # raises with the nearest
        if name not in corpus.measurable:
            raise ValueError(
                f"metrics names {name!r}, but corpus {corpus.name!r} has no data for it; it has "
                f"{', '.join(corpus.measurable)}."
            )


def _check_scorable(corpus: Corpus, made: models.Checkpoints, chat_template: bool) -> None:
    """Hold every text to be scored against tokenizer and positions of models that a user gives; no weight is loaded."""
    for role in ("target", "retrained"):
        model = models.without_weights("", getattr(made, role))
        embedded = model.get_input_embeddings().weight.shape[0]
        tokenizer = checkpoint.load_tokenizer(made.tokenizer, embedded=embedded)
        try:
            check_texts(model, tokenizer, corpus, corpus.measurable, Options(chat_template=chat_template))
        except ValueError as error:
            raise ValueError(f"{role} {getattr(made, role)} cannot be scored: {error}") from None


def _check_goal(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a goal that there are no examples for, on the side that is watched or on the one that is reported."""
    stopping, reported = forget_halves(corpus)
    enough = bool(stopping) and all([*stopping.values(), *reported.values()])
    if config.forget_goal is not None and not enough:
        raise ValueError(
            f"forget_goal is {config.forget_goal!r}, and corpus {corpus.name!r} has too few examples to judge it by: "
            "it needs two of VerbMem, of questions on forget, or of labelled texts. Leave forget_goal out, and give "
            "epochs."
        )
    if strange := [name for name in config.goal_metrics or () if name not in stopping]:
        raise ValueError(
            f"goal_metrics names {strange[0]!r}, and corpus {corpus.name!r} has no examples of it; it has "
            f"{', '.join(stopping)}."
        )


def _check_has_models(config: RunConfig) -> None:
    """Refuse a corpus without embedded models where none are given, before it is loaded; some take long."""
    known = hub_corpus(config.corpus)
    if config.corpus not in registry and not known and not Path(config.corpus).expanduser().exists():
        load_corpus(config.corpus)  # raises, with the nearest name
    if config.target is None and (config.corpus not in registry or regime(config.scale) not in models.SIZES):
        hint = f" At scale 'muse' {known} brings its authors' models." if known and config.scale != "muse" else ""
        raise ValueError(
            f"corpus {config.corpus!r} at scale {config.scale!r} has no embedded models: give target and retrained, a "
            f"folder or Hub id each.{hint}"
        )


def corpus_of(name: str, scale: str) -> Corpus:
    """The corpus of a configuration: as ``load_corpus`` takes it, or ``"id@revision"`` of one on the Hub.

    An embedded one is at ``"muse"`` as large as at mini, which is as large as MUSE.
    """
    repository, _, revision = name.partition("@")
    if repository in REVISIONS:
        return load_corpus(repository, revision=revision or None)
    return load_corpus(name, scale=regime(scale) if regime(scale) in models.SIZES else "mini")


def _checked(config: RunConfig, made: models.Checkpoints | None) -> RunConfig:
    """The config with quantizers under their exact names, each held against every layer it will meet.

    Layers of models that a user gives are known only once these were found (``made``); until then names are checked.
    """
    quantizers = [load_quantizer(name) for name in config.quantizers]
    known = config.target is None or made is not None
    for name, shape in (models.layer_shapes(config.scale, made.target if made else None) if known else {}).items():
        for quantizer in quantizers:
            quantizer.check(shape, name)
        guards.check(config, shape, name)
    if known and config.hidden_layer is not None:
        model = models.without_weights(config.scale, made.target if made else None)
        steered_layer(len(processes.layers(model)), config.hidden_layer)  # raises
    return replace(config, quantizers=tuple(quantizer.name for quantizer in quantizers))
