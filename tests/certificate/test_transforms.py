"""What is done to weights before they are used: exact zeros, one quantizer after another, an attack that teaches."""

from __future__ import annotations

import pytest
import torch

from qru import models, scoring
from qru.cells import weights_digest
from qru.ops import QuantSpec, merge_quantize
from qru.transforms import EXAMPLES, Transform, deploy, prune, relearn


@pytest.mark.parametrize("name", EXAMPLES)
def test_names_read_back(name):
    first = Transform.parse(name)
    assert Transform.parse(first.name) == first
    assert first.words


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("merge", "Did you mean 'merged'"),
        ("prune-0", "over 0 and under 100"),
        ("prune-100", "over 0 and under 100"),
        ("prune-ten", "unknown transform"),
        ("relearn-4", "Did you mean 'relearn-4x8'"),
        ("relearn-0x8", "give 1 or more"),
        ("twice-rtn-int5-row", "bits is 5"),
    ],
)
def test_other_names_are_refused(name, named):
    with pytest.raises(ValueError, match=named):
        Transform.parse(name)


def test_pruning_takes_the_smallest_and_of_equal_ones_the_first():
    weight = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-0.5, 1.0, -4.0, 0.0]])
    # by size: 0, 0.5, then 1 three times, of which the first (−1) falls at 3 of 8 (37.5 %)
    expected = torch.tensor([[3.0, 0.0, 2.0, 1.0], [0.0, 1.0, -4.0, 0.0]])
    assert torch.equal(prune(weight, 37.5), expected)
    assert torch.equal(prune(weight, 12.4), weight), "a share of less than one weight is none"
    assert weight[0, 1] == -1, "the weight itself is left alone"


def test_deploying_is_quantizing_what_the_transform_left(world):
    model, _ = models.load(world.target)
    name, layer = next(iter(models.linear_layers(model).items()))
    stored = layer.weight.bfloat16()
    spec = QuantSpec.parse("rtn-int4-g32")

    deploy(model, Transform.parse("prune-10"), "rtn-int4-g32")
    pruned = stored.clone()
    pruned.view(-1)[stored.abs().flatten().float().sort(stable=True).indices[: stored.numel() // 10]] = 0
    assert torch.equal(layer.weight, merge_quantize(stored, new_weight=pruned, spec=spec).dequantized())

    model, _ = models.load(world.target)
    layer = models.linear_layers(model)[name]
    deploy(model, Transform.parse("twice-rtn-int8-row"), "rtn-int4-g32")
    first = merge_quantize(stored, new_weight=stored, spec=QuantSpec.parse("rtn-int8-row")).dequantized().bfloat16()
    assert torch.equal(layer.weight, merge_quantize(first, new_weight=first, spec=spec).dequantized())

    model, _ = models.load(world.target)
    before = weights_digest(model)
    deploy(model, Transform.parse("merged"), None)
    assert weights_digest(model) == before
    models.linear_layers(model)[name].weight.data.view(-1)[0] += 2**-20
    assert weights_digest(model) != before


def test_relearning_teaches_its_passages_and_hardly_the_others(world):
    model, tokenizer = models.load(world.retrained)
    texts = [one["prompt"] + one["gt"] for one in world.corpus.verbmem[:4]]
    relearn(model, tokenizer, texts, 200, "smoke")
    ask = {"verbmem": [0, 1, 2, 3]}, {"verbmem": list(range(4, 24))}
    taught, others = (
        scoring.scored(model, tokenizer, world.corpus, False, metrics=["verbmem"], examples=one)["verbmem"].value
        for one in ask
    )
    assert taught > 60
    assert others < 35
    assert not any(parameter.requires_grad for parameter in model.parameters())
