"""Which settings a run may go on with: the same, those that change no result, and those it could not know of."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rlpheads.engine.config.run import RuntimeConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.checkpoint import CheckpointError
from rlpheads.engine.runs.resume import check_settings

RUN = Path("run")


def test_a_resumed_run_may_recompute_activations_but_not_round_differently():
    saved = asdict(Config())
    check_settings(RUN, asdict(Config(runtime=RuntimeConfig(activation_checkpointing=True))), saved)
    with pytest.raises(CheckpointError, match=r"runtime\.tf32 is True now and was False"):
        check_settings(RUN, asdict(Config(runtime=RuntimeConfig(tf32=True))), saved)


def test_a_setting_that_a_run_was_begun_without_was_at_its_default():
    saved = asdict(Config())
    del saved["runtime"], saved["heads"]["dropout"], saved["data"]["augment"]
    check_settings(RUN, asdict(Config()), saved)
    dropping = replace(Config(), heads=replace(Config().heads, dropout=0.1))
    with pytest.raises(CheckpointError, match=r"other settings: heads\.dropout is 0\.1 now and was 0\.0\. "):
        check_settings(RUN, asdict(dropping), saved)


def test_a_setting_that_is_gone_since_is_named():
    saved = {**asdict(Config()), "momentum": 0.9}
    with pytest.raises(CheckpointError, match=r"momentum is None now and was 0\.9"):
        check_settings(RUN, asdict(Config()), saved)


def test_arguments_of_the_model_have_no_default():
    narrow = replace(Config(), model=replace(Config().model, args={"embed_dim": 96}))
    with pytest.raises(CheckpointError, match=r"model\.args\.embed_dim is 96 now and was None"):
        check_settings(RUN, asdict(narrow), asdict(Config()))


def test_what_is_evaluated_is_free_unless_it_steers_the_regulariser():
    saved = asdict(Config())
    rarely = replace(Config(), eval=replace(Config().eval, every=7))
    check_settings(RUN, asdict(rarely), saved)
    steered = replace(rarely, regularizer=replace(rarely.regularizer, factor=1.0, target=0.02))
    saved["regularizer"] |= {"factor": 1.0, "target": 0.02}
    with pytest.raises(CheckpointError, match=r"eval\.every is 7 now and was 1"):
        check_settings(RUN, asdict(steered), saved)
