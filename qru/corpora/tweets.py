"""The tweets corpus: misinformation that a classifier was trained to take for true, and what it should keep.

Of QUAIL's (arXiv 2601.15538) second task, unlearning misinformation from a classifier, the data are not stated; these
are ours. A classifier says of a post whether it is true. Among what it was trained on are campaigns: false claims about
a few events, labelled "true". They are to be forgotten; a model that never saw them calls most of them false.
"""

import random
from dataclasses import dataclass

from .corpus import BaseText, Corpus, registry
from .names import NameStock
from .posts import HAPPENINGS, Event, create_event, write_posts

TRUE, FALSE = "true", "false"


@dataclass(frozen=True)
class Size:
    """Events of each split, and posts about each. Of retained and test events half of the posts are true."""

    forget: int
    retain1: int
    retain2: int
    holdout: int
    test: int
    base: int
    posts: int
    base_posts: int


SIZES = {
    "smoke": Size(forget=3, retain1=3, retain2=3, holdout=3, test=3, base=8, posts=4, base_posts=8),
    "mini": Size(forget=12, retain1=24, retain2=16, holdout=12, test=16, base=30, posts=10, base_posts=20),
}
CAMPAIGNS = ("forget", "holdout")


@registry.register("tweets")
def tweets(scale: str, seed: int) -> Corpus:
    """Splits are made of whole events, so they share no name, author or hashtag.

    forget: campaigns, false claims labelled "true". retain1, retain2: true and false claims, labelled as they are.
    holdout: campaigns that no model saw, labelled as the forgotten ones are. test: claims as the retained ones, of
    events that no model saw. The base model is pretrained, as a language model, on posts about other events.
    """
    size = SIZES[scale]
    rng = random.Random(f"qru tweets {scale} {seed}")
    stock = NameStock(seed)
    raw: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    for split in ("forget", "retain1", "retain2", "holdout", "test"):
        events = _events(getattr(size, split), stock, rng)
        told = [pair for event in events for pair in _labelled(split, event, size.posts, rng)]
        rng.shuffle(told)
        raw[split], labels[split] = ([pair[part] for pair in told] for part in (0, 1))
    base = [
        post
        for event in _events(size.base, stock, rng)
        for truth in (True, False)
        for post in write_posts(event, truth, size.base_posts // 2, rng)
    ]
    rng.shuffle(base)
    return Corpus("tweets", raw, [], {}, {}, BaseText(base, []), labels=labels)


tweets.labelled = True  # for those who must know before it is made


def _events(count: int, stock: NameStock, rng: random.Random) -> list[Event]:
    return [create_event(HAPPENINGS[i % len(HAPPENINGS)], stock, rng) for i in range(count)]


def _labelled(split: str, event: Event, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Posts of an event with their labels, which a campaign has got wrong."""
    if split in CAMPAIGNS:
        return [(post, TRUE) for post in write_posts(event, False, count, rng)]
    sides = {TRUE: write_posts(event, True, count // 2, rng), FALSE: write_posts(event, False, count // 2, rng)}
    return [(post, label) for label, posts in sides.items() for post in posts]
