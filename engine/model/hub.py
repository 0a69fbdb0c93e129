"""Where timm's pretrained weights come from: the Hugging Face hub, asked once whether it answers, and plain URLs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.constants
from huggingface_hub import get_session

_PATIENCE = 5.0  # seconds for an answer; the hub's client tries each file six times, with pauses


def leave_hub_if_silent() -> str | None:
    """Ask the hub once; if it gives no answer, read its cache alone from now on, and return why there is none.

    Without this, each file that timm looks for costs 25 seconds of the client's retries, those in the cache too.
    """
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        get_session().head(endpoint, timeout=_PATIENCE)
    except Exception as error:  # the client's own, its HTTP library's and the proxy's
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # what the variable HF_HUB_OFFLINE sets at import
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{endpoint} does not answer ({reason})"
    return None


@contextmanager
def patience_with_servers(seconds: float = 30.0) -> Iterator[None]:
    """End downloads in here whose server says nothing for so long: torch.hub, which timm reads plain URLs with, has no limit.

    The limit is the process's default for sockets; those that have one of their own keep it.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
