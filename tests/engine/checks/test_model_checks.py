"""Models and optimizers that cannot be built or trained as configured are refused with their message."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from checked_flags import complaint
from wrong_settings import DIGITS, NAMES

from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.checks.model import check_classes
from rlpheads.engine.config.command_line import ConfigError, parse_config


@pytest.mark.long
@pytest.mark.wrong("config")
@pytest.mark.parametrize(("flags", "ending"), NAMES)
def test_refused_by_the_model_and_optimizers_themselves(flags: list[str], ending: str) -> None:
    assert complaint(*flags).endswith(ending)


def test_layer_decay_is_checked_without_a_warning_that_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    check_config(parse_config([*DIGITS, "--optim.layer_decay", "0.65"]), 1)
    assert caplog.messages == []


@pytest.mark.long
@pytest.mark.wrong("config")
def test_batch_norm_is_refused_on_several_ranks() -> None:
    size = ["--model.name", "resnet18", "--data.image_size", "32", "--model.args"]
    config = parse_config([*DIGITS, *size, str(dict.fromkeys(parse_config(DIGITS).model.args)).replace("None", "null")])
    check_config(config, 1)
    with pytest.raises(ConfigError) as caught:
        check_config(config, 2)
    synchronised = dataclasses.replace(config.model, sync_batchnorm=True)
    check_config(dataclasses.replace(config, model=synchronised), 2)
    padded = dataclasses.replace(config, data=dataclasses.replace(config.data, partial="pad"))
    with pytest.raises(ConfigError, match=r"data\.partial: got 'pad'; allowed: drop for a network with batch norm"):
        check_config(padded, 1)
    assert str(caught.value) == (
        "model.name: got 'resnet18', whose batch norm keeps statistics of one rank's images; "
        "allowed on several ranks: --model.sync_batchnorm, or a model without batch norm"
    )


@pytest.mark.long
@pytest.mark.wrong("environment")
def test_apex_optimizers_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed; then the registry's unrelated package; then NVIDIA's, without a GPU."""
    wanted = "optim.name: got 'fusedadamw', "
    instead = "allowed here: optim.name without fused (torch's own fused step comes with adamw)"
    flags = ["--optim.name", "fusedadamw"]
    built = f"{wanted}which needs NVIDIA's apex, built from its source; it is not installed; {instead}"
    assert complaint(*flags) == built
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "the apex that is installed is the unrelated package of that name in the registry" in complaint(*flags)
    (tmp_path / "apex" / "optimizers.py").write_text("class FusedAdam: ...")
    importlib.invalidate_caches()
    if not torch.cuda.is_available():
        assert complaint(*flags) == f"{wanted}whose kernels need a CUDA device, and there is none; {instead}"


@pytest.mark.long
def test_images_with_other_classes_than_the_model_was_planned_for_are_refused() -> None:
    plan = check_config(parse_config(DIGITS), 1)
    check_classes(plan, 10)
    with pytest.raises(ConfigError, match=r"^data\.root: 10 classes were counted, but 11 when the images were listed"):
        check_classes(plan, 11)
