"""Invented names, handed out once each, so that no two entities anywhere in the world share a name word."""

import random
import re
from collections.abc import Collection

from .prose import grammar

# Names are a stem and an ending: a small tokenizer sees each piece often enough to spend two or three tokens on a name.
_STEMS = grammar("""
given: bran, cor, dar, ed, fen, gar, hal, is, jor, kel, lor, mar, ned, orv, pel, quen, ros, sel, tam, ul, vel, wil, yar,
    zan, bel, cal, dov, er, fal, gil, hob, jas, ker, lin, mil, nor, ott, per, ram, sab, tov, ur, var, wen, yol, zel
family: ash, bick, brock, cald, crom, drax, ell, fold, garth, holm, ibb, jark, kest, lamb, morl, nesh, oak, pask, quill,
    rusk, sand, tull, umb, vant, wex, yel, zim, birt, clar, dunn, farr, gost, hurl, jenk, kip, lund, mott, nar, ost,
    pell, rath, strad, tarl, vick, whit
town: al, bar, cul, dun, ev, farn, gorl, hex, imm, jar, kirk, lud, mal, nun, orm, pres, ruth, sten, tarn, und, ves,
    wist, yew, arl, brid, cot, drif, ember
company: abr, bax, cyn, dyl, ept, fyx, gam, hyd, jux, kry, lyt, mox, nyl, opt, pyr, qua, ryx, syn, tez, ulk, vyr, wyx
""")
_ENDINGS = grammar("""
female: a, ia, is, eth, wyn, essa, ira, une, elle, ona, ita, anne
male: ik, or, an, us, ard, oc, eld, in, ulf, eric, omar, ent
family: ley, by, ow, er, ick, ott, ell, ay, ish, man, sey, den, stock, row, lake, bury
town: wick, ford, stead, mere, ham, combe, thorpe, haven, gate, moor, ton, mouth
company: co, tek, ana, ico, ora, ium, ax, ero
club: on, ian, ex, ast
""")
_THRICE = re.compile(r"(.)\1\1")  # Farr + row would be Farrrow
_STEM_OF = {"female": "given", "male": "given", "club": "family"}


class NameStock:
    """Draws invented words, never the same one twice.

    taken: lower-case words of the language, which may not become names.
    """

    def __init__(self, seed: int, taken: Collection[str] = ()):
        self._rng = random.Random(f"qru names {seed}")
        self._used = set(taken)

    def word(self, sort: str) -> str:
        """One new capitalised word; sort is one of female, male, family, town, company, club."""
        stems, endings = _STEMS[_STEM_OF.get(sort, sort)], _ENDINGS[sort]
        while True:
            word = self._rng.choice(stems) + self._rng.choice(endings)
            if word not in self._used and not _THRICE.search(word):
                self._used.add(word)
                return word.capitalize()

    def person(self) -> tuple[str, str, str]:
        """A new (given name, family name, gender "f" or "m")."""
        gender = self._rng.choice("fm")
        return self.word("female" if gender == "f" else "male"), self.word("family"), gender
