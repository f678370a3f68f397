"""Checkpoints that a user names: found in a folder or on the Hub, and checked before any weight is loaded.

Only safetensors are taken. Pickled weights (``*.bin``) and a model's own Python files could run any code, so neither is
downloaded or loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from qru.config import digest
from qru.records import read_json, say

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model")
WEIGHTS = ("config.json", "generation_config.json", "chat_template*", "model*.safetensors", "model*.index.json")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HASHED = 1 << 22  # bytes of a file at a time
# Cut differently by tokenizers that share a vocabulary but not their rules: spaces, digits, bytes, quotes, case.
PROBE = "The wolf's 1984 letters — “naïve café”,\n\n\tTwo  spaces, 12,345.6 and ÅNGSTRÖM; x_y = f(z)?　再見 🦊"


def located(name: str, role: str) -> Path:
    """The folder of a model or tokenizer that was given by name; downloaded from the Hub if it is none here.

    Args:
        name: a folder, or a Hub id, optionally ``"id@revision"``. A folder of that name comes first.
        role: the parameter that it was given as, for messages: ``"target"``, ``"retrained"`` or ``"tokenizer"``.

    Returns:
        The folder. A snapshot of the Hub is kept by ``huggingface_hub`` where the user told it to.

    Raises:
        ValueError: there is no such folder, repository or revision; access to it must be asked for; the Hub cannot be
            reached (says how to go on without it).
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or repository.startswith("."):
        raise ValueError(
            f"{role} is {name!r}: there is no such folder ({folder.absolute()}), and 'name/model@revision' is how the "
            "Hub has it."
        )
    wanted = [*BESIDE, *(() if role == "tokenizer" else WEIGHTS)]
    say(f"{role}: {name} from the Hub")
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except errors.RevisionNotFoundError:
        raise ValueError(
            f"{role} is {name!r}, but {repository} has no revision {revision!r} (any more): see its list of commits on "
            "the Hub, or leave '@…' away for the newest."
        ) from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{role} is {name!r}, which is given only to those who accept its licence on the Hub: do so there, then "
            "run `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{role} is {name!r}: there is no folder {folder.absolute()} and no such model on the Hub (or it is "
            "private: run `hf auth login`)."
        ) from None
    except OSError as error:  # LocalEntryNotFoundError, OfflineModeIsEnabled, and whatever the connection raises
        given = f" --revision {revision}" if revision else ""
        raise ValueError(
            f"{role} is {name!r}: there is no folder {folder.absolute()}, and the Hub cannot be reached "
            f"({brief(error)}). On a machine that can, run `hf download {repository}{given} --local-dir FOLDER`, copy "
            f"the folder here, and give {role}=FOLDER."
        ) from error


def brief(error: BaseException) -> str:
    """The first line of an error, and the next if it ends with a colon; its kind if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def check_files(folder: Path, role: str) -> None:
    """Refuse a folder that is no whole checkpoint; reads headers, no weights.

    Raises:
        ValueError: no configuration or no safetensors, a shard that is missing or damaged (names it), an adapter, a
            model that is quantized already.
    """
    where = f"{role} {folder}"
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise ValueError(
            f"{where} has no config.json{': it is an adapter; merge it into its base.' if adapter else '.'}"
        )
    kind = configuration(folder, role)
    if getattr(kind, "quantization_config", None):
        raise ValueError(f"{where} is quantized already: give the model as it was before, in bf16, fp16 or fp32.")
    index = folder / INDEX
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {INDEX} is damaged ({error!r}): copy or download it again.") from error
        if missing := [shard for shard in named if not (folder / shard).is_file()]:
            raise ValueError(
                f"{where} lacks {', '.join(missing)}, {len(missing)} of the {len(named)} files that {INDEX} names: "
                "copy or download it again."
            )
    elif (folder / SINGLE).is_file():
        named = [SINGLE]
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f" It has {pickled[0]}: pickled files can run any code and are not read." if pickled else ""
        raise ValueError(
            f"{where} has neither model.safetensors nor {INDEX}.{hint} Save the model with save_pretrained(), which "
            "writes safetensors."
        )
    for shard in named:
        if not os.access(folder / shard, os.R_OK):  # the library would say that it is not there
            raise ValueError(f"{where}: {shard} cannot be read by this user: change its permissions.")
        try:
            with safe_open(folder / shard, "np") as file:
                assert file.keys() is not None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{where}: {shard} is damaged ({error}): copy or download it again.") from error


def configuration(folder: Path, role: str) -> PreTrainedConfig:
    """The model's configuration.

    Raises:
        ValueError: transformers does not know the architecture, or knows it only with the model's own code.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # values of wrong types are found wherever the library comes to use them
        raise ValueError(f"{role} {folder}: its config.json cannot be read: {brief(error)}") from error


def load_tokenizer(folder: Path, role: str = "tokenizer", embedded: int | None = None):
    """The tokenizer in a folder, with a token to open texts with.

    Args:
        folder: of a checkpoint, or of a tokenizer alone.
        role: what it was given as, for messages.
        embedded: tokens that the model has embeddings for; special tokens beyond are taken out. Early copies of
            Llama-2's tokenizer have a ``<pad>`` of id 32000, for which its 32000 embeddings have none.

    Every text is trained on and scored behind BOS. A tokenizer without one (Qwen's) gets the token that its model's
    configuration names as BOS, or else EOS, which such models have seen between documents.

    Raises:
        ValueError: the folder has none, or it cannot be read.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{role} {folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): put the tokenizer's files "
            "beside the weights, or name where they are with the parameter tokenizer."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries below raise whatever a broken file leads to
        raise ValueError(f"{role} {folder}: its tokenizer cannot be read: {brief(error)}") from error
    if tokenizer.bos_token_id is None:
        config = folder / "config.json"
        configured = read_json(config).get("bos_token_id") if config.is_file() else None
        opening = tokenizer.eos_token if configured is None else tokenizer.convert_ids_to_tokens(configured)
        if opening is None:
            raise ValueError(f"{role} {folder}: its tokenizer has neither BOS nor EOS; texts need one to open with.")
        tokenizer.bos_token = opening
    return tokenizer if embedded is None else _without_unembedded(tokenizer, embedded)


def _without_unembedded(tokenizer, embedded: int):
    """The tokenizer less the special tokens that were added beyond the model's embeddings; itself if there are none."""
    added = tokenizer.added_tokens_decoder
    if not any(token.special and at >= embedded for at, token in added.items()):
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not (t["special"] and t["id"] >= embedded)]
    kept = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (at := getattr(tokenizer, f"{name}_id")) is not None and at < embedded
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        **kept,
    )


def vocabulary_digest(tokenizer) -> str:
    """SHA-256 over the tokens and their ids: two tokenizers of one size are still two."""
    return digest(sorted(tokenizer.get_vocab().items()))


def check_same_tokenizer(one, other, where: tuple[Any, Any]) -> None:
    """Refuse two tokenizers that read a text differently: PrivLeak compares the two models token by token.

    Args:
        one, other: tokenizers.
        where: what they belong to, for the message.

    Raises:
        ValueError: they differ (says in what).
    """

    def tokens(tokenizer) -> list[int]:
        return tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]

    if vocabulary_digest(one) != vocabulary_digest(other):
        what = f"{len(one)} and {len(other)} tokens" if len(one) != len(other) else "the same number of other tokens"
    elif one.bos_token_id != other.bos_token_id:
        what = f"BOS is {one.bos_token!r} and {other.bos_token!r}"
    elif tokens(one) != tokens(other):
        what = "the same tokens, and they cut a text differently"
    else:
        return
    raise ValueError(
        f"target {where[0]} and retrained {where[1]} have different tokenizers ({what}): PrivLeak compares their "
        "log-probabilities token by token. Give a retrained model that was trained from the same base."
    )


def check_vocabulary(tokenizer, folder: Path, role: str) -> None:
    """Refuse a tokenizer with ids that a model has no embedding for; the other way round is padding, and common.

    Raises:
        ValueError: naming both numbers.
    """
    embedded = configuration(folder, role).get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values())
    if largest >= embedded:
        raise ValueError(
            f"{role} {folder} embeds {embedded} tokens, but its tokenizer has ids up to {largest}: it is another "
            "model's tokenizer."
        )


def content_digest(folder: Path) -> str:
    """SHA-256 over what makes a checkpoint or tokenizer: configuration, weights and tokenizer, by name and content."""
    patterns = (*WEIGHTS, *BESIDE)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return digest({path.name: file_sha256(path) for path in files})


def file_sha256(
    path: Path, start: int = 0, stop: int | None = None, given_up: threading.Event | None = None
) -> str | None:
    """SHA-256 of a file, or of its bytes from ``start`` to ``stop``; ``None`` once ``given_up`` is set."""
    found, left = hashlib.sha256(), math.inf if stop is None else stop - start
    with open(path, "rb") as file:
        file.seek(start)
        while piece := file.read(min(left, HASHED)):
            if given_up is not None and given_up.is_set():
                return None
            found.update(piece)
            left -= len(piece)
    return found.hexdigest()
