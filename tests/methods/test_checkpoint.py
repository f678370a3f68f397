"""Models that a user names: what is refused, in which words, and before anything is loaded."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors

from qru import checkpoint, inputs, load_models, models, pipeline, scoring
from qru.config import RunConfig
from qru.corpora import load_corpus
from tests.methods.checkpoints import llama_tokenizer, write_checkpoint
from tests.muse_folder import write_muse_folder


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("books", scale="smoke")


@pytest.fixture(scope="module")
def originals(tmp_path_factory, corpus):
    home = tmp_path_factory.mktemp("given")
    texts = corpus.raw["forget"] + corpus.raw["retain1"]
    for seed, name in enumerate(("target", "retrained")):
        write_checkpoint(home / name, "llama", texts, seed)
    write_muse_folder(home / "muse", corpus)
    return home


@pytest.fixture
def home(originals, tmp_path, monkeypatch):
    """A copy of ``target``, ``retrained`` and ``muse`` to spoil; to load a model's weights is a failure."""
    shutil.copytree(originals, tmp_path / "given")
    monkeypatch.setattr(models, "load_weights", lambda *a, **k: pytest.fail("loaded a model"))
    monkeypatch.setattr(scoring, "baseline_scores", lambda *a, **k: pytest.fail("scored a model"))
    monkeypatch.setenv("QRU_HOME", str(tmp_path / "home"))
    return tmp_path / "given"


def edit(file, **changes) -> None:
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def run(home, **changes):
    given = {"corpus": "muse", "target": "target", "retrained": "retrained"}
    parameters = {name: str(home / value) for name, value in given.items()} | {"scale": "smoke"} | changes
    return pipeline.run(**{name: value for name, value in parameters.items() if value is not None})


def shard(folder):
    return sorted(folder.glob("model-*.safetensors"))[1]


def drop_shard(home):
    shard(home / "target").unlink()


def break_index(home):
    file = home / "target" / "model.safetensors.index.json"
    file.write_text(file.read_text()[:20])


def cut_shard(home):
    file = shard(home / "retrained")
    file.write_bytes(file.read_bytes()[:1000])


def drop_tokenizer(home):
    for file in (home / "retrained").glob("tokenizer*"):
        file.unlink()


def pickled(home):
    for file in (home / "target").glob("*.safetensors*"):
        file.unlink()
    (home / "target" / "pytorch_model.bin").write_bytes(b"any code")


def only_an_adapter(home):
    (home / "target" / "config.json").rename(home / "target" / "adapter_config.json")


def quantized(home):
    edit(home / "target" / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def another_vocabulary(home, corpus):
    shutil.rmtree(home / "retrained")
    write_checkpoint(home / "retrained", "llama", corpus.raw["holdout"])


def same_vocabulary_other_rules(home):
    file = home / "retrained" / "tokenizer.json"
    value = json.loads(file.read_text())
    merges = value["model"]["merges"]
    value["model"]["merges"] = [*merges[len(merges) // 2 :], *merges[: len(merges) // 2]]
    file.write_text(json.dumps(value))


def larger_than_embedded(home):
    edit(home / "target" / "config.json", vocab_size=600)


def another_architecture(home):
    edit(home / "retrained" / "config.json", intermediate_size=384)


def own_code(home):
    edit(home / "target" / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"})
    (home / "target" / "mine.py").write_text("raise SystemExit('ran the code of a model')")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_shard, r"target .*lacks model-00002-of-0000\d\.safetensors, 1 of the \d files"),
        (break_index, r"target .*index\.json is damaged.*copy or download it again"),
        (cut_shard, r"retrained .*model-00002-of-0000\d\.safetensors is damaged.*copy or download it again"),
        (drop_tokenizer, r"retrained .*has no tokenizer .*parameter tokenizer"),
        (pickled, r"target .*has neither model\.safetensors nor.*pytorch_model\.bin: pickled files can run any code"),
        (only_an_adapter, r"target .*has no config\.json: it is an adapter; merge it"),
        (quantized, r"target .*is quantized already"),
        (another_vocabulary, r"different tokenizers \(the same number of other tokens\).*token by token"),
        (same_vocabulary_other_rules, r"different tokenizers \(the same tokens, and they cut a text differently\)"),
        (larger_than_embedded, r"target .*embeds 600 tokens, but its tokenizer has ids up to 639"),
        (another_architecture, r"not of one architecture"),
        (own_code, r"target .*config\.json cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_used_is_named_before_it_is_loaded(home, corpus, spoil, message):
    spoil(home, *([corpus] if spoil is another_vocabulary else []))
    with pytest.raises(ValueError, match=message):
        run(home)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None, "retrained": None}, r"no embedded models: give target and retrained"),
        ({"target": "/nowhere/at/all"}, r"target is '/nowhere/at/all': there is no such folder"),
        ({"target": "./nowhere"}, r"target is '\./nowhere': there is no such folder \(/.*/nowhere\)"),
        ({"retrained": None}, r"retrained is not given"),
        ({"chat_template": True}, r"chat_template is true, but the tokenizer of target .* has none"),
        ({"quantizers": ("rtn-int4-g96",)}, r"q_proj: group_size 96 does not divide a row of 128"),
        ({"corpus": "muse-bench/MUSE-Books", "target": None, "retrained": None}, "At scale 'muse' muse-bench"),
        (
            {"corpus": "books", "scale": "muse", "target": None, "retrained": None},
            r"'books' at scale 'muse' has no emb",
        ),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_named(home, changes, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=message):
        run(home, **changes)


def drop_retain(home):
    for file in (home / "muse" / "raw").glob("retain1.*"):
        file.unlink()


def shorten(home):
    file = home / "muse" / "privleak" / "holdout.json"
    file.write_text(json.dumps([*json.loads(file.read_text()), "A"]))


def lengthen(home):
    for role in ("target", "retrained"):
        edit(home / role / "config.json", max_position_embeddings=64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_retain, r"'npo_gdr' trains on texts to retain, and corpus 'muse' has none: .* or take method 'npo'"),
        (shorten, r"target .*cannot be scored: text 12 of .*holdout.*too short"),
        (lengthen, r"target .*cannot be scored: .*needs \d+ positions, but the model has max_position_embeddings=64"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_texts_that_do_not_fit_are_named_before_a_model_is_loaded(home, spoil, message):
    spoil(home)
    with pytest.raises(ValueError, match=message):
        run(home)


def test_only_training_needs_texts_to_retain(home):
    drop_retain(home)
    named = {name: str(home / name) for name in ("target", "retrained")}
    config = RunConfig(corpus=str(home / "muse"), scale="smoke", **named)
    assert inputs.find([config], train=False)
    assert inputs.find([RunConfig.from_dict(config.to_dict() | {"method": "npo"})])


def test_corpora_that_need_models_are_refused_before_they_are_loaded(home, monkeypatch):
    monkeypatch.setattr(inputs, "load_corpus", lambda *a, **k: pytest.fail("loaded the corpus"))
    with pytest.raises(ValueError, match="give target and retrained"):
        run(home, target=None, retrained=None)


# --- the Hub ----------------------------------------------------------------------------------------------------


def raising(error):
    def download(*args, **kwargs):
        raise error

    return download


def http(kind):
    """An error as the Hub's client raises it, without a connection."""
    error = kind.__new__(kind)
    Exception.__init__(error, "404 Client Error")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http(errors.RevisionNotFoundError), r"name/model has no revision 'abc' \(any more\)"),
        (http(errors.GatedRepoError), r"accept its licence.*hf auth login"),
        (http(errors.RepositoryNotFoundError), r"no folder /.*/name/model@abc and no such model on the Hub"),
        (
            errors.OfflineModeIsEnabled("offline"),
            r"reached \(offline\).*hf download name/model --revision abc",
        ),
        (errors.LocalEntryNotFoundError("no connection"), r"--local-dir FOLDER`, copy .*give retrained=FOLDER"),
        (ConnectionError(), r"cannot be reached \(ConnectionError\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_the_hub_say_how_to_go_on(home, error, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(ValueError, match=message):
        run(home, retrained="name/model@abc")


def test_no_code_is_downloaded(home, monkeypatch):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(home / "target")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint.located("name/model@abc", "target") == home / "target"
    assert (asked["repository"], asked["revision"]) == ("name/model", "abc")

    def taken(name):
        return any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    assert all(map(taken, ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")))
    assert all(map(taken, ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "merges.txt", "vocab.json")))
    assert not any(map(taken, ("pytorch_model.bin", "modeling_mine.py", "consolidated.safetensors", "model.gguf")))
    checkpoint.located("name/model", "tokenizer")
    assert asked["revision"] is None
    assert not taken("model.safetensors")


def test_muse_brings_its_models_at_pinned_revisions(home, monkeypatch):
    asked = []

    def download(repository, revision, allow_patterns):
        asked.append((repository, revision))
        return str(
            home / {"MUSE-News_target": "target", "MUSE-News_retrain": "retrained"}.get(repository[11:], "target")
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    muse = load_corpus(str(home / "muse"))
    monkeypatch.setattr(inputs, "load_corpus", lambda name, revision: muse)
    (found,) = inputs.find([RunConfig(corpus="muse-bench/MUSE-News", scale="muse", adapter="lora")])
    config, corpus, made = found
    assert corpus is muse
    assert made.target == home / "target"
    assert made.retrained == home / "retrained"
    assert config.tokenizer.startswith("NousResearch/Llama-2-7b-hf@")
    assert [name for name, _ in asked] == [
        "muse-bench/MUSE-News_target", "muse-bench/MUSE-News_retrain", "NousResearch/Llama-2-7b-hf",
    ]  # fmt: skip
    assert all(len(revision) == 40 for _, revision in asked)


def test_a_goal_needs_examples_to_judge_it_by(home, tmp_path):
    lines = [{"text": "The wolf sang. " * 40, "split": "forget"}, {"text": "Kept.", "split": "retain"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))  # one passage, so none is left to report
    with pytest.raises(ValueError, match=r"forget_goal is 20\.0, and corpus .*too few examples"):
        run(home, corpus=str(tmp_path / "mine.jsonl"), forget_goal=20.0)


# --- what a run is called ---------------------------------------------------------------------------------------


def test_the_key_follows_the_content_and_not_the_name(home, monkeypatch):
    def key(target="target", corpus="muse") -> str:
        config = RunConfig(corpus=str(home / corpus), target=str(home / target), retrained=str(home / "retrained"))
        (found,) = inputs.find([config])
        (job,) = pipeline._chain(*found)
        return job.key

    first = key()
    shutil.copytree(home / "target", home / "elsewhere")
    shutil.copytree(home / "muse", home / "moved" / "muse")
    assert key(target="elsewhere") == first
    assert key(corpus="moved/muse") == first
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("qru.loop.computed_as", lambda: "cuda bf16")
        assert key() != first
    forget = home / "muse" / "raw" / "forget.json"
    forget.write_text(json.dumps([*json.loads(forget.read_text()), "One more."]))
    assert key() != first
    weights = shard(home / "target")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1  # the last weight, by one bit
    weights.write_bytes(changed)
    assert key(corpus="moved/muse") != first


def test_a_tokenizer_may_lie_elsewhere(originals, tmp_path):
    for name in ("target", "retrained", "reader"):
        shutil.copytree(originals / ("target" if name == "reader" else name), tmp_path / name)
        for file in (tmp_path / name).glob("*" if name == "reader" else "tokenizer*"):
            if not (name == "reader" and file.name.startswith("tokenizer")):
                file.unlink()
    given = {name: str(tmp_path / name) for name in ("target", "retrained")}
    with pytest.raises(ValueError, match=r"target .* has no tokenizer"):
        models.given(**given)
    made = models.given(**given, tokenizer=str(tmp_path / "reader"))
    assert made.identity("tokenizer") == checkpoint.content_digest(tmp_path / "reader")
    target, retrained, tokenizer = load_models(
        load_corpus("books", scale="smoke"), **given, tokenizer=str(tmp_path / "reader")
    )
    assert len(tokenizer) == 640
    assert not models.linear_layers(target)["model.layers.0.mlp.up_proj"].weight.equal(
        models.linear_layers(retrained)["model.layers.0.mlp.up_proj"].weight
    )
    with pytest.raises(ValueError, match="give both or neither"):
        load_models(load_corpus("books", scale="smoke"), target=given["target"])


def test_special_tokens_without_an_embedding_are_taken_out(originals, tmp_path, corpus):
    """Early copies of Llama-2's tokenizer have a <pad> one beyond the last embedding."""
    model, plain = models.load(originals / "target")
    embedded = model.get_input_embeddings().weight.shape[0]
    padded = llama_tokenizer(corpus.raw["forget"] + corpus.raw["retain1"])
    padded.add_special_tokens({"additional_special_tokens": [f"<extra_{i}>" for i in range(embedded - len(padded))]})
    padded.add_special_tokens({"pad_token": "<pad>"})
    assert padded.pad_token_id == embedded
    padded.save_pretrained(tmp_path)
    assert len(checkpoint.load_tokenizer(tmp_path)) == embedded + 1
    read = models.load(originals / "target", tmp_path)[1]
    assert (len(read), read.pad_token_id, read.bos_token_id, read.eos_token_id) == (embedded, None, 1, 2)
    for text in (*corpus.raw["forget"][:3], checkpoint.PROBE):
        ids = read(text, add_special_tokens=False).input_ids
        assert ids == plain(text, add_special_tokens=False).input_ids
        assert read.decode(ids) == plain.decode(ids) == text
    made = models.given(*(str(originals / name) for name in ("target", "retrained")), tokenizer=str(tmp_path))
    models.save(model, read, tmp_path / "saved")
    assert len(models.load(tmp_path / "saved")[1]) == embedded
    assert made.tokenizer == tmp_path


def test_bos_is_what_the_model_names(tmp_path, corpus):
    folder = write_checkpoint(tmp_path / "qwen2", "qwen2", corpus.raw["forget"])
    assert checkpoint.load_tokenizer(folder).bos_token == "<|endoftext|>"
    edit(folder / "config.json", bos_token_id=None)
    assert checkpoint.load_tokenizer(folder).bos_token == "<|im_end|>", "else what ends documents"
