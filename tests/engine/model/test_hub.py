"""The Hugging Face hub that does not answer is asked once, and its cache is read without it."""

import time

import huggingface_hub.constants
import pytest
from checked_flags import complaint

from rlpheads.engine.model.hub import leave_hub_if_silent

CLOSED = "http://127.0.0.1:9"
"""The discard port, on which nothing listens."""


@pytest.fixture(autouse=True)
def silent_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # and back, once the test is over


def test_hub_is_left_alone_once_it_is_silent():
    assert str(leave_hub_if_silent()).startswith(f"{CLOSED} does not answer (")
    assert huggingface_hub.constants.is_offline_mode()


@pytest.mark.wrong("checkpoint")
def test_weights_of_a_silent_hub_are_one_error_within_seconds(tmp_path):
    began = time.perf_counter()
    said = complaint("--model.pretrained", "--model.name", "vit_tiny_patch16_224")
    assert time.perf_counter() - began < 20, "the hub's client tries again and again for 51 seconds"
    assert f"they are not in {tmp_path / 'hub'}, and {CLOSED} does not answer (" in said
    assert said.endswith("--model.checkpoint FILE")
