"""The one DALI pipeline: encoded images in, squares of equal size out, on the CPU or on a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import dali
from nvidia.dali import fn, types
from torch import Tensor

from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.crops import Interpolation
from rlpheads.loaders.contract.stop_signals import stop_signals_blocked


class DecodeError(RuntimeError):
    """DALI could not decode a batch; it does not say which image is at fault."""


@dataclass(frozen=True)
class PipelineSpec:
    """All that a pipeline is built from.

    Attributes:
        image_size: Side of the squares, in pixels.
        interpolation: Of the resize.
        max_rows: Most images of a batch.
        num_threads: Threads that decode.
        depth: Batches scheduled at once.
        options: Where they are made.
    """

    image_size: int
    interpolation: Interpolation
    max_rows: int
    num_threads: int
    depth: int
    options: DaliOptions


class PipelineInput(NamedTuple):
    """A batch of R encoded images and their crops, as the pipeline takes it.

    Attributes:
        encoded: Bytes of the files, uint8.
        windows_R4: int32, (top, left, height, width) in pixels: what is decoded.
        regions_R4: float32, (top, left, bottom, right) within the window: what becomes the square. Left and right the
            other way round: flipped.
        targets_R: int64, classes; these two only travel along.
        index_R: int64, canonical indices.
    """

    encoded: list[NDArray[np.uint8]]
    windows_R4: NDArray[np.int32]
    regions_R4: NDArray[np.float32]
    targets_R: Int64Array
    index_R: Int64Array


class Decoded(NamedTuple):
    """R decoded images, on the pipeline's device: uint8 (R, S, S, 3), int64 (R,) and int64 (R,)."""

    images_RSS3: Tensor
    targets_R: Tensor
    index_R: Tensor


class DaliPipeline:
    """Decodes several batches at once, and returns them in the order in which they were scheduled."""

    def __init__(self, spec: PipelineSpec) -> None:
        """Build; the pipeline's threads start here, with the stop signals blocked."""
        self._image_size = spec.image_size
        self._device_id = spec.options.device_id
        self._inputs: deque[tuple[Any, ...]] = deque()
        self._num_scheduled = 0
        with stop_signals_blocked():
            self._pipeline = dali.Pipeline(
                batch_size=spec.max_rows,
                num_threads=spec.num_threads,
                device_id=spec.options.device_id,
                prefetch_queue_depth=spec.depth,
                exec_dynamic=True,
            )
            with self._pipeline:
                self._pipeline.set_outputs(*define_graph(spec, _queue_source(self._inputs)))
            self._pipeline.build()

    def schedule(self, inputs: PipelineInput) -> None:
        """Start a batch; at most `depth` may be scheduled."""
        windows_R4, regions_R4 = inputs.windows_R4, inputs.regions_R4
        cuts = (windows_R4[:, :2], windows_R4[:, 2:], regions_R4[:, :2], regions_R4[:, 2:])
        self._inputs.append((inputs.encoded, *map(np.ascontiguousarray, cuts), inputs.targets_R, inputs.index_R))
        # DALI's first run asks for as many batches as it can have scheduled. One that finds no more of them takes that
        # for the end of an epoch, and a reset says that there is another.
        self._pipeline.reset()
        self._pipeline.schedule_run()
        self._num_scheduled += 1

    def collect(self) -> Decoded:
        """Wait for the batch that was scheduled first. Its memory is the caller's.

        On a GPU the host waits for the launches alone; what the caller launches next on its present stream finds the
        pixels there.

        Raises:
            DecodeError: If the batch cannot be made. Those after it can.
        """
        self._num_scheduled -= 1
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        try:
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
        except RuntimeError as error:
            raise DecodeError(_error_line(str(error))) from error
        tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        self._pipeline.release_outputs()
        return Decoded(*tensors)

    def empty(self) -> Decoded:
        """Return a batch of no images."""
        device = torch.device("cpu" if self._device_id is None else f"cuda:{self._device_id}")
        images = torch.zeros((0, self._image_size, self._image_size, 3), dtype=torch.uint8, device=device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Decoded(images, none, none)

    def discard(self) -> None:
        """Wait for all scheduled batches, and drop them."""
        while self._num_scheduled:
            try:
                self.collect()
            except DecodeError:
                continue  # its batch is dropped, and its error with it


def _queue_source(inputs: deque[tuple[Any, ...]]) -> Callable[[int], tuple[Any, ...]]:
    """Return DALI's source. It holds no `DaliPipeline`: a cycle of references would keep both alive after their last use."""

    def take(_iteration: int) -> tuple[Any, ...]:
        if not inputs:
            raise StopIteration
        return inputs.popleft()

    return take


def define_graph(spec: PipelineSpec, source: Callable[[int], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Define what a pipeline does, the same on CPU and GPU; called inside a `dali.Pipeline`.

    Resizing is linear or cubic and, where the image shrinks, antialiased over the crop, as in torchvision. The two differ at
    the edges, beyond which DALI repeats the last pixel where torchvision weighs the others more.

    Args:
        spec: What the pipeline is built from.
        source: Batch callable of the iteration's number; returns a `PipelineInput`'s parts, start and extent apart.

    Returns:
        The outputs' nodes: images, targets, index.
    """
    on_gpu = spec.options.device_id is not None
    encoded, start, shape, roi_start, roi_end, targets, index = fn.external_source(
        source,
        num_outputs=7,
        batch=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT, types.INT64, types.INT64],
        ndim=[1, 1, 1, 1, 1, 0, 0],
    )
    window = fn.decoders.image_slice(
        encoded,
        device="mixed" if on_gpu else "cpu",
        start=start,
        shape=shape,
        axes=[0, 1],
        output_type=types.RGB,
        adjust_orientation=False,
        **_gpu_decoding(spec.options),
    )
    images = fn.resize(
        window,
        size=[spec.image_size, spec.image_size],
        roi_start=roi_start,
        roi_end=roi_end,
        interp_type=types.INTERP_CUBIC if spec.interpolation == "bicubic" else types.INTERP_LINEAR,
        antialias=True,
        bytes_per_sample_hint=3 * spec.image_size**2 if on_gpu else 0,
    )
    return (images, targets.gpu(), index.gpu()) if on_gpu else (images, targets, index)


def _gpu_decoding(options: DaliOptions) -> dict[str, Any]:
    """Return the decoder's arguments that mean something on a GPU only."""
    if options.device_id is None:
        return {}
    height, width = options.largest_image
    arguments: dict[str, Any] = {"hw_decoder_load": options.hardware_share, "jpeg_fancy_upsampling": True}
    if height:
        arguments |= {
            "preallocate_height_hint": height,
            "preallocate_width_hint": width,
            "device_memory_padding": 3 * height * width,
            "host_memory_padding": height * width,
        }
    return arguments


def _error_line(message: str) -> str:
    """Return the line of DALI's message that says what went wrong, without its traceback of the pipeline's definition."""
    _, _, encountered = message.partition("encountered:")
    lines = [line.strip() for line in (encountered or message).splitlines()]
    return next((line for line in lines if line), "an error without a message")
