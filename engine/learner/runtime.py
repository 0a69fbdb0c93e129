"""Runtime settings: torch's global switches (TF32, cuDNN, determinism), compile or channels-last of a module, and streams."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rlpheads.engine.config.run import RuntimeConfig
from rlpheads.engine.model.batch_norm import RecomputedStatistics
from rlpheads.engine.model.tapped_model import TappedModel

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def torch_switches(runtime: RuntimeConfig) -> Iterator[None]:
    """Set torch's global switches while the context is open; to be entered before CUDA is first used."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    cudnn = torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    if runtime.deterministic:
        os.environ.setdefault(_WORKSPACE, ":4096:8")  # which cuBLAS needs, and reads once
    for backend in backends:
        backend.allow_tf32 = runtime.tf32
    torch.backends.cudnn.benchmark = runtime.cudnn_benchmark and not runtime.deterministic
    torch.use_deterministic_algorithms(runtime.deterministic)
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = cudnn
        torch.use_deterministic_algorithms(deterministic)


def adapt_module(module: nn.Module, runtime: RuntimeConfig) -> None:
    """Change a part, network or heads, as `runtime` says, in place: names of weights stay, and so do checkpoints.

    Compilation happens at the first call, inside DDP's wrapper where there is one. Each shape has a graph of its own: one
    for all would be made as soon as a second shape is met, and a resumed run meets them in another order.
    """
    if runtime.channels_last:
        module.to(memory_format=torch.channels_last)
    if runtime.activation_checkpointing and isinstance(module, TappedModel):
        module.backbone.set_grad_checkpointing(True)
        if not runtime.compile:  # a graph changes its buffers once
            RecomputedStatistics(module)
    if runtime.compile:
        module.compile(fullgraph=True, dynamic=False, mode=None if runtime.compile is True else runtime.compile)


def begin_compiled_pass(runtime: RuntimeConfig) -> None:
    """Let CUDA graphs, which modes other than `true` make, use the memory of the passes before again: nobody reads it."""
    if isinstance(runtime.compile, str):
        torch.compiler.cudagraph_mark_step_begin()


class SideStream:
    """A stream of the device for work that runs beside what the current stream is given meanwhile; none on a CPU.

    The host never waits. Whatever was given to the current stream before the side stream's work is done before it, and the
    current stream goes on with what it is given behind `join` when the side stream is through. So memory that is allocated by
    the side stream and read behind `join` is never reused too early: the side stream's next work waits for its readers.

    Args:
        streams: the device's module of streams, such as torch.cuda: `Stream`, `current_stream` and `stream`. None: there are
            none, and everything runs in the order of the calls.
    """

    def __init__(self, streams: Any = None):
        self._streams = streams
        self._side = None if streams is None else streams.Stream()

    @classmethod
    def of_device(cls, device: torch.device) -> SideStream:
        """Return a side stream of a device, none for a CPU."""
        return cls() if device.type == "cpu" else cls(torch.get_device_module(device))

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._side is not None

    def work(self, *reads: Tensor) -> AbstractContextManager[object]:
        """Return the context whose operations go to the side stream, which waits for what the current one was given.

        Args:
            reads: tensors of the current stream that they read and that may be dropped before they are through: the memory
                is kept until then.
        """
        if self._side is None:
            return nullcontext()
        self._side.wait_stream(self._streams.current_stream())
        for tensor in reads:
            tensor.record_stream(self._side)
        context: AbstractContextManager[object] = self._streams.stream(self._side)
        return context

    def join(self) -> None:
        """Let the current stream go on when the side stream is through."""
        if self._side is not None:
            self._streams.current_stream().wait_stream(self._side)
