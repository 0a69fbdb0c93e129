"""Settings of the images: what is read, by which loader, and how it is cropped, augmented, mixed and mislabelled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PLUGIN_DATASET = "plugin"
"""The data set that a module of `plugins` opens."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Number of images of data.dataset synthetic; their side is data.image_size."""

    train: int = 10_000
    """Number of training images."""
    val: int = 1_000
    """Number of held-out images."""
    classes: int = 10
    """Number of classes, whose sizes differ by one image at most."""


@dataclass(frozen=True)
class SubsetConfig:
    """Part of the training images that is used, by a hash of their names: smaller subsets are part of larger ones."""

    fraction: float = 1.0
    """Fraction of every class that is kept, in (0, 1], rounded up."""
    per_class: int | None = None
    """Number of images of each class; null: as many as fraction says."""
    imbalance: float = 1.0
    """Long tail: how many times the last class's images the first class keeps; between them the share falls exponentially
    from class to class, and every class keeps one image at least. 1: no tail."""


@dataclass(frozen=True)
class DaliConfig:
    """Decoding with DALI (data.loader dali)."""

    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Device that decodes; auto: the GPU that trains, if there is one. JPEGs decoded on a GPU and on a CPU differ by
    one level in some pixels."""
    hardware_share: float = 0.65
    """Share of the JPEGs that the GPU's hardware decoder takes, where it has one (A100, H100 and later); the best value
    is found by measuring."""
    largest_image: tuple[int, int] = (0, 0)
    """Height and width in pixels for which the decoder preallocates GPU memory; 0, 0: it grows as needed, with a pause
    each time. [6430, 5980] holds all of ImageNet."""


@dataclass(frozen=True)
class ProgressiveConfig:
    """Progressive resizing: smaller training images in the first epochs, as in ffcv-imagenet. Evaluation stays as it is."""

    first_size: int | None = None
    """Side of the training images up to start_epoch, in pixels; null: data.image_size in every epoch."""
    start_epoch: int = 0
    """Epoch, from 0, up to which images have first_size; from there the side grows linearly."""
    end_epoch: int | None = None
    """Epoch, from 0, from which images have data.image_size; needed with first_size."""
    multiple: int = 32
    """Sides are rounded to multiples of this; first_size and data.image_size are such."""

    def sizes(self, last_size: int) -> tuple[int, ...]:
        """Return the sides of the epochs before `end_epoch`, where images grow to `last_size`; nothing where they do not."""
        if self.first_size is None or self.end_epoch is None:
            return ()
        length = max(self.end_epoch - self.start_epoch, 1)
        shares = (min(max((epoch - self.start_epoch) / length, 0), 1) for epoch in range(self.end_epoch))
        sides = (self.first_size + share * (last_size - self.first_size) for share in shares)
        return tuple(int(side / self.multiple + 0.5) * self.multiple for side in sides)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images, on the device; draws are keyed by (seed, epoch, index), with any loader."""

    policy: Literal["none", "rand", "trivial", "auto_imagenet", "auto_cifar10", "three"] = "none"
    """Augmentation policy. rand: RandAugment; trivial: TrivialAugment, one operation of random magnitude; auto_...:
    AutoAugment's policy for that data set; three: 3-Augment, grayscale, solarize or Gaussian blur (DeiT III). The rand_
    keys are for rand alone."""
    rand_ops: int = 2
    """Number of operations applied in sequence to each image."""
    rand_magnitude: float = 9.0
    """Magnitude of the operations, from 0 to 30, as in the paper and torchvision; timm's m9 with inc1 is 27."""
    rand_magnitude_std: float = 0.0
    """Standard deviation of the magnitude, over images and operations; timm's mstd0.5 is 1.5."""
    rand_probability: float = 1.0
    """Probability of applying each operation; timm's is 0.5."""
    rand_operations: Literal["torchvision", "timm"] = "torchvision"
    """Set of operations: torchvision's 14 (one of them the identity), or the 15 of timm's inc1, which also inverts and
    brightens dark pixels (SolarizeAdd), and posterizes to 4 bits or fewer."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    """Interpolation of the policy's shears, translations and rotations. torchvision's default is nearest; timm draws
    bilinear or bicubic for each operation anew."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Color jitter after the policy: largest change of brightness, contrast and saturation (as factors around 1) and of
    hue (around 0, at most 0.5)."""
    cutout: int = 0
    """Cutout: side in pixels of a square that is covered with the mean colour, its centre anywhere in the image; 0:
    none."""
    erase: float = 0.0
    """Random erasing: probability that a box of the image is covered, after normalisation."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Random erasing: area of the box as a fraction of the image, minimum and maximum."""
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)
    """Random erasing: aspect ratio of the box (height over width), minimum and maximum; drawn log-uniformly."""
    erase_fill: Literal["noise", "color", "mean"] = "noise"
    """Random erasing: fill of the box: a normal random number for each pixel, one colour of normal random numbers, or
    the mean colour."""


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix of neighbouring rows of the batch.

    Random draws are keyed by (seed, epoch, the pair's indices or the step). Each row keeps at least half of its own
    image; ledger and accuracy refer to that sample.
    """

    mixup: float = 0.0
    """Mixup: alpha of the Beta distribution of the mixing weight; 0: no mixup."""
    cutmix: float = 0.0
    """CutMix: alpha of the Beta distribution of the mixing weight; 0: no CutMix, unless cutmix_minmax is given."""
    cutmix_minmax: tuple[float, float] | None = None
    """CutMix: minimum and maximum side of the boxes as fractions of the image's side, such as [0.2, 0.8], in place of
    cutmix; null: by cutmix."""
    mode: Literal["pair", "elem", "batch"] = "pair"
    """Which rows share one mixing weight, box and choice of mixup or CutMix: the two rows of a pair; no two rows
    (elem); all rows of a step's global batch (batch). timm's default is batch."""
    probability: float = 1.0
    """Probability that a pair, row or batch is mixed at all."""
    switch: float = 0.5
    """Probability of CutMix rather than mixup, where both are on."""
    off_epoch: int | None = None
    """Epoch, from 0, at which mixing is switched off; null: never."""


@dataclass(frozen=True)
class CanaryConfig:
    """Canaries: altered training samples, to test whether the measures find them (`rlpheads canaries`). 0: none."""

    mislabelled: int = 0
    """Number of training images that get a wrong class."""
    repeated: int = 0
    """Number of training images that are in the training set several times (duplicates)."""
    repeats: int | list[int] = field(default_factory=lambda: [2, 4, 8])
    """Copies of each repeated image in total; a list: the repeated images take its numbers in turn."""
    near_duplicates: int = 0
    """Number of training images of which a near-duplicate is added: a copy, a tenth darker."""


@dataclass(frozen=True)
class DataConfig:
    """Data set, loader and preprocessing of the images."""

    dataset: Literal["digits", "patches", "synthetic", "imagefolder", "cifar10", "cifar100", "plugin"] = "digits"
    """digits: scikit-learn's 1,797 handwritten digits; patches: tiles of 32 x 32 pixels, of ten photographs inside
    scikit-image and scikit-learn; synthetic: computed noise, for throughput; imagefolder: ROOT/{train,val}/CLASS/FILE or
    ROOT/CLASS/FILE; cifar10, cifar100: the official Python files in ROOT; plugin: what open_images of a module of plugins
    opens."""
    root: str | None = None
    """Folder of the images (imagefolder, cifar10, cifar100), or of the store that `rlpheads convert` made of any data
    set."""
    download: bool = False
    """Fetch CIFAR's archive into root where it is missing."""
    val_fraction: float | None = None
    """Fraction of each class that is held out for validation where a data set has no split of its own (digits, patches,
    a tree without a val/ folder), in (0, 1); null: 0.2 for digits and patches."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    loader: Literal["torch", "ffcv", "dali"] = "torch"
    """Library that loads and decodes the images. torch: any images, in worker processes; ffcv: a store, in threads;
    dali: any images, in threads or on the GPU. Samples and crops are the same; pixels differ by a fifth of a level on
    average."""
    dali: DaliConfig = field(default_factory=DaliConfig)
    workers: int = 2
    """Worker processes (torch) or threads (ffcv, dali) that decode for each rank, at most one for each core; 0: torch
    decodes in the training process. Changes no result."""
    image_size: int = 224
    """Side of the model's square input images, in pixels."""
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    crop: Literal["random_resized", "pad"] = "random_resized"
    """Training crop. random_resized: a box of random area and aspect ratio, resized; pad: the whole image, padded with
    black and randomly shifted (as usual for CIFAR; of an image that is not square, the largest square in its
    middle)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of a training crop as a fraction of the image, minimum and maximum (random_resized)."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratio of a training crop (width over height), minimum and maximum (random_resized)."""
    crop_padding: int = 4
    """Padding on each side, in pixels of the model's image (pad)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation with which crops are resized, in training and evaluation, antialiased; pretrained weights that had another
    are refused. timm's and DeiT's vision transformers are trained with bicubic."""
    hflip: float = 0.5
    """Probability of a horizontal flip in training."""
    eval_crop_fraction: float = 0.875
    """Center crop of evaluation (timm's crop_pct): the short side is resized to image_size / this, then the centre is
    cropped."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Normalisation: means of the channels, which are subtracted, for pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Normalisation: standard deviations of the channels, which are divided by, for pixels in [0, 1]."""
    repeats: int = 1
    """Repeated augmentation (DeiT): how often each training image stands in a global batch, augmented otherwise each time; an
    epoch has as many steps as with 1, and reads that many times fewer images."""
    partial: Literal["drop", "pad"] = "drop"
    """Last, incomplete global batch of a training epoch: dropped, or padded with rows that count nowhere."""
    verified: str | None = None
    """Folder of the report that `rlpheads verify` wrote of an imagefolder; null: ROOT/.rlpheads, where there is one."""
    rescan: bool = False
    """Scan an imagefolder in any case. Else the listing of a tree of 10,000 files or more is kept in the user's cache and taken
    again until a folder's times or a sample of its files change."""
    stage: str | None = None
    """Folder on the node's own disk, such as /local/scratch: before the first step the first rank of each node copies what is
    read there, the files of an imagefolder or a store, unless they are there already. null: images are read from root.
    Changes no result."""
    exif: Literal["ignore", "apply"] = "ignore"
    """EXIF orientation of the files of an imagefolder. ignore: pixels as they are stored, as ImageNet's reference pipelines;
    apply: images turned as it says. A store has it from `rlpheads convert`. Part of the data set's fingerprint."""
    on_error: Literal["raise", "skip"] = "raise"
    """Image that cannot be read. raise: end the run and name it; skip: leave it out, named, counted and marked in the
    ledger; a run that goes on leaves out what is gone since it began, too."""
    max_skipped: int | None = None
    """Quota of on_error skip: number of images that cannot be read above which the run ends; counted by each rank as it
    meets them, and over all ranks in every evaluation. null: no limit."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    label_noise: float = 0.0
    """Label noise: fraction of the training images whose class is replaced by another, in [0, 1)."""
    label_noise_kind: Literal["symmetric", "pairwise"] = "symmetric"
    """Label noise: symmetric: any other class with equal probability; pairwise: always the next class (the first after
    the last)."""
    canaries: CanaryConfig = field(default_factory=CanaryConfig)

    @property
    def early_sizes(self) -> tuple[int, ...]:
        """Sides of the training images in the first epochs, one an epoch; later ones have `image_size`."""
        return self.progressive.sizes(self.image_size)

    @property
    def least_size(self) -> int:
        """Side of the smallest training images."""
        return min((self.image_size, *self.early_sizes))
