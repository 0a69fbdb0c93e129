"""The one DALI pipeline: exact to a level beside torchvision on the CPU; its GPU form as far as there is no driver."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_libraries import require_library

require_library("dali")  # before what imports it

from nvidia import dali
from torchvision.transforms.v2 import functional as F

from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.adapters.dali_pipeline import DaliPipeline, DecodeError, PipelineInput, PipelineSpec, define_graph
from rlpheads.loaders.sources.encoded_source import pixmap

SIDE = 16


def spec(num_threads: int = 1, **options) -> PipelineSpec:
    return PipelineSpec(SIDE, "bilinear", max_rows=4, num_threads=num_threads, depth=2, options=DaliOptions(**options))


def picture(seed: int, height: int = 40, width: int = 60) -> torch.Tensor:
    rough = torch.randint(0, 256, (3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return F.resize(rough, [height, width], antialias=True)


def pipeline_input(images: list[torch.Tensor], windows, regions, first_index: int = 0) -> PipelineInput:
    index = np.arange(first_index, first_index + len(images))
    return PipelineInput(
        [pixmap(image).data for image in images],
        np.array(windows, dtype=np.int32),
        np.array(regions, dtype=np.float32),
        index * 10,
        index,
    )


def whole(images: list[torch.Tensor], first_index: int = 0) -> PipelineInput:
    sizes = [(0, 0, *image.shape[1:]) for image in images]
    return pipeline_input(images, sizes, sizes, first_index)


@pytest.mark.parametrize(("height", "width"), [(10, 12), (40, 60), (333, 200)])
def test_a_window_is_resized_as_torchvision_does(height, width):
    image = picture(1, height, width)
    top, left, rows, columns = height // 5, width // 7, height // 2, width // 3
    pipeline = DaliPipeline(spec())
    pipeline.schedule(pipeline_input([image], [(top, left, rows, columns)], [(0, 0, rows, columns)]))
    pipeline.schedule(pipeline_input([image], [(top, left, rows, columns)], [(0, columns, rows, 0)]))
    expected = F.resized_crop(image, top, left, rows, columns, [SIDE, SIDE], antialias=True).int()
    for wanted in (expected, expected.flip(-1)):
        found = pipeline.collect().images_RSS3[0].permute(2, 0, 1).int()
        differences = (found - wanted).abs()
        assert differences.float().mean() < 0.35
        assert differences[:, 1:-1, 1:-1].max() <= 1
        assert differences.max() <= 4, "at the edges DALI repeats pixels"


def test_batches_come_in_order_with_their_index_and_stay_as_they_are():
    """The memory of a batch that is kept is not written to by later ones."""
    pipeline = DaliPipeline(spec(num_threads=2))
    kept = []
    pipeline.schedule(whole([picture(0), picture(1)], 0))
    for number in range(1, 8):
        pipeline.schedule(whole([picture(2 * number), picture(2 * number + 1)], 2 * number))
        kept.append(pipeline.collect())
    kept.append(pipeline.collect())
    for number, decoded in enumerate(kept):
        assert decoded.index_R.tolist() == [2 * number, 2 * number + 1]
        assert decoded.targets_R.tolist() == [20 * number, 20 * number + 10]
        for row in range(2):
            expected = F.resize(picture(2 * number + row), [SIDE, SIDE], antialias=True).int()
            assert (decoded.images_RSS3[row].permute(2, 0, 1).int() - expected).abs().max() <= 1


def test_batches_may_differ_in_length():
    pipeline = DaliPipeline(spec())
    for count in (4, 1, 3):
        pipeline.schedule(whole([picture(seed) for seed in range(count)]))
        assert len(pipeline.collect().images_RSS3) == count
    nothing = pipeline.empty()
    assert (nothing.images_RSS3.shape, len(nothing.targets_R), len(nothing.index_R)) == ((0, SIDE, SIDE, 3), 0, 0)


def test_a_batch_that_cannot_be_decoded_is_an_error_and_the_next_one_is_decoded():
    pipeline = DaliPipeline(spec())
    broken = whole([picture(0), picture(1)])
    broken.encoded[1] = np.frombuffer(b"\xff\xd8 no image at all", dtype=np.uint8)
    pipeline.schedule(broken)
    pipeline.schedule(whole([picture(2)], 2))
    with pytest.raises(DecodeError) as caught:
        pipeline.collect()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert pipeline.collect().index_R.tolist() == [2]


def test_discarded_batches_are_not_collected():
    pipeline = DaliPipeline(spec())
    broken = whole([picture(0)])
    broken.encoded[0] = np.zeros(40, dtype=np.uint8)
    pipeline.schedule(broken)
    pipeline.schedule(whole([picture(1)], 1))
    pipeline.discard()
    pipeline.schedule(whole([picture(2)], 2))
    assert pipeline.collect().index_R.tolist() == [2]


def blocks_sigterm(thread: Path) -> bool:
    status = (thread / "status").read_text()
    mask = int(re.search(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)[1], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def test_its_threads_leave_the_stop_signals_to_the_main_thread():
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    pipeline = DaliPipeline(spec(num_threads=2))
    pipeline.schedule(whole([picture(0)]))
    pipeline.collect()
    threads = set(tasks.iterdir()) - before
    assert len(threads) >= 2
    assert all(blocks_sigterm(thread) for thread in threads)
    assert not blocks_sigterm(tasks / str(os.getpid()))


def serialized(options: DaliOptions) -> list[str]:
    """The graph as DALI would send it elsewhere, its words in order. With no device's number it needs no driver."""
    pipeline = dali.Pipeline(batch_size=4, num_threads=1, device_id=None)
    with pipeline:
        pipeline.set_outputs(*define_graph(spec(**vars(options)), lambda _: ()))
    return [word.decode() for word in re.findall(rb"[A-Za-z_][\w.]*", pipeline.serialize())]


def device_of(operator: str, words: list[str]) -> str:
    behind = words[words.index(operator) :]
    return behind[behind.index("device") + 2]


def test_the_graph_for_a_gpu_is_the_graph_for_the_cpu_on_other_devices():
    """Every argument of every operator is checked against DALI's schemas here; what runs is for tests/gpu."""
    on_cpu = serialized(DaliOptions())
    on_gpu = serialized(DaliOptions(device_id=0, hardware_share=0.5, largest_image=(6430, 5980)))
    assert (device_of("decoders__ImageSlice", on_cpu), device_of("Resize", on_cpu)) == ("cpu", "cpu")
    assert (device_of("decoders__ImageSlice", on_gpu), device_of("Resize", on_gpu)) == ("mixed", "gpu")
    set_aside = {"preallocate_height_hint", "preallocate_width_hint", "device_memory_padding", "host_memory_padding"}
    only_there = set_aside | {"hw_decoder_load", "jpeg_fancy_upsampling"}
    assert only_there <= set(on_gpu)
    assert not only_there & set(on_cpu)
    assert not set_aside & set(serialized(DaliOptions(device_id=0)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there: tests/gpu builds the pipeline on it")
def test_without_a_driver_the_gpu_pipeline_says_so():
    with pytest.raises(RuntimeError, match="CUDA"):
        DaliPipeline(spec(device_id=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardware_share": 1.5}, r"hardware_share is 1.5; it must be in \[0, 1\]"),
        ({"largest_image": (0, 100)}, r"largest_image is \(0, 100\); it must be a height and a width"),
        ({"largest_image": (-1, -1)}, "largest_image is"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DaliOptions(**options)
