"""The configuration of a run: frozen dataclasses, one a concern; their field docstrings are the help.

Every field that changes a result is here, and the resolved configuration is written into the run folder once, at start.
`rlpheads.engine.config.command_line` turns files and flags into a `Config`; the checks that need more than one field are in
`rlpheads.engine.checks.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlpheads.engine.config.schema_log import LogConfig
from rlpheads.engine.config.schema_records import CheckpointConfig, EvalConfig, LedgerConfig
from rlpheads.engine.config.schema_runtime import RuntimeConfig
from rlpheads.engine.config.schema_training import AverageConfig, EarlyStoppingConfig, LossScaleConfig

Precision = Literal["fp32", "bf16", "fp16"]
RegularizerKind = Literal["unlikelihood", "uniform", "reversal", "entropy"]


@dataclass(frozen=True)
class RunConfig:
    """Where a run is written, and what happens when it is already there."""

    dir: str = "runs"
    """Folder that holds the run folders."""
    name: str = ""
    """Name of the run folder; empty: the name of the last --config file without its suffix."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: continue from the newest whole checkpoint, if any; must: fail without one; never: fail if a run is there."""
    overwrite: bool = False
    """Delete an existing run folder of this name first."""


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


@dataclass(frozen=True)
class ModelConfig:
    """The classifier under study."""

    name: str = "vit_tiny_patch16_224"
    """Name of a timm model that offers forward_intermediates."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as {embed_dim: 192, depth: 6, drop_path_rate: 0.1}."""
    pretrained: bool = False
    """Start from the weights that timm publishes for the name, fetched from the Hugging Face hub unless they are there."""
    checkpoint: str | None = None
    """Start from the weights in a local file (safetensors, or a .pth of timm's or PyTorch's); null: none."""
    frozen: bool = False
    """Leave the weights as they are and train the heads alone: to measure a network, in evaluation mode."""
    sync_batchnorm: bool = False
    """Batch norm over the images of all ranks; a network with batch norm needs it on several ranks. Changes nothing on
    one. Micro-batches (accumulate) are normalised one by one."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Class loss: cross-entropy of the softmax; bce: of a sigmoid for each class, averaged over the classes (DeiT III).
    Ledgers and evaluations always hold the former, of the row's own class."""
    bce_threshold: float | None = None
    """bce: classes whose target (of mixed images) is above this count as 1, others as 0; null: targets as they are."""
    label_smoothing: float = 0.0
    """Label smoothing of the class loss, in [0, 1)."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is evaluated beside them; null: none."""
    ema: AverageConfig = field(default_factory=AverageConfig)


@dataclass(frozen=True)
class OptimConfig:
    """An optimizer of timm's factory and what is done to its gradients."""

    name: str = "adamw"
    """Name of a timm optimizer."""
    lr: float = 1e-3
    """Peak learning rate, at base_batch_size where that is given."""
    base_batch_size: int | None = None
    """Global batch that lr is meant for: it is scaled to batch_size. null: lr as it is."""
    batch_scaling: Literal["linear", "sqrt"] = "linear"
    """How lr grows with batch_size over base_batch_size."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not applied to biases, norms and what the model excepts (position embeddings, class token)."""
    momentum: float = 0.9
    """Momentum, or Adam's first beta."""
    layer_decay: float | None = None
    """Each layer's rate is this fraction of that of the layer behind it, in (0, 1], and the classifier's is lr; null: all
    alike. For the network alone: heads have no layers."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; null: no clipping."""
    clip_value: float | None = None
    """Largest entry of the gradient; null: no clipping."""
    clip_agc: float | None = None
    """Adaptive clipping (Brock et al., 2021): largest norm of a unit's gradient over that of its weights; null: none."""


@dataclass(frozen=True)
class HeadsConfig:
    """The random-label prediction heads that measure."""

    labels: int | Literal["auto"] = 10
    """K, the number of random labels. auto: the largest with which the heads alone stay within 5 points of chance on
    this many images and features; settled when the run begins, and written into its config.yaml."""
    draws: int = 1
    """M, the number of independent random labels of each sample, each with a head of its own at every tap."""
    audit_draws: int | None = None
    """Further draws whose heads only measure: the regulariser and the joint term never see their labels, so they find
    memory that a regulariser hides from its own heads. null: 1 where there is a regulariser or joint term, else 0."""
    taps: Literal["all", "none", "inside"] | list[int | str] = "all"
    """Where heads read: after all blocks (or stages), nowhere, inside all blocks (after attention and after the MLP), or a
    list of places: block numbers (negative: from the end), 3.attn, 3.mlp, names of modules such as layer2.0."""
    pool: Literal["auto", "token", "mean"] = "auto"
    """How tokens become a feature vector: the class token, the mean of the patch tokens, or as the classifier does."""
    norm: bool = True
    """Normalise the features (layer norm without parameters) before the heads."""
    hidden: int | None = None
    """Units of a hidden layer (ReLU) of each head's own; null: linear heads. What is reported as the head-only baseline, and
    what labels auto goes by, stays that of a linear head."""
    dropout: float = 0.0
    """Share of the features that is dropped in training, after the norm, in [0, 1)."""
    joint: float = 0.0
    """Weight μ with which the heads' cross-entropy trains the backbone too (0: heads only)."""
    balance: Literal["iid", "balanced", "per_class"] = "iid"
    """iid: labels are drawn independently; balanced: each equally often; per_class: independently, heads.labels of them
    for each class, and a head chooses among those of the image's class."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.0))
    """Optimizer of the heads."""

    @property
    def num_labels(self) -> int:
        """K, once it is settled.

        Raises:
            ValueError: it is still auto.
        """
        if self.labels == "auto":
            raise ValueError("heads.labels is auto, and is settled only when a run begins")
        return self.labels

    def num_blocks(self, num_classes: int) -> int:
        """Return how many heads of K labels one head is made of: one for each class, or one for all."""
        return num_classes if self.balance == "per_class" else 1


@dataclass(frozen=True)
class RegularizerConfig:
    """The term on the heads' output that trains the backbone to memorise less."""

    kind: RegularizerKind = "unlikelihood"
    """Which function of the head's output is minimised."""
    factor: float = 0.0
    """Weight λ; at 0 (and heads.joint 0) the backbone is bit-identical to one trained without heads."""
    taps: Literal["all"] | list[int | str] = "all"
    """Which of the heads' taps are regularised, by the same names."""
    target: float | None = None
    """Wanted clean random-label accuracy of the audit heads minus the head-only baseline, averaged over the regularised
    taps (0.02: two points above it); the baseline is a linear head's, also with heads.hidden. λ then starts at factor and is
    steered after every clean pass; null: λ is factor."""
    target_rate: float = 20.0
    """How hard λ is steered: a clean pass multiplies it by exp(target_rate x (accuracy - baseline - target))."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rates go, by timm's schedulers, updated at every step."""

    name: Literal["cosine", "linear", "step", "multistep", "constant"] = "cosine"
    """cosine, linear: down to min_lr_fraction; step: times decay_rate every decay_every epochs; multistep: times decay_rate
    at each of the milestones; constant: the peak throughout. All after the warm-up."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up."""
    min_lr_fraction: float = 0.0
    """Last learning rate as a fraction of the peak (cosine, linear)."""
    cooldown_epochs: float = 0.0
    """Epochs at the end, at the last learning rate (cosine, linear)."""
    cycles: int = 1
    """How often the way down is gone: the rate starts again at the peak (cosine, linear)."""
    cycle_decay: float = 1.0
    """Peak of each cycle as a fraction of the one before, in (0, 1]."""
    decay_every: float = 30.0
    """Epochs between the steps (step)."""
    milestones: list[float] = field(default_factory=list)
    """Epochs at which the rate falls, ascending (multistep)."""
    decay_rate: float = 0.1
    """What is left of the rate at each fall, in (0, 1] (step, multistep)."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    seed: int = 0
    """Seed of every stream of random numbers."""
    epochs: int = 90
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedule still spans all epochs. null: no limit."""
    batch_size: int = 1024
    """Global batch: samples of one optimizer step over all ranks."""
    accumulate: int = 1
    """Micro-batches that a rank's share of the batch is cut into."""
    precision: Precision = "fp32"
    """Autocast type of forward and backward; weights and optimizer states stay fp32."""
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and updates of the progress display. Changes no result."""
    verbose: bool = False
    """Say when a checkpoint is written."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: LogConfig = field(default_factory=LogConfig)
