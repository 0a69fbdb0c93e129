"""The images of a run: both splits opened as the settings say, with label noise and canaries in the training split."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from rlpheads.engine.config.data import PLUGIN_DATASET, DataConfig
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.distributed.launch import Launch, Rank
from rlpheads.engine.plugins.loading import load_plugins
from rlpheads.kernels.cache_folder import cache_folder, unusable_reason
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.listing import listing_path, scanned_splits, write_listing
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import check_loader
from rlpheads.loaders.sources.beton import is_store
from rlpheads.loaders.sources.canary_source import CanarySource, CanarySpec, insert_canaries
from rlpheads.loaders.sources.content_sample import sample_contents
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset, split_key
from rlpheads.loaders.sources.image_folder import ImageFolderSource
from rlpheads.loaders.sources.kept_listing import facts_path, listing_facts
from rlpheads.loaders.sources.scan_cache import ScanCache
from rlpheads.loaders.sources.stored_rows import NoStoreError
from rlpheads.loaders.sources.subset import take_subset
from rlpheads.loaders.sources.synthetic import SyntheticSpec
from rlpheads.loaders.sources.verification import check_readable
from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.records.canary_file import Canaries, write_canaries
from rlpheads.memorization.records.sample_file import SplitSamples, write_samples

CANARIES_FILE = "canaries.parquet"
"""Name of the file, in a run folder, that tells canaries and noisy labels from the other samples."""
SAMPLES_FILE = "samples.parquet"
"""Name of the file, in a run folder, that says which image each index is."""


@dataclass(frozen=True)
class Sources:
    """The images of a run: the training split and the held-out split."""

    train: ImageSource
    heldout: ImageSource
    listed: Sequence[Manifest] = ()
    """The splits of a tree, before they were cut and altered; empty where the images do not lie in one."""

    @property
    def scanned(self) -> Sequence[Manifest]:
        """What was found in a tree: as `listed`, or one listing of which both splits were taken."""
        return scanned_splits(*self.listed) if self.listed else ()

    @cached_property
    def contents(self) -> dict[str, dict[str, str]]:
        """Hashes of some files of each split, by its field's name; read once."""
        return {"train": sample_contents(self.train), "heldout": sample_contents(self.heldout)}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines on what the scan of the images passed over; one of both splits is there once."""
        return tuple(dict.fromkeys(self.train.manifest.remarks + self.heldout.manifest.remarks))


def open_sources(
    config: Config,
    listing: Path | None = None,
    listed: Sequence[Manifest] = (),
    run_listing: Path | None = None,
) -> Sources:
    """List the images.

    Args:
        config: settings of the run.
        listing: folder of the listings of a run that goes on with the images that it began with.
        listed: what another rank has found (`Sources.listed`): nothing is scanned.
        run_listing: folder of the run's listings (`write_listings`), taken in place of a scan while they are true.

    Raises:
        ConfigError: the images are not there, or cannot be split as asked.
    """
    data = config.data
    try:
        train, heldout = map(ImageFolderSource, listed) if listed else _open_splits(config, listing, run_listing)
        if isinstance(train, ImageFolderSource):
            listed = (train.manifest, heldout.manifest)
        check_loader(data.loader, heldout)
        train = take_subset(
            train,
            data.subset.fraction,
            data.subset.per_class,
            stream_seed(config.seed_of("subset"), "subset"),
            imbalance=data.subset.imbalance,
        )
        train = with_noise_and_canaries(train, data, stream_seed(config.seed_of("canaries"), "canaries"))
        for source in (train, heldout):
            check_readable(source.manifest, data.on_error)
    except NoStoreError as error:
        raise ConfigError(
            f"the ffcv loader reads stores only. Make one of these images, once: {_convert_command(config)}; then train with "
            "--data.root STORE --data.loader ffcv"
        ) from error
    except DatasetError as error:
        raise ConfigError(str(error)) from error
    num_samples = train.manifest.num_samples
    if data.partial == "drop" and num_samples < config.batch_size:
        raise ConfigError(
            f"batch_size is {config.batch_size}, but there are only {num_samples} training images; "
            f"give --batch_size {num_samples - num_samples % 2} or less, or --data.partial pad"
        )
    return Sources(train, heldout, listed)


def _open_splits(config: Config, listing: Path | None, run_listing: Path | None) -> tuple[ImageSource, ImageSource]:
    data, seed = config.data, stream_seed(config.seed_of("split"), "split")
    if data.dataset == PLUGIN_DATASET:
        return load_plugins(config.plugins).open_images(data.root, seed)
    return open_dataset(
        data.dataset,
        data.root,
        val_fraction=data.val_fraction,
        seed=seed,
        download=data.download,
        synthetic=SyntheticSpec(**asdict(data.synthetic), side=data.image_size),
        verified=data.verified,
        listing=listing,
        cache=scan_cache(rescan=data.rescan, run_listing=run_listing),
        exif=data.exif,
    )


def scan_cache(*, rescan: bool, run_listing: Path | None = None) -> ScanCache:
    """Return where listings of large trees are looked for and kept: in no cache folder that is not safe from other users."""
    folder = cache_folder()
    is_safe = folder is not None and unusable_reason(folder / "scans", []) is None
    return ScanCache(folder / "scans" if folder is not None and is_safe else None, run_listing, rescan)


def training_order(config: Config, source: ImageSource) -> Order:
    """Return the order in which a run trains on a split."""
    seed = stream_seed(config.seed_of("order"), "order")
    return Order(source.manifest.num_samples, config.batch_size, seed, True, config.data.partial, config.data.repeats)


def _convert_command(config: Config) -> str:
    """Return the command that makes a store of these images, split as the run splits them."""
    data, default, seed = config.data, DataConfig(), config.seed_of("split")
    flags: dict[str, str] = {} if data.dataset == "imagefolder" else {"--data.dataset": data.dataset}
    for name in ("root", "val_fraction", "exif", "on_error"):
        if (given := getattr(data, name)) != getattr(default, name):
            flags[f"--data.{name}"] = str(given)
    if split_key(data.dataset, data.val_fraction, seed) is not None:
        flags["--seed"] = str(seed)
    return shlex.join(["rlpheads", "convert", *(word for flag in flags.items() for word in flag), "--out", "STORE"])


def with_noise_and_canaries(train: ImageSource, data: DataConfig, seed: int) -> ImageSource:
    """Return the training split with the label noise and the canaries of the settings; the split itself if there are none.

    Raises:
        DatasetError: the split has too few samples.
    """
    canaries = data.canaries
    repeats = canaries.repeats if isinstance(canaries.repeats, list) else [canaries.repeats]
    spec = CanarySpec(
        data.label_noise,
        canaries.mislabelled,
        canaries.repeated,
        tuple(repeats),
        canaries.near_duplicates,
        noise_kind=data.label_noise_kind,
    )
    return insert_canaries(train, spec, seed)


def write_listings(sources: Sources, folder: Path) -> None:
    """Write the names and sizes of a tree's files into a folder, for later starts of the run, where they are not there yet.

    By what is written beside them a later start need not scan the tree (`rlpheads.loaders.sources.kept_listing`).
    """
    for manifest in sources.scanned:
        path = listing_path(folder, manifest.split)
        if not path.exists():
            with atomic_file(path) as temporary:
                write_listing(temporary, manifest)
        if manifest.folder_times:
            with atomic_file(facts_path(path)) as temporary:
                temporary.write_text(listing_facts(manifest))


def write_canary_file(train: ImageSource, folder: Path) -> None:
    """Write which samples are canaries or have noisy labels into a run folder, if any are."""
    if isinstance(train, CanarySource):
        canaries = Canaries(fingerprint=train.manifest.fingerprint, **vars(train.truth))
        write_canaries(folder / CANARIES_FILE, canaries)


def write_sample_file(sources: Sources, folder: Path) -> None:
    """Write into a run folder which image each index is, for readers who have no images."""
    splits = [_split_samples(source) for source in (sources.train, sources.heldout)]
    write_samples(folder / SAMPLES_FILE, splits, sources.train.manifest.classes)


def _split_samples(source: ImageSource) -> SplitSamples:
    manifest, true_class_N, canary = source.manifest, source.manifest.targets.copy(), {}
    if isinstance(source, CanarySource):
        true_class_N[source.truth.index] = source.truth.true_class
        canary = dict(zip(source.truth.index.tolist(), source.truth.kind.tolist(), strict=True))
    return SplitSamples(
        manifest.split,
        manifest.fingerprint,
        manifest.name_bytes,
        manifest.name_offsets,
        true_class_N,
        manifest.targets,
        canary,
    )


def scans_itself(data: DataConfig, rank: Rank) -> bool:
    """Whether a rank lists the images on its own: the main rank does, and the others where no tree is to be scanned for it."""
    return rank.is_main or data.dataset != "imagefolder" or data.root is None or is_store(Path(data.root).expanduser())


def share_sources(config: Config, sources: Sources | None, launched: Launch) -> Sources:
    """Return a rank's images: its own, or where it has none those of the main rank's listing, below its own root. Collective.

    Args:
        config: this rank's settings; the root of the images may be another on each node.
        sources: what this rank has opened.
        launched: this rank among the others.

    Raises:
        ConfigError: as `open_sources`.
    """
    if launched.world_size == 1 and sources is not None:
        return sources
    root = Path(config.data.root or "").expanduser()
    found = None if sources is None else [_moved(manifest, root, Path()) for manifest in sources.listed]
    listed = launched.share(found) or ()
    if sources is not None:
        return sources
    return open_sources(config, listed=[_moved(manifest, Path(), root) for manifest in listed])


def _moved(manifest: Manifest, before: Path, after: Path) -> Manifest:
    assert manifest.root is not None  # a tree's
    return replace(manifest, root=after / manifest.root.relative_to(before))


def check_same_images(sources: Sources, launched: Launch) -> None:
    """Compare what this rank sees with what the main rank sees: an index must mean the same image everywhere. Collective.

    The first rank of each node reads some files of a tree, whose names and sizes it was told.

    Raises:
        DatasetError: they differ.
    """
    if launched.world_size == 1:
        return
    looks = launched.is_main or launched.rank.local_rank == 0
    here = [source.manifest.fingerprint for source in (sources.train, sources.heldout)]
    there, contents = launched.share((here, sources.contents if launched.is_main else None)) or (here, None)
    who = f"rank {launched.rank.rank} sees other images than rank 0"
    if here != there:
        raise DatasetError(f"{who}: fingerprints {here}, not {there}; give every node the same files")
    if looks and sources.contents != contents:
        raise DatasetError(
            f"{who} in {sources.train.manifest.root}: files are missing or differ; give every node the same files"
        )
