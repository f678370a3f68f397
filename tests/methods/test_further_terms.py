"""SimNPO, RMU, DPO and task vectors in training: each does what it says, and a version without effect would fail."""

import math
from dataclasses import replace

import pytest
import torch

from qru import compress, inputs, loop, models, pipeline
from qru.config import RunConfig
from qru.corpora import load_corpus
from qru.defaults import resolve
from qru.objectives import forget_terms, methods
from qru.objectives.dpo import PROMPT, endings, opening, preferred_rows
from qru.objectives.idkdpo import REFUSALS, refusals
from qru.objectives.rmu import control, steered_layer
from qru.objectives.taskvector import LADDER, negated
from qru.unlearn import said, unlearn

ARMS = [("full", "bf16"), ("full", "fp32"), ("delta", "bf16"), ("lora", "fp32"), ("lora", "bf16")]
FURTHER = ("simnpo", "rmu", "dpo", "idkdpo", "taskvector")
NAMES = [name for name in methods() if name.partition("_")[0] in FURTHER]


def config(**changes):
    values = {
        "scale": "smoke", "epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "lora_rank": 4, "lora_alpha": 8.0,
    } | changes  # fmt: skip
    return resolve(RunConfig(**values))


def unlearned(made, corpus, tokenizer, settings, **options):
    frozen = lambda: models.load(made.target)[0]  # noqa: E731
    return unlearn(frozen(), tokenizer, corpus, settings, frozen=frozen, **options)


def merged(made, trained):
    return compress.merged_model(models.load(made.target)[0], trained)


@pytest.fixture(scope="module")
def few(corpus):
    """Five short documents a side: two and a half batches."""
    short = {split: [text[:240] for text in corpus.raw[split][:5]] for split in ("forget", "retain1")}
    return replace(corpus, raw=corpus.raw | short)


@pytest.fixture(scope="module")
def forget_rows(few, tokenizer):
    return models.rows(few.raw["forget"], tokenizer, 512)


# --- RMU ----------------------------------------------------------------------------------------------------------


def test_the_control_vector_is_drawn_once_a_seed_and_as_long_as_said():
    vector = control(64, 6.5, seed=3)
    assert vector.norm().item() == pytest.approx(6.5, rel=1e-6)
    assert (vector >= 0).all()  # uniform in [0, 1)
    assert vector.std() > 0.1 * vector.mean()
    assert torch.equal(vector, control(64, 6.5, seed=3))
    assert not torch.equal(vector, control(64, 6.5, seed=4))


def test_the_layer_is_as_deep_as_in_the_paper():
    assert [steered_layer(n) for n in (32, 4, 8, 2)] == [7, 1, 2, 0]
    assert steered_layer(4, chosen=3) == 3
    with pytest.raises(ValueError, match="hidden_layer is 4, but the model has 4 layers: give 0 to 3"):
        steered_layer(4, chosen=4)


def test_hidden_states_are_those_after_the_layer_of_the_tokens_that_count(made, tokenizer):
    model = models.load(made.target)[0]
    ids, labels = loop.pad(models.rows(["A short text."], tokenizer, 512), tokenizer.pad_token_id)
    seen = []
    layer = model.model.layers[0].register_forward_hook(lambda module, given, out: seen.append(out))
    answer = said(model, ids, labels, layer=0)
    layer.remove()
    passed_on = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert torch.equal(answer.hidden, passed_on[:, 1:].float())
    assert answer.hidden.shape[:2] == answer.mask.shape


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_rmu_moves_what_the_layer_passes_on_to_the_control_vector(adapter, made, few, tokenizer, forget_rows):
    settings = config(method="rmu", adapter=adapter, weights="fp32", epochs=4, learning_rate=5e-3, steering=20.0)
    trained, _ = unlearned(made, few, tokenizer, settings)
    ids, labels = loop.pad(forget_rows[:4], tokenizer.pad_token_id)
    point = control(models.SIZES["smoke"].hidden, 20.0, settings.seed)

    def distance(model):
        with torch.no_grad():
            answer = said(model.eval(), ids, labels, layer=0)
        return (answer.hidden - point).norm(dim=-1)[answer.mask].mean().item()

    before, after = distance(models.load(made.target)[0]), distance(trained)
    assert after < before - 0.5


def test_the_retain_term_of_rmu_holds_the_hidden_states(made, few, tokenizer):
    retained = models.rows(few.raw["retain1"][:4], tokenizer, 512)
    ids, labels = loop.pad(retained, tokenizer.pad_token_id)
    with torch.no_grad():
        before = said(models.load(made.target)[0], ids, labels, layer=0)
    moved = []
    for method, weight in (("rmu", {}), ("rmu_actr", {"retain_weight": 1000.0})):
        trained, history = unlearned(made, few, tokenizer, config(method=method, weights="fp32", epochs=8, **weight))
        with torch.no_grad():
            after = said(trained.eval(), ids, labels, layer=0)
        moved.append((after.hidden - before.hidden).norm(dim=-1)[before.mask].mean().item())
    assert moved[1] < 0.5 * moved[0]
    assert history[0]["retain"] == pytest.approx(0, abs=1e-3)  # policy and reference agree before the first step


# --- DPO ----------------------------------------------------------------------------------------------------------


def test_a_preferred_row_is_the_opening_of_the_document_and_then_the_answer():
    forget = [torch.arange(100), torch.arange(1000, 1010), torch.arange(2000, 2100)]
    answers = [torch.tensor([-1, -2, -3]), torch.tensor([-4, -5])]
    assert [opening(row) for row in forget] == [PROMPT, 5, PROMPT]
    found = preferred_rows(forget, answers, context=512, seed=0)
    ends = [row[opening(of) :].tolist() for row, of in zip(found, forget, strict=True)]
    for row, of in zip(found, forget, strict=True):
        assert torch.equal(row[: opening(of)], of[: opening(of)])
    assert sorted(ends[:2]) == [[-4, -5], [-1, -2, -3]]  # each once
    assert ends[2] == ends[0]  # then from the first again
    assert len(preferred_rows(forget, answers, context=33, seed=0)[0]) == 33
    assert torch.equal(endings(forget)[1], torch.arange(1005, 1010))


def test_refusals_end_with_the_end_of_text(tokenizer):
    found = refusals(tokenizer)
    assert len(found) == len(REFUSALS)
    assert tokenizer.decode(found[1], skip_special_tokens=True) == "\nI don't know."
    assert all(row[-1] == tokenizer.eos_token_id for row in found)


@pytest.mark.parametrize("method", ["idkdpo", "dpo"])
def test_what_is_preferred_becomes_likelier_than_the_text(method, made, few, tokenizer, forget_rows):
    settings = config(method=method, weights="fp32")
    trained, history = unlearned(made, few, tokenizer, settings)
    assert history[0]["forget"] == pytest.approx(20 * math.log(2), rel=0.05)  # (2/β) log 2 before the first step
    retain_rows = models.rows(few.raw["retain1"], tokenizer, 512)
    answers = refusals(tokenizer) if method == "idkdpo" else endings(retain_rows)
    pairs = list(zip(forget_rows, preferred_rows(forget_rows, answers, 512, settings.seed), strict=True))

    def margins(model):
        found = []
        for pair in pairs:
            sums = []
            for row in pair:
                with torch.no_grad():
                    log_probs = said(model.eval(), row[None], row[None]).log_probs[0]
                sums.append(log_probs[opening(pair[0]) - 1 :].sum().item())
            found.append(sums[1] - sums[0])
        return torch.tensor(found)

    before, after = margins(models.load(made.target)[0]), margins(trained)
    assert ((after - before) > 1).all()


# --- task vectors -------------------------------------------------------------------------------------------------


def test_the_task_vector_is_subtracted_by_hand():
    start, tuned = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.5, -2.0, 0.25])
    assert negated(start, tuned, 2.0).tolist() == [0.0, -2.0, 1.0]
    assert torch.equal(negated(start, tuned, 0.0), start)


@pytest.mark.parametrize(("adapter", "weights"), ARMS)
def test_a_scaling_of_zero_gives_the_target_back(adapter, weights, made, few, tokenizer):
    settings = config(method="taskvector", adapter=adapter, weights=weights, task_scaling=0.0, epochs=1)
    trained, history = unlearned(made, few, tokenizer, settings)
    assert history[-1]["task_scaling"] == 0
    target = models.load(made.target)[0].state_dict()
    for name, value in merged(made, trained).state_dict().items():
        assert torch.equal(value, target[name]), name


@pytest.mark.parametrize(("adapter", "weights"), ARMS)
def test_what_was_learned_is_taken_away(adapter, weights, made, few, tokenizer, monkeypatch):
    """Against θ_0 − λ (θ_ft − θ_0) in float64, of the weights as training left them, rounded to bf16 once."""
    tuned = {}

    def fit(model, *arguments, fit=loop.fit, **options):
        history = fit(model, *arguments, **options)
        tuned.update({name: value.double() for name, value in model.state_dict().items()})
        return history

    monkeypatch.setattr("qru.unlearn.loop.fit", fit)
    settings = config(method="taskvector", adapter=adapter, weights=weights, task_scaling=2.0)
    trained, history = unlearned(made, few, tokenizer, settings)
    first, second = ([row["forget"] for row in history[epoch : epoch + 3]] for epoch in (0, 3))
    assert sum(second) < sum(first)  # it learned the documents before it was turned round
    start = models.load(made.target)[0].state_dict()
    moved = 0
    for name, value in trained.state_dict().items():
        if "lora_B" in name:
            expected = -2 * tuned[name]
        elif adapter == "lora":
            expected = tuned[name]
        else:
            expected = (3 * start[name].double() - 2 * tuned[name]).bfloat16().double()
        # Within one rounding: in fp32 a tie may fall to the other side.
        torch.testing.assert_close(value.double(), expected, rtol=2**-7, atol=1e-7)
        assert (value.double() == expected).float().mean() > 0.999
        moved += (value.double() != tuned[name]).sum().item()
    assert moved > 0


def test_with_a_goal_the_first_scaling_that_meets_it_is_taken(made, few, tokenizer):
    norms = []

    def forget_score(model):
        norms.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return {"verbmem": 50.0 - 10 * len(norms), "knowmem": 99.0}

    settings = config(method="taskvector", weights="fp32", epochs=1, forget_goal=25.0, goal_metrics="verbmem")
    trained, history = unlearned(made, few, tokenizer, settings, forget_score=forget_score)
    assert len(norms) == 3  # 40, 30, 20; and not once while it trained
    assert history[-1]["task_scaling"] == LADDER[2]
    assert (history[-1]["verbmem"], history[-1]["stopped"]) == (20.0, 1.0)
    start = torch.cat([p.flatten() for p in models.load(made.target)[0].parameters()])
    assert torch.equal(torch.cat([p.detach().flatten() for p in trained.parameters()]), norms[2])
    lengths = [(there - start).norm().item() for there in norms]
    for a, b, scaling, next_scaling in zip(lengths, lengths[1:], LADDER, LADDER[1:], strict=False):
        assert b / a == pytest.approx(next_scaling / scaling, rel=0.1)  # bf16 rounds the shortest most


def test_a_goal_that_no_scaling_meets_is_missed_and_not_hidden(made, few, tokenizer):
    settings = config(method="taskvector", adapter="lora", epochs=1, forget_goal=1.0)
    score = {"verbmem": 50.0, "knowmem": 50.0}
    _, history = unlearned(made, few, tokenizer, settings, forget_score=lambda model: score)
    assert history[-1]["task_scaling"] == LADDER[-1]
    assert "stopped" not in history[-1]


# --- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["simnpo_gdr", "rmu_actr", "idkdpo_klr", "dpo_gdr", "taskvector_actr"])
@pytest.mark.parametrize("change", ["at once", "padding"])
def test_losses_depend_neither_on_portions_nor_on_padding(method, change, made, few, tokenizer, monkeypatch):
    monkeypatch.setattr(loop, "compute_precision", lambda device: "fp32")
    settings = config(method=method, weights="fp32", learning_rate=1e-4, batch_size=4, epochs=1)
    _, whole = unlearned(made, few, tokenizer, settings)
    if change == "padding":
        monkeypatch.setattr(loop, "ROUNDED_TO", 128)
    _, other = unlearned(made, few, tokenizer, settings, at_once=2 if change == "at once" else None)
    for name in ("loss", "forget", "retain"):
        # fp32 sums in another order
        assert [row[name] for row in other] == pytest.approx([row[name] for row in whole], rel=1e-3, abs=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "adapter", "weights"),
    [("taskvector", "full", "bf16"), ("taskvector", "lora", "fp32"), ("rmu_actr", "full", "fp32"),
     ("idkdpo_gdr", "lora", "fp32"), ("dpo", "full", "bf16")],
)  # fmt: skip
def test_a_killed_run_resumes_to_the_same_bits(method, adapter, weights, made, few, tokenizer, tmp_path, monkeypatch):
    settings = config(method=method, adapter=adapter, weights=weights)
    whole, history = unlearned(made, few, tokenizer, settings)

    def save_then_die(path, state, save=loop._save):
        save(path, state)
        if len(state["history"]) == 4:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("qru.unlearn.loop.fit", lambda *a, fit=loop.fit, **k: fit(*a, **k, checkpoint_seconds=0))
        patched.setattr(loop, "_save", save_then_die)
        with pytest.raises(Killed):
            unlearned(made, few, tokenizer, settings, checkpoint=tmp_path / "training.pt")
    resumed, again = unlearned(made, few, tokenizer, settings, checkpoint=tmp_path / "training.pt")
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_task_vector_killed_at_its_end_is_turned_round_once(made, few, tokenizer, tmp_path, monkeypatch):
    """The checkpoint of the last step is of the weights that were trained, whatever was done to them since."""
    settings = config(method="taskvector", epochs=1)
    whole, _ = unlearned(made, few, tokenizer, settings)
    with monkeypatch.context() as patched:
        patched.setattr("qru.unlearn.loop.fit", lambda *a, fit=loop.fit, **k: fit(*a, **k, checkpoint_seconds=0))
        unlearned(made, few, tokenizer, settings, checkpoint=tmp_path / "training.pt")
    again, history = unlearned(made, few, tokenizer, settings, checkpoint=tmp_path / "training.pt")
    assert len(history) == 3  # of which none was trained again
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize(("adapter", "weights"), [("full", "bf16"), ("lora", "fp32")])
def test_every_method_trains_in_either_kind_of_arm(method, adapter, weights, made, few, tokenizer):
    trained, history = unlearned(
        made, few, tokenizer, config(method=method, adapter=adapter, weights=weights, epochs=1)
    )
    assert all(math.isfinite(row["loss"]) for row in history)
    assert ("retain" in history[0]) == ("_" in method)
    target = models.load(made.target)[0].state_dict()
    assert any((value != target[name]).any() for name, value in merged(made, trained).state_dict().items())


AT_LEAST = ("simnpo_gdr", "rmu_actr", "dpo_klr", "idkdpo_gdr", "taskvector_klr")  # the others take long together


@pytest.mark.parametrize(
    "method", [name if name in AT_LEAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_method_runs_by_name(method, made):
    record = pipeline.run(
        method=method, scale="smoke", batch_size=12, quantizers=("rtn-int3-g64",), metrics=("verbmem",)
    )
    assert set(record.scores["unlearned"]) == {"bf16", "rtn-int3-g64"}
    assert record.crossings["rtn-int3-g64"]["total"]["moved"] > 0
    term = forget_terms[method.partition("_")[0]]
    assert bool(record.extra["prediction"]) is not term.negated
    assert record.config["beta"] == term.beta
    assert ("retain" in record.extra["history"][0]) == ("_" in method)


@pytest.mark.parametrize("method", ["rmu", "ga_actr", "dpo", "idkdpo_gdr"])
def test_terms_of_tokens_are_refused_for_classifiers(method):
    with pytest.raises(ValueError, match=r"reads every token of a document, and a classifier says one thing"):
        inputs.find([RunConfig(method=method, corpus="tweets", scale="smoke")])


def test_a_layer_that_is_not_there_stops_at_the_door():
    with pytest.raises(ValueError, match="hidden_layer is 2, but the model has 2 layers: give 0 to 1"):
        inputs.find([RunConfig(method="rmu", scale="smoke", hidden_layer=2)])


def test_without_texts_to_retain_nothing_of_them_can_be_preferred(monkeypatch):
    known = load_corpus("books", scale="smoke")
    bare = replace(known, raw=known.raw | {"retain1": []})
    monkeypatch.setattr(inputs, "corpus_of", lambda name, scale: bare)
    with pytest.raises(ValueError, match="or take idkdpo, which prefers refusals"):
        inputs.find([RunConfig(method="dpo", scale="smoke")])
    inputs.find([RunConfig(method="idkdpo", scale="smoke")])
