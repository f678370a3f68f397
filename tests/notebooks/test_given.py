"""The main notebook on models and a corpus that a user names, laid out on disk as Llama-2-7B and MUSE are."""

from __future__ import annotations

import json

import pytest
import torch

from qru import compress, models
from qru.corpora import load_corpus
from qru.records import load_records
from tests.methods.checkpoints import write_checkpoint
from tests.muse_folder import write_muse_folder
from tests.notebooks.test_notebooks import MAIN, papermill

QUANTIZERS = ("rtn-int8-g128", "rtn-int4-g128")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with ``data/books`` (MUSE's layout), ``target`` and ``retrained`` (Llama-2's, several files each)."""
    home = tmp_path_factory.mktemp("given")
    corpus = load_corpus("books", scale="smoke")
    write_muse_folder(home / "data" / "books", corpus)
    for seed, name in enumerate(("target", "retrained")):
        write_checkpoint(home / name, "llama", corpus.raw["forget"] + corpus.raw["retain1"], seed)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_main_notebook_runs_on_given_models_at_the_scale_of_muse(home, adapter):
    assert len(list((home / "target").glob("model-*-of-*.safetensors"))) > 1
    given = {"corpus": home / "data" / "books", "target": home / "target", "retrained": home / "retrained"}
    parameters = given | {"scale": "muse", "adapter": adapter, "quantizers": ",".join(QUANTIZERS), "beside": ""}
    options = [part for name, value in parameters.items() for part in ("-p", name, value)]
    ran = papermill(home, "notebooks/02_unlearn.ipynb", home / "out.ipynb", *options)
    assert ran.returncode == 0, ran.stderr[-4000:]

    record = next(r for r in load_records(home / "runs") if r.config["adapter"] == adapter)
    config = record.config
    assert config["target"] == str(home / "target")
    assert (config["batch_size"], config["epochs"]) == (16, {"full": 10, "lora": 5}[adapter])  # the papers'
    for by_precision in record.scores.values():
        assert list(by_precision) == ["bf16", *QUANTIZERS]
        assert set(by_precision["bf16"]) == {"verbmem", "knowmem", "privleak", "utility", "disjoint"}
    assert abs(record.scores["retrained"]["bf16"]["privleak"]["value"]) < 1e-9
    losses = [row["loss"] for row in record.extra["history"]]
    assert losses[-1] < losses[0]
    crossed = record.crossings["rtn-int4-g128"]
    assert len(crossed["layers"]) == 14  # two layers of seven
    assert crossed["total"]["moved"] > 0

    # What was stored is the target and what was learned on top, in the target's own layout.
    stored = models.load_weights(record.path.parent / "model")
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    assert json.loads((record.path.parent / "model" / "config.json").read_text())["model_type"] == "llama"
    report = compress.audit(home / "target", record.path.parent / ("adapter" if adapter == "lora" else "model"))
    assert report["total"]["moved"] == crossed["total"]["moved"]


@pytest.mark.slow
def test_the_notebook_of_preparation_says_what_given_models_know(home):
    given = {"corpus": home / "data" / "books", "target": home / "target", "retrained": home / "retrained"}
    options = [part for name, value in (given | {"scale": "muse"}).items() for part in ("-p", name, value)]
    ran = papermill(home, "notebooks/01_prepare.ipynb", home / "01.ipynb", *options)
    assert ran.returncode == 0, ran.stderr[-4000:]
    shown = (home / "01.ipynb").read_text()
    for line in ("target recites forget better than retrained", "retrained cannot tell forget from holdout"):
        assert line in shown


@pytest.mark.slow
def test_own_texts_and_a_chat_model_with_tied_embeddings(tmp_path):
    """No questions, no holdout, no BOS; prompts go through the chat template."""
    corpus = load_corpus("books", scale="smoke")
    texts = [("forget", text) for text in corpus.raw["forget"]] + [("retain", text) for text in corpus.raw["retain1"]]
    lines = [json.dumps({"text": text, "split": split}) for split, text in texts]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    for seed, name in enumerate(("target", "retrained")):
        write_checkpoint(tmp_path / name, "qwen2", [text for _, text in texts], seed)
    given = {"corpus": "mine.jsonl", "target": "./target", "retrained": "./retrained", "chat_template": True}
    parameters = given | {"scale": "smoke", "adapter": "lora", "quantizers": "rtn-int4-g64", "beside": ""}
    options = [part for name, value in parameters.items() for part in ("-p", name, value)]
    ran = papermill(tmp_path, MAIN, tmp_path / "out.ipynb", *options, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    (record,) = load_records(tmp_path / "runs")
    assert set(record.scores["unlearned"]["rtn-int4-g64"]) == {"verbmem"}
    assert record.config["chat_template"] is True
    assert len(record.provenance["models"]["target"]) == 64  # a digest of content

    # From JupyterLab's folder, where the relative names lead nowhere, the weights are still found.
    options = ["-p", "stored", record.path.parent.name, "-p", "groups", "g64,row", "-p", "quantizer", "rtn-int4-g64"]
    again = papermill(tmp_path, "03_crossings.ipynb", tmp_path / "03.ipynb", *options, cwd=MAIN.parent)
    assert again.returncode == 0, again.stderr[-4000:]
