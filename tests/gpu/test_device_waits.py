"""Waits can be forbidden where warnings are errors: on a CPU, as far as torch knows its mode without a device."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from device_waits import no_device_waits

pytestmark = pytest.mark.skipif(not hasattr(torch._C, "_cuda_set_sync_debug_mode"), reason="this torch knows no CUDA")


@pytest.fixture(autouse=True)
def mode_without_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The mode is set without starting CUDA, and the warning of it comes each time, not once a process."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    with warnings.catch_warnings(action="ignore"):
        torch.cuda.set_sync_debug_mode("default")
    torch.set_warn_always(always)


def test_torch_warns_and_leaves_the_mode() -> None:
    """What the helper is for."""
    with pytest.raises(UserWarning, match="prototype"):
        torch.cuda.set_sync_debug_mode("error")
    assert torch.cuda.get_sync_debug_mode() == 2


@pytest.mark.parametrize("before", ["default", "warn"])
def test_the_mode_is_on_inside_and_what_it_was_behind(before: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.cuda.set_sync_debug_mode(before)
    for _ in range(2):
        with no_device_waits():
            assert torch.cuda.get_sync_debug_mode() == 2
        assert torch.cuda.get_sync_debug_mode() == ["default", "warn"].index(before)


def test_the_mode_comes_back_where_the_body_fails_and_other_warnings_are_errors() -> None:
    with pytest.raises(UserWarning, match="another"), no_device_waits():
        warnings.warn("another", stacklevel=1)
    assert torch.cuda.get_sync_debug_mode() == 0
