"""The news corpus: items of one invented local paper, split at random into forget, retain and holdout."""

import random

from .corpus import Corpus, registry
from .world import assemble, create_world


@registry.register("news")
def news(scale: str, seed: int) -> Corpus:
    """All four splits come from one generator and are split at random, as in MUSE's news."""
    world = create_world(scale, seed)
    rng = random.Random(f"qru news splits {scale} {seed}")
    items = world.units["bulletin"]
    rng.shuffle(items)
    n = world.size.units
    splits = {split: items[i * n : (i + 1) * n] for i, split in enumerate(("forget", "retain1", "retain2", "holdout"))}
    return assemble("news", world, splits, rng)
