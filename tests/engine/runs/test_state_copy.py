"""A copy of a state is apart from it, complete, and in the same memory each time."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from rlpheads.engine.runs.checkpoint_saver import StateCopy


def state(value: float, mesh) -> dict:
    rows = torch.full((4, 3), value)
    return {
        "weight": torch.full((2, 3), value).t(),
        "nested": {"steps": torch.tensor(value), "rates": [0.1, (torch.full((2,), value), "adam")]},
        "shard": DTensor.from_local(rows, mesh, [Shard(0)], shape=rows.shape, stride=rows.stride()),
    }


def tensors(copied: dict) -> list[torch.Tensor]:
    return [copied["weight"], copied["nested"]["steps"], copied["nested"]["rates"][1][0], copied["shard"].to_local()]


def test_copies_are_whole_apart_from_the_state_and_in_the_same_memory(launched):
    mesh = init_device_mesh("cpu", (1,))
    state_copy = StateCopy()
    first_state = state(1.0, mesh)
    first = state_copy.take(first_state)
    for tensor in tensors(first_state):
        tensor.zero_()
    assert all(bool((tensor == 1).all()) for tensor in tensors(first))
    assert first["nested"]["rates"][0] == 0.1
    assert first["nested"]["rates"][1][1] == "adam"
    assert first["shard"].placements == (Shard(0),)
    assert first["shard"].shape == (4, 3)
    places = [tensor.data_ptr() for tensor in tensors(first)]
    second = state_copy.take(state(2.0, mesh))
    assert [tensor.data_ptr() for tensor in tensors(second)] == places
    assert all(bool((tensor == 2).all()) for tensor in tensors(second))
