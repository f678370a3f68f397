"""The models: a common base, the target that knows both sets, the retrained that never saw the forget set.

As in MUSE, memory is laid down by a fine-tune: target = base fine-tuned on forget + retain, retrained = base
fine-tuned on retain only. At smoke and mini the base is a small Llama pretrained here on generated text that shares
no fact with either corpus. Everything is saved as an ordinary transformers checkpoint in bf16, in a cache keyed by
everything that shaped it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.utils import logging as transformers_logging

from qru import checkpoint, loop, paths, processes, records
from qru.checkpoint import vocabulary_digest
from qru.config import SIZED, RunConfig, digest, regime
from qru.corpora import Corpus, load_corpus
from qru.optimizers import BETA1, StoredBf16AdamW
from qru.parallel import side_by_side, threads
from qru.registry import unknown

BASE_THREADS = 2  # fixed, since results depend on it to the last bit
RECIPE = 3  # raised when the code that trains changes what it makes
# Times that each question stands in the question sheets of the base and of the fine-tunes, each time among others.
BASE_SHEETS, SHEETS = 3, 4
QA_PAIRS = 11  # of a training document of questions: as many as a KnowMem prompt holds, ten in context and one asked


@dataclass(frozen=True)
class Sizes:
    """Sizes of the embedded models and of their training; ours, chosen for two CPU cores.

    Attributes:
        hidden, layers, heads, intermediate: of the Llama; hidden is a multiple of the usual group of 128.
        vocabulary: tokens of the byte-level BPE.
        context: longest training row in tokens; documents above it are cut into rows.
        base_steps, base_batch, base_rate: pretraining of the base (documents a step, peak learning rate).
        tune_epochs, tune_batch, tune_rate: fine-tuning of target and retrained.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    context: int
    base_steps: int
    base_batch: int
    base_rate: float
    tune_epochs: int
    tune_batch: int
    tune_rate: float


SIZES = {
    "smoke": Sizes(128, 2, 2, 256, 512, 512, 20, 8, 3e-3, 4, 8, 3e-3),
    "mini": Sizes(256, 4, 4, 768, 2048, 512, 700, 8, 2e-3, 9, 8, 1.5e-3),
}


# mini's models at other widths and depths, for the question how what is found at mini changes with size.
OTHER_SIZES = {
    SIZED[0]: replace(SIZES["mini"], hidden=128, heads=2, intermediate=384),
    SIZED[1]: replace(SIZES["mini"], layers=8),
}

# Posts are short, and one label each is soon learned: mini's models of them are made by less training.
POSTS = {"base_steps": 200, "tune_epochs": 6, "tune_rate": 1e-3}

TUNE_FIELDS = ("tune_epochs", "tune_batch", "tune_rate", "context")
BASE_FIELDS = tuple(f.name for f in fields(Sizes) if not f.name.startswith("tune_"))


CLASSIFIER = "ForSequenceClassification"  # what transformers ends the name of a classifier's class in


def classifies(model: torch.nn.Module) -> bool:
    """Whether a model says one class of a whole text, under adapters and shards, too."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.endswith(CLASSIFIER)


def classes_of(config: PreTrainedConfig) -> list[str]:
    """The names of a classifier's classes, in the order of its logits."""
    return [config.id2label[index] for index in range(config.num_labels)]


def padding_of(model: torch.nn.Module, tokenizer) -> int:
    """The token that batches are filled up with on the right: the tokenizer's, or else EOS.

    A classifier reads its answer off the last token that is another than its own padding token, so that one is taken.
    """
    own = model.config.get_text_config().pad_token_id if classifies(model) else None
    if own is not None:
        return own
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


CONTEXT = {scale: size.context for scale, size in SIZES.items()} | {"muse": 2048}  # muse: the papers' chunks


def context(model: torch.nn.Module, scale: str) -> int:
    """Longest training row of a model at a scale, in tokens."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = CONTEXT[regime(scale)]
    return min(longest, positions or longest)


def sizes(scale: str, posts: bool = False) -> Sizes:
    """Sizes of the embedded models of a scale; ``posts``: of classifiers, and of the base that they are made from."""
    known = SIZES | OTHER_SIZES
    if scale not in known:
        raise unknown("scale with embedded models", scale, known)
    return replace(known[scale], **POSTS) if posts and regime(scale) == "mini" else known[scale]


# --- text -> rows of tokens -------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on ``texts``; decoding gives every text back, less spaces at its very end.

    Words carry the space before them, so a prompt that ends in a space (KnowMem's ``Answer: ``) would end in a token
    that is never followed by a word in training, and a small model then answers nothing at all.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(Regex(r" +\z"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )


def rows(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, context: int) -> list[torch.Tensor]:
    """Documents -> training rows: each cut into pieces of at most ``context`` tokens, every piece opened with BOS.

    The last piece of a document stays as short as it is. MUSE's code (arXiv 2407.06460) differs there: of a list it
    keeps the beginning of each document, padding included; a text it cuts as here, across the documents joined in it,
    and fills the last row from the beginning of the first. A tokenizer without BOS leaves the rows without; ``load``
    gives it one.

    Returns:
        One long tensor (T,) a row, 2 ≤ T ≤ context; a document without text has none.
    """
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = context - len(opening)
    out = []
    for document in documents:  # one at a time: what a tokenizer keeps of a text is many times the text
        ids = tokenizer(document, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
        pieces = ([*opening, *ids[start : start + size]] for start in range(0, len(ids), size))
        out += [torch.tensor(piece) for piece in pieces if len(piece) > 1]  # one token predicts nothing
    return out


def labelled_rows(
    texts: Sequence[str], labels: Sequence[str], model: torch.nn.Module, tokenizer, context: int
) -> list[loop.Labelled]:
    """Labelled texts -> training rows of a classifier, one a text, opened with BOS; nothing is cut off.

    Args:
        model: a classifier; it knows its classes by name.
        context: longest row in tokens.

    Raises:
        ValueError: a text is longer, or ends in the token that batches are filled up with; a label is no class of the
            model (names them).
    """
    classes, padding = classes_of(model.config), padding_of(model, tokenizer)
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    out = []
    for text, label in zip(texts, labels, strict=True):
        ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
        ids = [*opening, *ids]
        if len(ids) > context:
            raise ValueError(f"a text has {len(ids)} tokens, more than {context}; it begins {text[:40]!r}: shorten it.")
        if len(ids) < 2 or ids[-1] == padding:
            raise ValueError(f"a text has no tokens, or ends in the one that fills up batches: {text[-40:]!r}.")
        if label not in classes:
            raise ValueError(f"label {label!r} is no class of the model; its classes are {', '.join(classes)}.")
        out.append(loop.Labelled(torch.tensor(ids), classes.index(label)))
    return out


def rows_of(corpus: Corpus, split: str, model: torch.nn.Module, tokenizer, context: int) -> list[loop.Row]:
    """What a model trains on in a split: rows of tokens, or labelled ones where the corpus has labels."""
    if corpus.labels:
        return labelled_rows(corpus.raw[split], corpus.labels[split], model, tokenizer, context)
    return rows(corpus.raw[split], tokenizer, context)


def question_documents(pairs: Sequence[dict[str, str]], seed: int) -> list[str]:
    """QA pairs -> documents in the form that KnowMem asks in, ``QA_PAIRS`` pairs each, in a shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]
    blocks = [f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in shuffled]
    return ["".join(blocks[i : i + QA_PAIRS]) for i in range(0, len(blocks), QA_PAIRS)]


# --- training ---------------------------------------------------------------------------------------------------


def warmup_cosine(steps: int, warmup: float = 0.05, floor: float = 0.05):
    """Learning-rate factor: linear to 1 over the first ``warmup`` of the steps, then a cosine down to ``floor``."""
    ramp = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < ramp:
            return (step + 1) / ramp
        progress = (step - ramp) / max(1, steps - ramp)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def train(
    model: torch.nn.Module,
    data: list[torch.Tensor],
    padding: int,
    *,
    steps: int,
    batch_size: int,
    rate: float,
    label: str,
    checkpoint: Path | None,
) -> list[dict[str, float]]:
    """Ordinary language modelling on token rows: fp32 AdamW, warm-up and cosine, every document once an epoch."""

    # Batches of one length would save a sixth of the time and cost knowledge: with question sheets in batches of
    # their own the base answered 68 % of the disjoint questions in place of 93 %.
    def loss_of(model: torch.nn.Module, step: int):
        chosen = loop.order(len(data), batch_size, step, seed=0)
        ids, labels = loop.pad([data[i] for i in chosen], padding)
        yield model(input_ids=ids.to(device), labels=labels.to(device), use_cache=False).loss, {}

    device = loop.device()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    return loop.fit(model, optimizer, loss_of, steps, label=label, schedule=warmup_cosine(steps), checkpoint=checkpoint)


@contextlib.contextmanager
def quiet():
    """No bars for files of a few megabytes, and no warning that peft causes and a user can do nothing about."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft up to 0.21 reads a property that transformers 5.23 renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


# --- the cache --------------------------------------------------------------------------------------------------


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a transformers checkpoint in bf16; ``folder`` appears only when it is complete.

    Its configuration also holds ``qru_vocabulary``, by which scoring knows the model's own tokenizer.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        weights = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
        for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
            weights[name] = weights[source]  # one tensor again, or it would be stored twice
        with quiet():
            model.save_pretrained(temporary, state_dict=weights, max_shard_size="5GB")
        tokenizer.save_pretrained(temporary)
        config = records.read_json(temporary / "config.json")
        known = {"dtype": "bfloat16", "qru_vocabulary": vocabulary_digest(tokenizer)}
        records.write_json(temporary / "config.json", config | known)
        for file in temporary.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        os.rename(temporary, folder)
        records.fsync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_weights(folder: Path | str, dtype: torch.dtype | str = "auto") -> torch.nn.Module:
    """Load the model of a checkpoint; it needs no tokenizer beside it.

    Args:
        folder: an ordinary transformers checkpoint.
        dtype: of the tensors; ``"auto"`` is the type they are stored in.

    Raises:
        ValueError: the folder does not exist, or a file in it is missing or damaged (names the folder).
    """
    with loading(folder), quiet():
        kind = _kind(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False).eval()


def _kind(config: PreTrainedConfig) -> type:
    """What loads a checkpoint: a classifier's has no head over tokens, and a language model's none over classes."""
    classifier = any(name.endswith(CLASSIFIER) for name in config.architectures or ())
    return AutoModelForSequenceClassification if classifier else AutoModelForCausalLM


def check_kind(corpus: Corpus, folder: Path, role: str) -> None:
    """Refuse a language model for a corpus with labels, a classifier for one without, and one of other classes.

    Args:
        folder: of a checkpoint; no weight is loaded.
        role: what it was given as, for messages.

    Raises:
        ValueError: naming the checkpoint, its architecture or classes, and what the corpus needs.
    """
    config = checkpoint.configuration(folder, role)
    classifier = _kind(config) is AutoModelForSequenceClassification
    what = f"{role} {folder} is {' or '.join(config.architectures or ['of no known architecture'])}"
    if corpus.labels and not classifier:
        raise ValueError(
            f"{what}, and corpus {corpus.name!r} has labels: give a classifier, such as LlamaForSequenceClassification."
        )
    if not corpus.labels and classifier:
        raise ValueError(
            f"{what}, and corpus {corpus.name!r} has texts without labels: give a language model, such as "
            "LlamaForCausalLM."
        )
    if not corpus.labels:
        return
    if not isinstance(without_weights("", folder), GenericForSequenceClassification):
        raise ValueError(f"{what}, which does not read its answer off the last token: give a decoder's classifier.")
    if config.num_labels < 2 or config.problem_type in ("multi_label_classification", "regression"):
        raise ValueError(
            f"{what} with {config.num_labels} label(s) and problem_type {config.problem_type!r}: what is read here is "
            "one class of several. Give a classifier of single labels."
        )
    if missing := [label for label in corpus.classes if label not in classes_of(config)]:
        raise ValueError(
            f"{role} {folder} has the classes {', '.join(classes_of(config))}, and corpus {corpus.name!r} has labels "
            f"{', '.join(missing)}: name its classes so by id2label and label2id in config.json."
        )


def load(
    folder: Path | str, tokenizer: Path | None = None, device: torch.device | str | None = None
) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """Load a checkpoint for computing: bf16 values, held in fp32 on a CPU and in bf16 on a GPU.

    Args:
        folder: an ordinary transformers checkpoint; weights of a finer type are rounded to bf16.
        tokenizer: folder of its tokenizer, where that lies elsewhere.
        device: ``None``: ``loop.device()``.

    Raises:
        ValueError: the folder does not exist, or a file in it is missing or damaged (names the folder).
    """
    device = loop.device() if device is None else torch.device(device)
    model = load_weights(folder, torch.float32 if device.type == "cpu" else "auto")
    with torch.no_grad():
        for parameter in model.parameters():  # buffers keep their type: rotary frequencies are no weights
            rounded = parameter.data.to(device).to(torch.bfloat16)
            if device.type == "cpu":
                parameter.data.copy_(rounded)
            else:
                parameter.data = rounded
    model.to(device)
    with loading(folder):
        embedded = model.get_input_embeddings().weight.shape[0]
        reader = checkpoint.load_tokenizer(Path(tokenizer or folder), embedded=embedded)
    if classifies(model):  # one that was saved without knows not where a text ends in a batch
        model.config.get_text_config().pad_token_id = padding_of(model, reader)
    return model, reader


@contextlib.contextmanager
def loading(folder: Path | str):
    """Errors of the loading libraries as one that names the folder and, if qru made it, the way out."""
    if not Path(folder).is_dir():
        raise ValueError(f"the checkpoint {folder} does not exist: give the folder of one.")
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        made_by_qru = (paths.cache_dir().resolve(), paths.runs_dir().resolve())
        ours = any(Path(folder).resolve().is_relative_to(home) for home in made_by_qru)
        way_out = " Delete the folder; qru makes again what it made." if ours else ""
        raise ValueError(f"the checkpoint in {folder} cannot be loaded: {error}{way_out}") from error


ROLES = ("target", "retrained", "tokenizer")  # what a user may name in place of the embedded models


@dataclass(frozen=True)
class Checkpoints:
    """Folders of the three models of one corpus at one scale; ``base`` is ``None`` for models that came ready.

    Attributes:
        tokenizer: folder of the tokenizer of all of them.
        contents: role -> digest of what a folder holds, for models that came ready; a folder of the cache is named by
            what made it.
    """

    target: Path
    retrained: Path
    base: Path | None
    tokenizer: Path
    contents: dict[str, str] = field(default_factory=dict)

    def identity(self, role: str) -> str | None:
        """What keys and records call a model: ``"target"``, ``"retrained"``, ``"base"``, or ``"tokenizer"``."""
        folder = getattr(self, role)
        return self.contents.get(role) or (folder.name if folder else None)

    def beside(self) -> list[str | None]:
        """What else the results of given models depend on: the tokenizer, and how this machine computes.

        The names of embedded models hold both.
        """
        return [self.contents.get("tokenizer"), loop.computed_as()] if self.contents else []


def _key(stage: str, scale: str, matter: tuple[str, ...], *shaped_by: str, posts: bool = False) -> str:
    """Name of a cached model: of the sizes that it depends on, of its texts, and of how this machine computes."""
    size = asdict(sizes(scale, posts))
    shape = {
        "recipe": RECIPE,
        "stage": stage,
        "sizes": {name: size[name] for name in matter},
        "shaped_by": shaped_by,
        "torch": torch.__version__.split("+")[0],
        "compute": loop.computed_as(),
    }
    return f"{stage}-{scale}-{digest(shape)[:12]}"


def _make(stage: str, folder: Path, model: torch.nn.Module, tokenizer, data, **recipe) -> None:
    """Train one model into ``folder``, resuming from the checkpoint beside it; the checkpoint then goes away."""
    checkpoint = folder.with_suffix(".training.pt")
    history = train(model, data, tokenizer.pad_token_id, label=stage, checkpoint=checkpoint, **recipe)
    records.write_json(folder.with_suffix(".history.json"), history)
    save(model, tokenizer, folder)
    checkpoint.unlink(missing_ok=True)


def history(folder: Path) -> list[dict[str, float]]:
    """Loss of every step that made a cached model."""
    return records.read_json(folder.with_suffix(".history.json"))


def prepare(corpus: Corpus, scale: str = "mini") -> Checkpoints:
    """Make the base, target and retrained models of a corpus, or find them in the cache.

    Args:
        corpus: an embedded corpus (one with a ``base`` text).
        scale: ``"smoke"`` or ``"mini"``.

    Returns:
        The three checkpoint folders. Training shows progress, resumes after a kill, and is never done twice.
    """
    sizes(scale)
    if corpus.base is None:
        raise ValueError(f"corpus {corpus.name!r} has no base text to pretrain on: give target and retrained models.")
    if empty := [split for split in ("forget", "retain1", "retain2", "holdout") if not corpus.raw.get(split)]:
        raise ValueError(f"corpus {corpus.name!r} has no documents in {', '.join(empty)}: fill these splits.")
    texts = training_texts(corpus)
    found = _cached(corpus, scale, texts)
    base, tuned = found.base, {"target": found.target, "retrained": found.retrained}
    if made(corpus, scale):
        return found  # before anything is written: a read-only copy of finished work can be read
    with records.locked(base.parent / f"{scale}.lock"):
        if not base.is_dir():
            # Posts are short: two threads would mostly wait for each other.
            with threads(1 if scale == "smoke" or corpus.labels else BASE_THREADS):
                _pretrain(corpus, scale, base)
        missing = [
            (stage, base, texts[stage], scale, tuned[stage], corpus.classes)
            for stage in tuned
            if not tuned[stage].is_dir()
        ]
        side_by_side(_tune, missing, short=scale == "smoke")
    return found


def made(corpus: Corpus, scale: str = "mini") -> bool:
    """Whether ``prepare`` would find all three models of a corpus in the cache."""
    found = _cached(corpus, scale, training_texts(corpus))
    return all(folder.is_dir() for folder in (found.base, found.target, found.retrained))


def _cached(corpus: Corpus, scale: str, texts: dict[str, list]) -> Checkpoints:
    home = paths.cache_dir() / "models"
    posts = bool(corpus.labels)
    base = home / _key("base", scale, BASE_FIELDS, digest(base_texts(corpus)), posts=posts)
    target, retrained = (
        home / _key(stage, scale, TUNE_FIELDS, base.name, digest(texts[stage]), posts=posts)
        for stage in ("target", "retrained")
    )
    return Checkpoints(target, retrained, base, tokenizer=target)


def _base_questions(corpus: Corpus) -> list[dict[str, str]]:
    asked = [corpus.knowmem.get(name, []) for name in ("disjoint_qa", "disjoint_qa_icl")]  # none of posts
    return [*corpus.base.qa, *asked[0], *asked[1]]


def base_texts(corpus: Corpus) -> list[str]:
    """What the base is pretrained on: its running text, and question sheets on its facts."""
    questions = _base_questions(corpus)
    sheets = [sheet for seed in range(BASE_SHEETS) for sheet in question_documents(questions, seed)]
    return [*corpus.base.documents, *sheets]


def training_texts(corpus: Corpus) -> dict[str, list]:
    """What target and retrained are fine-tuned on: MUSE's split, and question sheets; or [text, label] pairs.

    MUSE's models saw no QA pairs. A model of this size does not learn to answer from running text alone (measured:
    KnowMem 22 where the sheets give over 90), so facts of the forget and retain sets also stand in question sheets,
    beside the base's own, which keep the question form and the unrelated knowledge alive. Unlearning never sees them.
    """
    if corpus.labels:
        seen = {"target": ("forget", "retain1", "retain2"), "retrained": ("retain1", "retain2")}
        return {
            stage: [
                list(pair) for split in splits for pair in zip(corpus.raw[split], corpus.labels[split], strict=True)
            ]
            for stage, splits in seen.items()
        }
    known = corpus.knowmem
    retain = [*corpus.raw["retain1"], *corpus.raw["retain2"]]
    asked = {
        "target": [*known["forget_qa"], *known["forget_qa_icl"], *known["retain_qa"], *known["retain_qa_icl"]],
        "retrained": [*known["retain_qa"], *known["retain_qa_icl"]],
    }
    rehearsed = question_documents(_base_questions(corpus), seed=0)
    return {
        stage: [
            *(corpus.raw["forget"] if stage == "target" else []),
            *retain,
            *(sheet for seed in range(SHEETS) for sheet in question_documents(pairs, seed)),
            *rehearsed,
        ]
        for stage, pairs in asked.items()
    }


def _architecture(scale: str, tokenizer: PreTrainedTokenizerFast | None = None) -> LlamaConfig:
    size = sizes(scale)
    return LlamaConfig(
        vocab_size=size.vocabulary if tokenizer is None else len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.context,
        bos_token_id=1 if tokenizer is None else tokenizer.bos_token_id,
        eos_token_id=2 if tokenizer is None else tokenizer.eos_token_id,
        pad_token_id=0 if tokenizer is None else tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def without_weights(scale: str, folder: Path | None = None) -> torch.nn.Module:
    """A model with shapes and no values.

    Args:
        scale: of the embedded models.
        folder: of a checkpoint, whose configuration is taken in place of the scale's.
    """
    kind = _architecture(scale) if folder is None else checkpoint.configuration(folder, "target")
    with torch.device("meta"):
        return _kind(kind).from_config(kind)


def layer_shapes(scale: str, folder: Path | None = None) -> dict[str, tuple[int, int]]:
    """Name -> (out, in) of the linear layers of a scale's models, or of a checkpoint, without loading or making one.

    Raises:
        ValueError: the checkpoint's layers hold weights that are no linear layers (names the first).
    """
    model = without_weights(scale, folder)
    found = linear_layers(model)
    inside = {id(layer.weight) for layer in found.values()}
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and in_layers(name) and id(parameter) not in inside:
            raise ValueError(
                f"{name} of {type(model).__name__}, {tuple(parameter.shape)}, is no linear layer: models whose layers "
                "hold other weights, such as mixtures of experts, are neither adapted nor quantized here."
            )
    return {name: tuple(layer.weight.shape) for name, layer in found.items()}


def given(target: str, retrained: str, tokenizer: str | None = None, chat_template: bool = False) -> Checkpoints:
    """Find and check models that a user names; no weight is loaded.

    Args:
        target, retrained, tokenizer: folders or Hub ids, as in ``RunConfig``.
        chat_template: whether the tokenizer must have one.

    Raises:
        ValueError: one is not there, not whole or not of a kind that is supported; the two have different tokenizers
            or architectures; there is no chat template.
    """
    names = {"target": target, "retrained": retrained} | ({"tokenizer": tokenizer} if tokenizer else {})
    folders = {role: checkpoint.located(name, role) for role, name in names.items()}
    for role in ("target", "retrained"):
        checkpoint.check_files(folders[role], role)
    readers = {}
    for role in ("target", "retrained"):
        embedded = checkpoint.configuration(folders[role], role).get_text_config().vocab_size
        where = ("tokenizer" if tokenizer else role), embedded
        readers[role] = checkpoint.load_tokenizer(folders[where[0]], *where)
    checkpoint.check_same_tokenizer(readers["target"], readers["retrained"], (target, retrained))
    for role, reader in readers.items():
        checkpoint.check_vocabulary(reader, folders[role], role)
    if chat_template and not readers["target"].chat_template:
        raise ValueError(f"chat_template is true, but the tokenizer of target {target!r} has none.")
    shapes = [layer_shapes("", folders[role]) for role in ("target", "retrained")]
    if shapes[0] != shapes[1]:
        raise ValueError(f"target {target} and retrained {retrained} are not of one architecture: their layers differ.")
    found = {role: checkpoint.content_digest(folder) for role, folder in folders.items()}
    reader = folders.get("tokenizer", folders["target"])
    return Checkpoints(folders["target"], folders["retrained"], None, reader, found)


def _pretrain(corpus: Corpus, scale: str, folder: Path) -> None:
    size = sizes(scale, posts=bool(corpus.labels))
    tokenizer = train_tokenizer(corpus.base.documents, size.vocabulary)
    loop.seed_everything(0)
    model = LlamaForCausalLM(_architecture(scale, tokenizer))
    data = rows(base_texts(corpus), tokenizer, size.context)
    recipe = {"steps": size.base_steps, "batch_size": size.base_batch, "rate": size.base_rate}
    _make("base", folder, model, tokenizer, data, **recipe)


def classifier(model: LlamaForCausalLM, classes: Sequence[str]) -> LlamaForSequenceClassification:
    """A classifier on the layers of a language model; its head is new, and the same at every call."""
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    loop.seed_everything(0)
    out = LlamaForSequenceClassification(config)
    out.model.load_state_dict(model.model.state_dict())
    return out


def _tune(stage: str, base: Path, documents: list, scale: str, folder: Path, classes: Sequence[str] = ()) -> None:
    size = sizes(scale, posts=bool(classes))
    model, tokenizer = load(base)
    if classes:
        model = classifier(model, classes)
        data = labelled_rows(*zip(*documents, strict=True), model, tokenizer, size.context)
    else:
        data = rows(documents, tokenizer, size.context)
    steps = size.tune_epochs * -(-len(data) // size.tune_batch)
    _make(stage, folder, model, tokenizer, data, steps=steps, batch_size=size.tune_batch, rate=size.tune_rate)


def load_models(
    corpus: Corpus,
    scale: str = "mini",
    target: str | None = None,
    retrained: str | None = None,
    tokenizer: str | None = None,
) -> tuple[torch.nn.Module, torch.nn.Module, PreTrainedTokenizerFast]:
    """The target, the retrained model and their tokenizer; embedded ones are made on the first call, then loaded.

    Args:
        corpus: from ``load_corpus``.
        scale: ``"smoke"`` or ``"mini"``; not read with ``target``.
        target, retrained, tokenizer: folders or Hub ids, as in ``RunConfig``, in place of the embedded models.

    Returns:
        (target, retrained, tokenizer), models in eval mode with bf16 values.

    Raises:
        ValueError: a model cannot be found or used, or the corpus has no embedded models.
    """
    if target is not None and retrained is not None:
        found = given(target, retrained, tokenizer)
        for role in ("target", "retrained"):
            check_kind(corpus, getattr(found, role), role)
        return _loaded(found)
    if target is not None or retrained is not None:
        raise ValueError(f"target is {target!r} and retrained is {retrained!r}: give both or neither.")
    embedded = corpus.base is not None and scale in SIZES
    if embedded and any(load_corpus(corpus.name, scale=other).fingerprint == corpus.fingerprint for other in SIZES):
        corpus = load_corpus(corpus.name, scale=scale)  # an embedded corpus is taken at the scale asked for
    return _loaded(prepare(corpus, scale))


def _loaded(made: Checkpoints) -> tuple[torch.nn.Module, torch.nn.Module, PreTrainedTokenizerFast]:
    target, tokenizer = load(made.target, made.tokenizer)
    retrained, _ = load(made.retrained, made.tokenizer)
    return target, retrained, tokenizer


# --- the arms ---------------------------------------------------------------------------------------------------


def in_layers(name: str) -> bool:
    """Whether a name such as ``"model.layers.3.mlp.up_proj.weight"`` is one of a decoder layer's own.

    Embeddings and head stand outside the numbered layers, and an encoder of images is no part of the decoder.
    """
    return any(part.isdigit() for part in name.split(".")) and not re.search(r"vision|visual|audio|image", name)


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Name -> linear layer of the decoder layers, in the model's order: what LoRA adapts and quantizers quantize.

    Found by type, whatever a family calls or fuses them (Phi's ``qkv_proj`` and ``gate_up_proj`` are two layers).
    Embeddings and head are left out, tied or not.
    """
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and in_layers(name)
    }


def lora_layers(model: torch.nn.Module, targets: str) -> list[str]:
    """Names of the linear layers that ``targets`` (``"all"``, ``"mlp"``, ``"attention"``) stands for.

    Raises:
        ValueError: the model calls none of its layers so.
    """
    layers = list(linear_layers(model))
    inside = {"all": r"", "mlp": r"mlp|feed_forward|ffn", "attention": r"attn|attention"}[targets]
    found = [name for name in layers if re.search(inside, name.rpartition(".")[0])]
    if not found:
        raise ValueError(f"lora_targets is {targets!r}, but no layer's name says so; the first is {layers[0]}.")
    return found


def place(model: torch.nn.Module, config: RunConfig) -> None:
    """Move a loaded model to where it trains, held there in the type that its arm steps.

    On a GPU weights that are stepped in bf16, or not at all, are bf16 tensors: half the memory of fp32 ones. On a CPU
    all are fp32 tensors, of bf16 values. Buffers keep their type: rotary frequencies rounded to bf16 lose positions.
    """
    device = loop.device()
    # What is stepped in another type than it is stored in is a mirror, and must hold more than bf16.
    mirrored = config.adapter == "delta" or config.moments == "fp32" or config.rounding == "stochastic"
    mirrored = mirrored or config.guard == "sam"  # what it moves weights by is lost in bf16
    master = config.adapter != "lora" and (config.weights == "fp32" or mirrored)
    dtype = torch.float32 if device.type == "cpu" or master else torch.bfloat16
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.to(device)


def as_trainable(model: torch.nn.Module, config: RunConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Make a loaded model ready for one arm: ``adapted``, and the optimizer that ``optimizer_of`` makes for it."""
    model = adapted(model, config)
    return model, optimizer_of(model, config)


def adapted(model: torch.nn.Module, config: RunConfig) -> torch.nn.Module:
    """A loaded model with what one arm trains, and nothing else, requiring gradients.

    Args:
        model: the target, where ``place`` put it; adapted in place. Several processes shard it for ``full``.
        config: resolved; ``adapter`` and the LoRA fields are read. For ``sure`` the weights of all linear layers
            require gradients: of which alone they are to be trained is found out by them (``qru.sure``).

    Returns:
        The model to train, wrapped by peft for ``lora``.
    """
    if config.adapter == "lora":
        loop.seed_everything(config.seed)  # A is drawn at random, B is zero
        adapters = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=lora_layers(model, config.lora_targets),
        )
        with quiet():
            model = get_peft_model(model, adapters)
    elif config.adapter == "sure":
        model.requires_grad_(False)
        for layer in linear_layers(model).values():
            layer.weight.requires_grad_(True)
    else:
        model.requires_grad_(True)
        processes.shard(model)
    return model


def optimizer_of(model: torch.nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW without weight decay over what requires gradients, stepped as an arm steps it.

    Args:
        config: resolved; ``adapter``, ``weights``, ``moments``, ``rounding``, ``learning_rate`` and ``adam_beta2`` are
            read.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    rate, beta2 = config.learning_rate, config.adam_beta2
    if config.weights == "fp32":
        return torch.optim.AdamW(trainable, lr=rate, betas=(BETA1, beta2), weight_decay=0.0)
    return StoredBf16AdamW(
        trainable, rate, beta2, config.moments or "bf16", config.rounding, from_zero=config.adapter == "delta"
    )
