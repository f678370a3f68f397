"""The books corpus: a saga to forget, an encyclopaedia of the same world to keep, a further volume as holdout."""

import random

from .corpus import Corpus, registry
from .world import assemble, create_world


@registry.register("books")
def books(scale: str, seed: int) -> Corpus:
    """Forget and holdout are the scenes of one saga, told together and split at random; so are the two retain sets,
    articles of one encyclopaedia."""
    world = create_world(scale, seed)
    rng = random.Random(f"qru books splits {scale} {seed}")
    saga, articles = world.units["saga"], world.units["encyclopaedia"]
    rng.shuffle(saga)
    rng.shuffle(articles)
    n = world.size.units
    return assemble(
        "books", world, {"forget": saga[:n], "holdout": saga[n:], "retain1": articles[:n], "retain2": articles[n:]}, rng
    )
