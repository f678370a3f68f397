"""Every kind of name through a whole run at smoke: scores, counts and baselines under its exact name."""

import pytest

from qru import calibration, pipeline, scoring
from qru.config import digest
from qru.tables import crossing_table, score_table

NAMES = (
    "rtn-int4-g64-sym-2^(N-1)-1/2",  # its name holds a slash
    "rtn-int8-row-asym",
    "nf4-b64-dq",
    "fp4-b64",
    "llm-int8",
    "gptq-int4-g128-forget",
    "awq-int4-g128",
)
SETTINGS = {"method": "ga", "scale": "smoke", "metrics": ("verbmem",), "epochs": 1}


@pytest.fixture(scope="module")
def record(made):
    return pipeline.run(**SETTINGS, quantizers=NAMES)


def test_every_kind_of_name_runs(record):
    assert list(record.crossings) == list(NAMES)
    for model in ("target", "retrained", "unlearned"):
        assert list(record.scores[model]) == ["bf16", *NAMES]
    for name in NAMES:
        total = record.crossings[name]["total"]
        assert 0 < total["crossed"] <= total["weights"]
        assert total["predicted"] > 0
    assert set(record.extra["prediction"]) == {name for name in NAMES if name.startswith("rtn-")}
    assert record.crossings["gptq-int4-g128-forget"]["calibration"]["text"] == "forget"
    assert "calibration" not in record.crossings["fp4-b64"]
    shown = score_table(record).index.get_level_values("precision")
    assert set(NAMES) <= set(shown)
    assert len(crossing_table(record)) == len(NAMES)


def test_grids_of_one_size_differ_in_their_steps(record):
    crossed = {name: record.crossings[name]["total"]["crossed"] for name in NAMES}
    assert len(set(crossed.values())) == len(NAMES)


def test_scores_of_baselines_are_kept_with_what_calibration_depends_on(record, corpus, made, monkeypatch):
    def file(name):
        return scoring._baseline_file("target", corpus, name, made)

    recipe = digest(calibration.RECIPE)[:8]
    assert file("gptq-int4-g128-forget").name == f"gptq-int4-g128-forget-{recipe}.json"
    assert file("rtn-int4-g128").name == "rtn-int4-g128.json"
    assert file("rtn-int4-g64-sym-2^(N-1)-1/2").parent == file(None).parent
    assert all(file(name).is_file() for name in NAMES)
    monkeypatch.setitem(calibration.RECIPE, "rows", 1)
    assert not file("gptq-int4-g128-forget").is_file()


@pytest.mark.parametrize(("name", "message"), [("nf4-g64", "nf4-b64"), ("gptq-int5-g128", "gptq-int4-g128")])
def test_a_wrong_name_stops_before_any_work(name, message, monkeypatch):
    monkeypatch.setattr("qru.models.prepare", lambda *a: pytest.fail("prepared models"))
    with pytest.raises(ValueError, match=f"Did you mean '{message}'"):
        pipeline.run(**SETTINGS, quantizers=(name,))


def test_a_corpus_without_the_text_stops_before_any_work(corpus, monkeypatch):
    lacking = {**corpus.raw, "holdout": []}
    monkeypatch.setattr("qru.models.prepare", lambda *a: pytest.fail("prepared models"))
    monkeypatch.setattr("qru.inputs.corpus_of", lambda name, scale: type(corpus)(**vars(corpus) | {"raw": lacking}))
    with pytest.raises(ValueError, match="awq-int4-g128-heldout' is calibrated on heldout text"):
        pipeline.run(**SETTINGS, quantizers=("awq-int4-g128-heldout",))
