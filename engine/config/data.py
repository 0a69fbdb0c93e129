"""Settings of the images: what is read, by which loader, and how it is cropped, augmented, mixed and mislabelled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SyntheticConfig:
    """How many images data.dataset synthetic computes; their side is data.image_size."""

    train: int = 10_000
    """Training images."""
    val: int = 1_000
    """Held-out images."""
    classes: int = 10
    """Classes, as equally often as can be."""


@dataclass(frozen=True)
class SubsetConfig:
    """Which part of the training images is used. The choice is keyed by the images' names: less lies within more."""

    fraction: float = 1.0
    """Fraction of every class that is kept, in (0, 1], rounded up."""
    per_class: int | None = None
    """Images of each class, alike for all; null: as many as fraction says."""


@dataclass(frozen=True)
class DaliConfig:
    """How DALI decodes, where it is the loader."""

    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where: auto is the GPU that trains, if there is one. A GPU's JPEGs differ from a CPU's by a level here and there."""
    hardware_share: float = 0.65
    """Share of the JPEGs that a GPU's hardware engine decodes, where it has one (A100, H100 and later); best found by
    trying."""
    largest_image: tuple[int, int] = (0, 0)
    """Height and width in pixels for which the decoder sets memory of the GPU aside at the start; 0, 0: it grows, and each
    time pauses. [6430, 5980] holds all of ImageNet."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images on the device. Every draw is keyed by (seed, epoch, index), in any loader."""

    policy: Literal["none", "rand", "trivial", "auto_imagenet", "auto_cifar10", "three"] = "none"
    """Operations chosen for each image: rand: RandAugment; trivial: TrivialAugment, one operation of any strength; auto_...:
    AutoAugment as learned on that data; three: grey, solarised or blurred (DeiT III). The rand_ keys are for rand alone."""
    rand_ops: int = 2
    """Operations in a row."""
    rand_magnitude: float = 9.0
    """How strong they are, from 0 to 30, as in the paper and torchvision; timm's m9 with inc1 is 27."""
    rand_magnitude_std: float = 0.0
    """Standard deviation of the magnitude, over images and operations; timm's mstd0.5 is 1.5."""
    rand_probability: float = 1.0
    """Probability of each operation; timm's is 0.5."""
    rand_operations: Literal["torchvision", "timm"] = "torchvision"
    """Which operations: torchvision's 14 (one leaves the image alone), or the 15 of timm's inc1, which also inverts and
    brightens what is dark (SolarizeAdd), and leaves 4 bits and fewer where it posterizes."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """How far brightness, contrast and saturation go from 1, and the hue from 0 (at most 0.5), after the policy."""
    cutout: int = 0
    """Side in pixels of a square that is covered with the mean colour, its centre anywhere in the image; 0: none."""
    erase: float = 0.0
    """Probability of random erasing: a box is covered, after normalisation."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Area of the erased box as a fraction of the image, least and most."""
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)
    """Height over width of the erased box, least and most; the logarithm is uniform."""
    erase_fill: Literal["noise", "color", "mean"] = "noise"
    """What covers the box: a normal number for each pixel, one colour of normal numbers, or the mean colour."""


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix of neighbours in the batch.

    Draws are keyed by (seed, epoch, the pair's indices or the step). Each row keeps at least half of itself, and ledger and
    hits tell of that sample.
    """

    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0: no mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix's; 0: no CutMix, unless cutmix_minmax is given."""
    cutmix_minmax: tuple[float, float] | None = None
    """Least and most side of CutMix's boxes, as fractions of the image's, such as [0.2, 0.8], in place of cutmix; null: by
    cutmix."""
    mode: Literal["pair", "elem", "batch"] = "pair"
    """What shares one weight, box and choice of mixup or CutMix: the two rows of a pair; each row by itself (elem); the
    whole global batch of a step (batch). timm's default is batch."""
    probability: float = 1.0
    """Probability of mixing a pair, a row or a batch."""
    switch: float = 0.5
    """Probability of CutMix for what is mixed, where both are on."""
    off_epoch: int | None = None
    """Epoch, from 0, from which on nothing is mixed; null: never."""


@dataclass(frozen=True)
class CanaryConfig:
    """Training samples planted to see whether the measures find them; see `rlpheads canaries`. Counts of 0: none."""

    mislabelled: int = 0
    """Training images that are given a wrong class."""
    repeated: int = 0
    """Training images that stand in the training set several times."""
    repeats: int | list[int] = field(default_factory=lambda: [2, 4, 8])
    """How many times in total; a list: the repeated images take its numbers in turn."""
    near_duplicates: int = 0
    """Training images of which a copy, a tenth darker, is added."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how an image becomes the model's input."""

    dataset: Literal["digits", "patches", "synthetic", "imagefolder", "cifar10", "cifar100"] = "digits"
    """digits: scikit-learn's 1,797 handwritten digits; patches: tiles of 32 x 32 pixels, of ten photographs inside
    scikit-image and scikit-learn; synthetic: computed noise, for throughput; imagefolder: ROOT/{train,val}/CLASS/FILE or
    ROOT/CLASS/FILE; cifar10, cifar100: the official Python files in ROOT."""
    root: str | None = None
    """Folder of the images (imagefolder, cifar10, cifar100), or of the store that `rlpheads convert` made of any."""
    download: bool = False
    """Fetch CIFAR's archive into root where it is missing."""
    val_fraction: float | None = None
    """Fraction of each class that is held out where a data set has no split of its own (digits, patches, a tree without
    a val/ folder), in (0, 1); null: 0.2 for digits and patches."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    loader: Literal["torch", "ffcv", "dali"] = "torch"
    """Which library decodes. torch: any images, in worker processes; ffcv: a store, in threads; dali: any images, in
    threads or on the GPU. The same samples and crops; pixels differ by a fifth of a level on average."""
    dali: DaliConfig = field(default_factory=DaliConfig)
    workers: int = 2
    """Decoding processes (torch) or threads (ffcv, dali) for each rank, at most one for each core; 0: torch decodes in
    the training process. Changes no result."""
    image_size: int = 224
    """Side of the square images that the model sees, in pixels."""
    crop: Literal["random_resized", "pad"] = "random_resized"
    """How training cuts an image out: a box of random area and ratio, or the whole image, shifted within a black margin
    (CIFAR's way; of an image that is not square, the largest square in its middle)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of a training crop as a fraction of the image, least and most (random_resized)."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of a training crop, least and most (random_resized)."""
    crop_padding: int = 4
    """Margin in pixels of the model's image (pad)."""
    hflip: float = 0.5
    """Probability of a horizontal flip in training."""
    eval_crop_fraction: float = 0.875
    """Evaluation resizes the short side to image_size / this, then crops the centre."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means that are subtracted, in units of full intensity."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations that are divided by, in units of full intensity."""
    partial: Literal["drop", "pad"] = "drop"
    """The last, partial global batch of a training epoch: left out, or filled up with rows that count nowhere."""
    verified: str | None = None
    """Folder in which `rlpheads verify` wrote what it found of an imagefolder; null: ROOT/.rlpheads, where there is one."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image that cannot be read: end the run and name it, or leave it out, named, counted and marked in the ledger."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    label_noise: float = 0.0
    """Fraction of the training images whose class is replaced by another, in [0, 1)."""
    label_noise_kind: Literal["symmetric", "pairwise"] = "symmetric"
    """By which class: each other as likely, or always the next one (the first after the last)."""
    canaries: CanaryConfig = field(default_factory=CanaryConfig)
