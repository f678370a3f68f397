"""A tokenizer as GGUF describes it, for the two kinds that models of the Llama architecture have.

``llama``: SentencePiece's BPE, pieces with ▁ and bytes for what is not among them. Pieces carry scores, and llama.cpp
joins the neighbours whose piece has the best one; a piece's score here is minus the rank of its first merge, which
gives the same order. ``gpt2``: byte-level BPE with a list of merges; llama.cpp must know by name how text is cut first.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qru.checkpoint import PROBE, TOKENIZER_FILES, brief

REFUSED = "choose --format compressed-tensors, or convert --format safetensors with llama.cpp."

# How llama.cpp calls the ways of cutting text before byte-level BPE; regular expressions as tokenizer.json has them.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {LLAMA_3: "llama-bpe", QWEN_2: "qwen2"}


class Type(IntEnum):
    """What kind of token it is, in GGUF's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and how text is cut into them.

    Attributes:
        model: ``"llama"`` or ``"gpt2"``. pre: how llama.cpp calls the cut before BPE.
        tokens, types: by id. scores: likewise for ``"llama"``. merges: ``"left right"`` for ``"gpt2"``.
        special: ``"bos"``, ``"eos"``, ``"unk"``, ``"pad"`` -> id.
        add_bos, add_eos: whether texts are opened and closed. space: whether a space is put in front.
        chat_template: Jinja text, if there is one.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[Type]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    space: bool
    chat_template: str | None

    def write(self, writer: Any) -> None:
        """Give it to a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types([int(kind) for kind in self.types])
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for role, add in (
            ("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
            ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id),
        ):  # fmt: skip
            if role in self.special:
                add(self.special[role])
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.model == "llama":
            writer.add_add_space_prefix(self.space)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a checkpoint.

    Args:
        folder: of the checkpoint.
        size: tokens that the model embeds; what the tokenizer lacks is filled up with unused ones.

    Raises:
        ValueError: there is none, it has ids beyond the embeddings, or llama.cpp would cut texts otherwise (says how).
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} has no tokenizer, and a GGUF file must hold one: put tokenizer.json beside the weights."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # the libraries below raise whatever a broken file leads to
        raise ValueError(f"{folder}: its tokenizer cannot be read: {brief(error)}") from error
    model = state["model"]
    if model["type"] != "BPE":
        raise ValueError(f"{folder} has a tokenizer of the kind {model['type']}; GGUF is written for BPE: {REFUSED}")
    by_id = {at: token for token, at in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise ValueError(f"{folder} embeds {size} tokens, but its tokenizer has ids up to {max(by_id)}.")
    tokens = [by_id.get(at, f"[PAD{at}]") for at in range(size)]
    types = [Type.NORMAL if at in by_id else Type.UNUSED for at in range(size)]
    for added in state["added_tokens"]:
        types[added["id"]] = Type.CONTROL if added["special"] else Type.USER_DEFINED
    special = {
        role: at for role in ("bos", "eos", "unk", "pad") if (at := getattr(tokenizer, f"{role}_token_id")) is not None
    }
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    pieces = bool(model["byte_fallback"])
    scores = None
    if pieces:
        scores = piece_scores(tokens, merges)
        for byte in range(256):
            if (token := f"<0x{byte:02X}>") in model["vocab"]:
                types[model["vocab"][token]] = Type.BYTE
        if "unk" in special:
            types[special["unk"]] = Type.UNKNOWN
    probe = tokenizer("x")["input_ids"]
    first = tokenizer.tokenize("x", add_special_tokens=False)[0]
    found = Vocabulary(
        model="llama" if pieces else "gpt2",
        pre="default" if pieces else cut(state, folder),
        tokens=tokens,
        types=types,
        scores=scores,
        merges=None if pieces else [" ".join(merge) for merge in merges],
        special=special,
        add_bos=probe[0] == special.get("bos"),
        add_eos=probe[-1] == special.get("eos"),
        space=pieces and first != "x",
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )
    if pieces:
        expected = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
        if cut_into_pieces(PROBE, found) != expected:
            raise ValueError(
                f"{folder}: llama.cpp would cut texts otherwise than this tokenizer does, because its merges do not "
                f"follow from scores of pieces: {REFUSED}"
            )
    return found


def piece_scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Minus the rank of the first merge that makes a piece; what no merge makes lies behind all that one does."""
    rank: dict[str, int] = {}
    for at, (left, right) in enumerate(merges):
        rank.setdefault(left + right, at)
    return [float(-rank.get(token, len(merges))) for token in tokens]


def cut_into_pieces(text: str, words: Vocabulary) -> list[int]:
    """Token ids of a text as llama.cpp finds them: join the best neighbours, the first of several, until none are."""
    ids = {token: at for at, token in enumerate(words.tokens)}
    symbols = list((" " * words.space + text).replace(" ", "▁"))
    while True:
        joined = [left + right for left, right in itertools.pairwise(symbols)]
        known = [at for at, piece in enumerate(joined) if piece in ids]
        if not known:
            break
        best = max(known, key=lambda at: (words.scores[ids[joined[at]]], -at))
        symbols[best : best + 2] = [joined[best]]
    found = []
    for symbol in symbols:
        if symbol in ids:
            found.append(ids[symbol])
        else:
            found += [ids.get(f"<0x{byte:02X}>", words.special.get("unk")) for byte in symbol.encode()]
    return found


def cut(state: dict, folder: Path) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text before BPE.

    Args:
        state: the tokenizer, as ``tokenizer.json`` has it.
        folder: for the message.

    Raises:
        ValueError: it is none that is known here.
    """
    before = state["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    last = steps[-1] if steps[-1].get("type") == "ByteLevel" and not steps[-1]["add_prefix_space"] else None
    if last and len(steps) == 1 and last["use_regex"]:
        return "gpt-2"
    if last and len(steps) == 2 and steps[0] == {"type": "Digits", "individual_digits": True} and last["use_regex"]:
        return "smollm"
    if last and len(steps) == 2 and steps[0]["type"] == "Split" and not last["use_regex"]:
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in CUTS and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
            return CUTS[pattern]
    raise ValueError(
        f"{folder}: its tokenizer cuts text in a way whose name in llama.cpp is not known here "
        f"({json.dumps(before, ensure_ascii=False)[:200]}): {REFUSED}"
    )
