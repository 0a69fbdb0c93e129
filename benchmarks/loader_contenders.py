"""The loaders that bench_loaders.py compares, each in a process of its own that makes one pass whenever it is told to.

A pass reads every whole batch of a training split once, with random resized crops to 224 pixels and flips, and drops the
images. Contenders are told apart by what they are (ours, a library's own loop, timm, torchvision), not by tuning: batch
size and number of workers (processes or threads, whatever the library has) are the same for all.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from rlpheads.engine.distributed import host_memory

SIDE = 224
_PATIENCE = 240
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Setting:
    """What all contenders share.

    Attributes:
        tree: Folder of the JPEG tree.
        stores: Folder of the FFCV stores of that tree: jpg/ and raw/.
        batch_size: Rows of a batch.
        workers: Processes or threads that decode.
    """

    tree: Path
    stores: Path
    batch_size: int
    workers: int


@dataclass(frozen=True)
class Pass:
    """One pass: images, seconds to the first batch and to the last, CPU seconds of the process and its workers."""

    images: int
    first_batch: float
    seconds: float
    cpu_seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput of the whole pass, its start included."""
        return self.images / self.seconds


MakePass = Callable[[], Iterator[int]]
"""Begins a pass; yields the rows of each batch."""


def bare_decode(setting: Setting) -> MakePass:
    """Full decoding of every file from memory, by as many threads: no crop, no resize, no batch."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [bytearray(path.read_bytes()) for path in sorted(setting.tree.glob("train/*/*"))]
    pool = ThreadPoolExecutor(setting.workers)

    def decode(some: list[bytearray]) -> int:
        for data in some:
            decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB)
        return len(some)

    chunks = [files[start : start + 32] for start in range(0, len(files), 32)]
    return lambda: pool.map(decode, chunks)


def ours(kind: str, store: str | None = None, *, as_float: bool = False) -> Callable[[Setting], MakePass]:
    """Our adapter for a library, on the tree or on a store of it; float: normalised by the training process."""

    def build(setting: Setting) -> MakePass:
        import torch

        from rlpheads.loaders.augment.normalize import Normalize
        from rlpheads.loaders.contract.crops import CropSpec
        from rlpheads.loaders.contract.options import LoaderOptions
        from rlpheads.loaders.contract.order import Order
        from rlpheads.loaders.factory import make_loader
        from rlpheads.loaders.sources.datasets import open_dataset

        root = setting.tree if store is None else setting.stores / store
        source, _ = open_dataset("imagefolder", root, seed=0)
        order = Order(source.manifest.num_samples, setting.batch_size)
        options = LoaderOptions(num_workers=setting.workers)
        loader = make_loader(kind, source, order, CropSpec(SIDE), train=True, options=options)
        normalize = Normalize(MEAN, STD) if as_float else torch.nn.Identity()
        epoch = iter(range(10**9))

        def begin() -> Iterator[int]:
            loader.set_epoch(next(epoch))
            for batch in loader:
                yield len(normalize(batch.images))

        return begin

    return build


def ffcv_library(store: str) -> Callable[[Setting], MakePass]:
    """FFCV's own loader and random crops."""

    def build(setting: Setting) -> MakePass:
        from ffcv_library import ffcv_library_loader

        path = setting.stores / store / "train.beton"
        loader = ffcv_library_loader(path, setting.batch_size, setting.workers, SIDE, train=True)
        return lambda: (len(batch[0]) for batch in loader)

    return build


def dali_reader(setting: Setting) -> MakePass:
    """DALI's own file reader and random crops."""
    from dali_library import dali_reader_loader

    return _dali_passes(dali_reader_loader(setting.tree / "train", setting.batch_size, setting.workers, SIDE))


def dali_external_source(setting: Setting) -> MakePass:
    """DALI fed by a batch callable, as its documentation shows."""
    from dali_library import dali_external_source_loader

    return _dali_passes(dali_external_source_loader(setting.tree / "train", setting.batch_size, setting.workers, SIDE))


def _dali_passes(loader: Any) -> MakePass:
    def begin() -> Iterator[int]:
        for (batch,) in loader:
            yield len(batch["data"])
        loader.reset()

    return begin


def torchvision_loader(*, v2: bool, as_float: bool) -> Callable[[Setting], MakePass]:
    """ImageFolder in a DataLoader, by PIL or by tensors, as torchvision's reference scripts use them."""

    def build(setting: Setting) -> MakePass:
        import torch
        from torch.utils.data import DataLoader
        from torchvision.datasets import ImageFolder
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms import v2 as T

        def read(path: str) -> torch.Tensor:
            return decode_image(path, mode=ImageReadMode.RGB)

        last = [T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)] if as_float else []
        first = [] if v2 else [T.PILToTensor()]
        crops = [T.RandomResizedCrop(SIDE, antialias=True), T.RandomHorizontalFlip()]
        options: dict[str, Any] = {"loader": read} if v2 else {}
        data = ImageFolder(str(setting.tree / "train"), T.Compose([*crops, *first, *last]), **options)
        loader = DataLoader(
            data,
            setting.batch_size,
            shuffle=True,
            num_workers=setting.workers,
            drop_last=True,
            persistent_workers=True,
        )
        return lambda: (len(images) for images, _ in loader)

    return build


def spdl_threads(*, as_float: bool) -> Callable[[Setting], MakePass]:
    """SPDL's pipeline of threads around torchvision's decoder and transforms: its own decoders want FFmpeg's libraries."""

    def build(setting: Setting) -> MakePass:
        import torch
        from spdl.pipeline import PipelineBuilder
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms import v2 as T

        paths = [str(path) for path in sorted(setting.tree.glob("train/*/*"))]
        crops = T.Compose([T.RandomResizedCrop(SIDE, antialias=True), T.RandomHorizontalFlip()])
        last = (
            T.Compose([T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)])
            if as_float
            else torch.nn.Identity()
        )

        def read(path: str) -> torch.Tensor:
            return crops(decode_image(path, mode=ImageReadMode.RGB))

        def collate(images: list[torch.Tensor]) -> torch.Tensor:
            return last(torch.stack(images))

        def begin() -> Iterator[int]:
            shuffled = [paths[place] for place in torch.randperm(len(paths)).tolist()]
            builder = PipelineBuilder().add_source(shuffled).pipe(read, concurrency=setting.workers)
            builder = builder.aggregate(setting.batch_size, drop_last=True).pipe(collate).add_sink(2)
            pipeline = builder.build(num_threads=setting.workers)
            with pipeline.auto_stop():
                for images in pipeline:
                    yield len(images)

        return begin

    return build


def timm_loader(*, prefetcher: bool) -> Callable[[Setting], MakePass]:
    """Timm's create_loader without augmentation policies: PIL, bilinear, float32 from the workers or its prefetcher."""

    def build(setting: Setting) -> MakePass:
        import torch
        from timm.data import create_dataset, create_loader

        data = create_dataset("", root=str(setting.tree), split="train", is_training=True)
        loader = create_loader(
            data,
            (3, SIDE, SIDE),
            setting.batch_size,
            is_training=True,
            use_prefetcher=prefetcher,
            device=torch.device("cpu"),
            num_workers=setting.workers,
            color_jitter=None,
            interpolation="bilinear",
            persistent_workers=True,
        )
        return lambda: (len(images) for images, _ in loader)

    return build


CONTENDERS: dict[str, Callable[[Setting], MakePass]] = {
    "bare decode limit": bare_decode,
    "rlpheads torch": ours("torch"),
    "rlpheads torch, float": ours("torch", as_float=True),
    "torchvision v2": torchvision_loader(v2=True, as_float=False),
    "torchvision v2, float": torchvision_loader(v2=True, as_float=True),
    "torchvision PIL": torchvision_loader(v2=False, as_float=False),
    "torchvision PIL, float": torchvision_loader(v2=False, as_float=True),
    "SPDL threads": spdl_threads(as_float=False),
    "SPDL threads, float": spdl_threads(as_float=True),
    "timm, float": timm_loader(prefetcher=False),
    "timm prefetcher, float": timm_loader(prefetcher=True),
    "rlpheads dali": ours("dali"),
    "rlpheads dali, float": ours("dali", as_float=True),
    "DALI external source": dali_external_source,
    "DALI reader": dali_reader,
    "rlpheads ffcv jpg": ours("ffcv", "jpg"),
    "rlpheads ffcv jpg, float": ours("ffcv", "jpg", as_float=True),
    "FFCV jpg": ffcv_library("jpg"),
    "rlpheads ffcv raw": ours("ffcv", "raw"),
    "FFCV raw": ffcv_library("raw"),
}


class Runner:
    """A contender in a process of its own, which is stopped between passes: none can read ahead while another runs."""

    def __init__(self, name: str, setting: Setting):
        self._mine, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(name, setting, theirs), daemon=False)
        self._process.start()
        theirs.close()

    def run(self) -> Pass:
        """Make a pass."""
        self._signal(signal.SIGCONT)
        self._mine.send("pass")
        try:
            return self._answer()
        finally:
            self._signal(signal.SIGSTOP)

    def memory(self) -> int:
        """Return the proportional set size of the process and its workers, in bytes."""
        return resident(self._process.pid or 0)

    def close(self) -> None:
        """End the process and its workers."""
        self._signal(signal.SIGCONT)
        self._mine.close()
        self._process.join(20)
        if self._process.is_alive():
            own = psutil.Process(self._process.pid)
            for process in [*own.children(recursive=True), own]:
                process.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid or 0, number)

    def _answer(self) -> Pass:
        if not self._mine.poll(_PATIENCE):
            raise RuntimeError(f"no answer within {_PATIENCE} seconds")
        answer = self._mine.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def resident(pid: int) -> int:
    """Proportional set size of a process and its descendants, in bytes: what they share is counted once."""
    process = psutil.Process(pid)
    return sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)])


def _serve(name: str, setting: Setting, orders: Connection) -> None:
    warnings.filterwarnings("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    host_memory.keep_freed_memory()  # of all, as a training of ours does: else the allocators are compared
    set_start_method("fork", force=True)  # as in a training: what spawned this process would be handed down to workers
    try:
        import torch

        torch.set_num_threads(1)
        begin = CONTENDERS[name](setting)
        while orders.recv():
            orders.send(_timed(begin))
    except EOFError:
        pass
    except BaseException as error:
        orders.send(RuntimeError(f"{name}: {type(error).__name__}: {error}"))
    os._exit(0)  # libraries' threads need not be waited for


def _timed(begin: MakePass) -> Pass:
    cpu, start = _cpu_seconds(), time.perf_counter()
    images, first = 0, 0.0
    for rows in begin():
        images += rows
        first = first or time.perf_counter() - start
    return Pass(images, first, time.perf_counter() - start, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """CPU time of this process and of those of its children that live, and of those that were waited for."""
    this = psutil.Process()
    times = [this.cpu_times(), *(child.cpu_times() for child in this.children(recursive=True))]
    own = times[0]
    return sum(time.user + time.system for time in times) + own.children_user + own.children_system
