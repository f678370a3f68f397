"""Invented names, handed out once each, so that no two entities anywhere in the world share a name word."""

import random

_ONSETS = [
    "b",
    "br",
    "c",
    "cr",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
]
_VOWELS = ["a", "a", "e", "e", "i", "o", "o", "u"]
_MIDDLES = [
    "b",
    "d",
    "g",
    "l",
    "ll",
    "m",
    "n",
    "nn",
    "r",
    "rr",
    "s",
    "t",
    "v",
    "rd",
    "ld",
    "nd",
    "rv",
    "lm",
    "st",
    "rn",
]
_FEMALE = ["a", "ia", "is", "eth", "wyn", "essa", "une", "ira"]
_MALE = ["ik", "or", "an", "us", "ard", "oc", "eld", "in"]
_SURNAME = ["ow", "er", "ick", "ott", "ell", "ay", "ish", "am", "unt", "and", "ane", "oss"]
_TOWN = ["wick", "ford", "stead", "mere", "holm", "combe", "thorpe", "haven", "gate", "moor"]
_COMPANY = ["co", "ex", "tek", "on", "ana", "ico"]
_CRAFT = ["ry", "aft", "ume", "ole", "ade", "ique"]
_ENDINGS = {
    "female": _FEMALE, "male": _MALE, "surname": _SURNAME, "town": _TOWN, "company": _COMPANY, "craft": _CRAFT,
}  # fmt: skip


class NameStock:
    """Draws invented words, never the same one twice, and never one that begins like another of its sort."""

    def __init__(self, seed: int):
        self._rng = random.Random(f"qru names {seed}")
        self._used: set[str] = set()

    def word(self, sort: str) -> str:
        """One new capitalised word; sort is one of female, male, surname, town, company, craft."""
        while True:
            rng = self._rng
            stem = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_MIDDLES)
            if sort in ("surname", "company") and rng.random() < 0.5:
                stem += rng.choice(_VOWELS) + rng.choice(["b", "d", "g", "l", "m", "n", "r", "s", "t", "v"])
            word = (stem + rng.choice(_ENDINGS[sort])).capitalize()
            if word not in self._used:
                self._used.add(word)
                return word

    def person(self) -> tuple[str, str, str]:
        """A new (given name, surname, gender "f" or "m")."""
        gender = self._rng.choice("fm")
        return self.word("female" if gender == "f" else "male"), self.word("surname"), gender
