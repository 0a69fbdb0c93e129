"""The Hugging Face hub that does not answer is asked once, and its cache is read without it."""

import socket

import huggingface_hub.constants
import pytest
import torch
from checked_flags import complaint

from rlpheads.engine.model.hub import leave_hub_if_silent, patience_with_servers

PREPARED = ("--data.mean", "[0.5, 0.5, 0.5]", "--data.std", "[0.5, 0.5, 0.5]", "--data.interpolation", "bicubic")
"""As the published weights of this name were trained."""

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
def test_weights_of_a_silent_hub_are_one_error_and_not_asked_for_again(tmp_path):
    said = complaint("--model.pretrained", "--model.name", "vit_tiny_patch16_224", *PREPARED)
    assert huggingface_hub.constants.is_offline_mode()  # else its client would try again and again for 51 seconds
    assert f"they are not in {tmp_path / 'hub'}, and {CLOSED} does not answer (" in said
    assert said.endswith("--model.checkpoint FILE")


@pytest.mark.wrong("checkpoint")
def test_weights_at_a_plain_url_are_not_waited_for_without_end(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent, patience_with_servers(0.2):
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth"
        with pytest.raises(TimeoutError, match="timed out"):
            torch.hub.load_state_dict_from_url(url, str(tmp_path), progress=False)
    assert socket.getdefaulttimeout() is None
