"""A record from before there were guards: what it lacks was at its default."""

from qru import pipeline
from qru.config import GUARD_OPTIONS, RunConfig
from qru.defaults import resolve
from qru.records import read_json, write_json

# A seed of its own: no other test must have trained this model.
VALUES = {"scale": "smoke", "adapter": "lora", "quantizers": ("rtn-int4-g128",), "metrics": ("knowmem",), "seed": 4711}
NEW = {"guard", "guard_weight", "sure_percentile", *GUARD_OPTIONS}


def test_it_lends_its_model_to_a_run_that_measures_something_else(made, corpus):
    record = pipeline.run(**VALUES)
    raw = read_json(record.path)

    def alike(**changes):
        config = resolve(RunConfig(**VALUES | {"quantizers": ("rtn-int3-g64",)} | changes))
        return pipeline._trained_alike(pipeline._chain(config, corpus, made)[-1])

    try:
        older = {key: value for key, value in raw["config"].items() if key not in NEW}
        write_json(record.path, raw | {"config": older})
        assert alike().run == record.run
        assert alike(lora_rank=8) is None
        del older["adam_beta2"]  # its default of today is no None
        write_json(record.path, raw | {"config": older})
        assert alike() is None
    finally:
        write_json(record.path, raw)
