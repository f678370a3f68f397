"""Every method and arm does something, does it in the right direction, and resumes to the same bits."""

import copy

import pytest
import torch

from qru import compress, loop, models
from qru.config import RunConfig
from qru.defaults import resolve
from qru.metrics import token_log_probs
from qru.objectives import forget_terms
from qru.optimizers import StoredBf16AdamW
from qru.unlearn import Reference, said, unlearn

PAPERS = ("ga", "npo", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr")
ARMS = [("full", "bf16"), ("full", "fp32"), ("lora", "fp32"), ("lora", "bf16")]


def config(**changes):
    values = {"scale": "smoke", "epochs": 3, "learning_rate": 1e-3, "lora_rank": 4, "lora_alpha": 8.0} | changes
    return resolve(RunConfig(**values))


def unlearned(made, corpus, tokenizer, settings, **options):
    target, _ = models.load(made.target)
    frozen = lambda: models.load(made.target)[0]  # noqa: E731
    return unlearn(target, tokenizer, corpus, settings, frozen=frozen, **options)


def likelihood(model, tokenizer, texts):
    return sum(row.sum().item() for row in token_log_probs(model.eval(), tokenizer, texts))


@pytest.fixture(scope="module")
def before(made, corpus, tokenizer):
    target, _ = models.load(made.target)
    return likelihood(target, tokenizer, corpus.raw["forget"])


@pytest.mark.parametrize(("adapter", "weights"), ARMS)
@pytest.mark.parametrize("method", [*PAPERS, *(name for name in forget_terms.names() if name not in PAPERS)])
def test_every_method_lowers_the_likelihood_of_the_forget_set(
    method, adapter, weights, made, corpus, tokenizer, before
):
    """The papers' six, and every further forget term alone; with a retain term it may, and should, hold back."""
    # SimNPO at its own β leaves a text alone that is as unlikely as all texts are to the target of this size.
    settings = config(method=method, adapter=adapter, weights=weights, beta=0.1)
    trained, history = unlearned(made, corpus, tokenizer, settings)
    target, _ = models.load(made.target)
    merged = compress.merged_model(target, trained)
    assert likelihood(merged, tokenizer, corpus.raw["forget"]) < before - 1
    assert len(history) == 3 * -(-len(corpus.raw["forget"]) // settings.batch_size)
    moved = sum(
        (a != b).any().item() for a, b in zip(merged.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert moved > 0


@pytest.mark.parametrize("retain", ["gdr", "klr"])
def test_the_retain_term_is_felt(retain, made, corpus, tokenizer):
    """With a heavy retain term the retain documents stay likelier than without."""
    retained = []
    for method, weight in (("ga", 0.0), (f"ga_{retain}", 20.0)):
        settings = config(method=method, retain_weight=weight, weights="fp32")
        trained, _ = unlearned(made, corpus, tokenizer, settings)
        retained.append(likelihood(trained, tokenizer, corpus.raw["retain1"]))
    assert retained[1] > retained[0] + 1


def test_only_adapters_train_and_the_target_stays_as_it_was(made, corpus, tokenizer):
    trained, _ = unlearned(made, corpus, tokenizer, config(adapter="lora", lora_targets="mlp"))
    target, _ = models.load(made.target)
    kept = dict(trained.get_base_model().named_modules())
    for name, layer in models.linear_layers(target).items():
        assert torch.equal(kept[name].weight, layer.weight)
        assert hasattr(kept[name], "lora_A") == ("mlp" in name)
    for name, parameter in trained.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)


def test_lora_starts_at_the_reference(made, corpus, tokenizer):
    """B is zero at the start, so policy and reference agree; with the adapter disabled they still do at the end."""
    target, _ = models.load(made.target)
    alone = copy.deepcopy(target)
    settings = config(adapter="lora", method="npo_klr")
    ids, labels = loop.pad(models.rows(corpus.raw["forget"][:2], tokenizer, 512), tokenizer.pad_token_id)
    expected = said(alone, ids, labels)
    trained, history = unlearned(made, corpus, tokenizer, settings)
    assert history[0]["retain"] == pytest.approx(0, abs=1e-3)
    again = Reference(trained)(ids, labels)
    assert torch.equal(again.log_probs[expected.mask], expected.log_probs[expected.mask])


@pytest.mark.parametrize(("adapter", "weights"), ARMS)
def test_a_killed_run_resumes_to_the_same_bits(adapter, weights, made, corpus, tokenizer, tmp_path, monkeypatch):
    settings = config(method="npo_klr", adapter=adapter, weights=weights)
    whole, history = unlearned(made, corpus, tokenizer, settings)

    class Killed(Exception):
        pass

    def save_then_die(path, state, save=loop._save):
        save(path, state)
        if len(state["history"]) == 4:
            raise Killed

    original = loop.fit
    monkeypatch.setattr("qru.unlearn.loop.fit", lambda *a, **k: original(*a, **k, checkpoint_seconds=0))
    monkeypatch.setattr(loop, "_save", save_then_die)
    checkpoint = tmp_path / "training.pt"
    with pytest.raises(Killed):
        unlearned(made, corpus, tokenizer, settings, checkpoint=checkpoint)
    monkeypatch.undo()
    resumed, again = unlearned(made, corpus, tokenizer, settings, checkpoint=checkpoint)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_damaged_checkpoint_starts_again_and_says_so(made, corpus, tokenizer, tmp_path, caplog):
    checkpoint = tmp_path / "training.pt"
    checkpoint.write_bytes(b"half a pickle")
    _, history = unlearned(made, corpus, tokenizer, config(method="ga", epochs=1), checkpoint=checkpoint)
    assert history[0]["step"] == 0
    assert "cannot be read" in caplog.text


def test_the_goal_stops_training(made, corpus, tokenizer):
    seen = []

    def forget_score(model):
        seen.append(1)
        return {"verbmem": 50.0 - 10 * len(seen), "knowmem": 5.0}

    _, history = unlearned(
        made, corpus, tokenizer, config(method="ga", epochs=50, forget_goal=25.0), forget_score=forget_score
    )
    assert history[-1]["stopped"]
    assert history[-1]["verbmem"] == 20.0
    assert len(seen) == 3


def test_a_run_shorter_than_the_time_between_looks_is_looked_at_when_it_ends(made, corpus, tokenizer):
    short = config(method="ga", epochs=1, forget_goal=25.0, check_steps=1000)
    score = {"verbmem": 20.0, "knowmem": 5.0}
    _, history = unlearned(made, corpus, tokenizer, short, forget_score=lambda model: score)
    assert history[-1]["stopped"]
    assert all("verbmem" not in row for row in history[:-1])


@pytest.mark.parametrize("mirrored", [True, False], ids=["fp32 tensors of bf16 values", "bf16 tensors"])
def test_the_bf16_arm_steps_as_adamw_does_on_bf16_tensors(mirrored):
    """On a CPU the arm's weights are mirrored in fp32, on a GPU they are bf16: plain AdamW on bf16, to the bit."""
    torch.manual_seed(0)
    start = [torch.randn(7, 5).bfloat16(), torch.randn(11).bfloat16()]
    plain = [torch.nn.Parameter(value.clone()) for value in start]
    ours = [torch.nn.Parameter(value.float() if mirrored else value.clone()) for value in start]
    known = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.0, foreach=False)
    optimizer = StoredBf16AdamW(ours, lr=1e-3)
    for _ in range(20):
        for a, b in zip(plain, ours, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.to(b.dtype)
        known.step()
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in (*ours, *optimizer.stored))
    for a, b, before in zip(plain, ours, start, strict=True):
        assert torch.equal(a, b.detach().bfloat16())
        assert torch.equal(b.detach(), b.detach().bfloat16().to(b.dtype))
        assert not torch.equal(a, before)
    if not mirrored:
        assert [s.data_ptr() for s in optimizer.stored] == [p.data_ptr() for p in ours]


@pytest.mark.parametrize(("adapter", "weights"), [("full", "fp32"), ("full", "bf16"), ("lora", "fp32")])
def test_on_a_gpu_only_an_fp32_master_is_held_in_fp32(adapter, weights, made, monkeypatch):
    """Shown on the device without memory: types are all that matters here, and rotary frequencies stay exact."""
    monkeypatch.setattr(loop, "device", lambda: torch.device("meta"))
    target, _ = models.load(made.target, device="cpu")
    models.place(target, config(adapter=adapter, weights=weights))
    master = (adapter, weights) == ("full", "fp32")
    assert {p.dtype for p in target.parameters()} == {torch.float32 if master else torch.bfloat16}
    assert {b.dtype for b in target.buffers()} == {torch.float32}
    assert {t.device.type for t in (*target.parameters(), *target.buffers())} == {"meta"}


@pytest.mark.parametrize(("adapter", "weights"), [("full", "bf16"), ("lora", "fp32")])
def test_gradient_checkpointing_changes_no_bit(adapter, weights, made, corpus, tokenizer, monkeypatch):
    """Without gradients into the first layer nothing under it would train: lora_B would stay zero."""
    settings = config(method="npo_klr", adapter=adapter, weights=weights, epochs=1)
    llama = models.load(made.target)[0].model.layers[0].mlp.__class__
    passes = []
    monkeypatch.setattr(llama, "forward", lambda self, x, forward=llama.forward: passes.append(1) or forward(self, x))
    states, counts = [], []
    for recomputed in (False, True):
        passes.clear()
        trained, history = unlearned(made, corpus, tokenizer, settings, gradient_checkpointing=recomputed)
        states.append((trained.state_dict(), [row["loss"] for row in history]))
        counts.append(len(passes))
    assert counts[1] > counts[0]  # or nothing was recomputed
    assert states[0][1] == states[1][1]
    for name, value in states[0][0].items():
        assert torch.equal(states[1][0][name], value), name
        if "lora_B" in name:
            assert value.abs().max() > 0, name


@pytest.mark.parametrize("method", ["npo_klr", "ga_gdr"])
def test_what_is_computed_at_once_does_not_change_the_losses(method, made, corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")
    settings = config(method=method, weights="fp32", learning_rate=1e-4, batch_size=5, epochs=1)
    histories = [unlearned(made, corpus, tokenizer, settings, at_once=n)[1] for n in (None, 1, 2)]
    for name in ("loss", "forget", "retain"):
        whole, *others = ([row[name] for row in history] for history in histories)
        for other in others:
            assert other == pytest.approx(whole, rel=1e-3, abs=1e-5)  # fp32 sums in another order


def test_only_a_divergence_needs_a_second_copy(made, corpus, tokenizer):
    """NPO's reference is read off the model before its first step."""
    copies = []

    def frozen():
        copies.append(1)
        return models.load(made.target)[0]

    for method, adapter, needed in (("npo_gdr", "full", 0), ("npo_klr", "full", 1), ("npo_klr", "lora", 0)):
        copies.clear()
        target, _ = models.load(made.target)
        settings = config(method=method, adapter=adapter, epochs=1, batch_size=12)
        unlearn(target, tokenizer, corpus, settings, frozen=frozen)
        assert len(copies) == needed, (method, adapter)


def test_stored_bf16_weights_have_a_dead_zone():
    """A weight of 1 moves by no step under half its spacing, 2^-8; a small weight does, and an fp32 master always."""
    weights = torch.tensor([1.0, 2.0**-12])
    for step, moved in ((2.0**-10, [False, True]), (2.0**-7, [True, True])):
        parameter = torch.nn.Parameter(weights.clone())
        optimizer = StoredBf16AdamW([parameter], lr=step)
        parameter.grad = torch.ones(2)
        optimizer.step()
        assert (parameter.detach() != weights).tolist() == moved
        assert all(state.dtype == torch.bfloat16 for entry in optimizer.state.values() for state in
                   (entry["exp_avg"], entry["exp_avg_sq"]))  # fmt: skip
    master = torch.nn.Parameter(weights.clone())
    master.grad = torch.ones(2)
    torch.optim.AdamW([master], lr=2.0**-10, weight_decay=0.0).step()
    assert (master.detach() != weights).all()


def test_every_epoch_sees_every_document_once():
    for documents, batch in ((10, 4), (7, 7), (3, 8)):
        per_epoch = -(-documents // batch)
        for epoch in range(3):
            seen = [i for s in range(per_epoch) for i in loop.order(documents, batch, epoch * per_epoch + s, seed=5)]
            assert sorted(seen) == list(range(documents))


def test_padding_is_not_trained_on(made, tokenizer):
    """The loss of a padded batch is the token mean of its rows alone."""
    target, _ = models.load(made.target)
    rows = models.rows(["A short one.", "And a document that is a good deal longer than that."], tokenizer, 512)
    ids, labels = loop.pad(rows, tokenizer.pad_token_id)
    assert ids.shape[1] % 32 == 0
    answer = said(target, ids, labels)
    alone = [said(target, row[None], row[None]).log_probs[0] for row in rows]
    torch.testing.assert_close(answer.log_probs[answer.mask], torch.cat(alone), atol=1e-5, rtol=0)


def test_a_nan_stops_with_the_step(made, corpus, tokenizer):
    with pytest.raises(FloatingPointError, match="Lower learning_rate"):
        unlearned(made, corpus, tokenizer, config(method="ga", epochs=50, learning_rate=1e30, weights="fp32"))
