"""Settings of what learns: model, heads, regularizer, optimizers, schedule, loss scale, stability and early stopping."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

RegularizerKind = Literal["unlikelihood", "uniform", "reversal", "entropy"]


@dataclass(frozen=True)
class AverageConfig:
    """Exponential moving average (EMA) of the weights; model.ema_decay switches it on."""

    every: int = 1
    """Optimizer steps between EMA updates; the decay is that of one update."""
    warmup: bool = False
    """EMA warm-up: the decay rises to model.ema_decay; after t updates it is 1 - (1 + t / warmup_gamma) ^
    -warmup_power."""
    warmup_gamma: float = 1.0
    """EMA warm-up: the larger, the slower the decay rises."""
    warmup_power: float = 2 / 3
    """EMA warm-up: the larger, the faster the decay rises; with 2/3 it is 0.999 after 31,600 updates, with 3/4 after
    10,000."""
    foreach: bool = True
    """Update all tensors of the EMA in one call; false: one by one, which takes less memory. May change the last
    bits."""


@dataclass(frozen=True)
class ModelConfig:
    """The classifier that is trained and measured, and its loss."""

    name: str = "vit_tiny_patch16_224"
    """Name of a timm model with forward_intermediates, or wrn_16_4 or wrn_28_10 (wide residual networks for 32 x 32
    images)."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as {embed_dim: 192, depth: 6, drop_path_rate: 0.1}."""
    pretrained: bool = False
    """Start from timm's pretrained weights of this name, downloaded from the Hugging Face hub unless they are
    cached."""
    checkpoint: str | None = None
    """Start from the weights in a local file (safetensors, or a .pth of timm's or PyTorch's), or from those of a run: its
    folder, or one of its checkpoints; null: random initialisation."""
    frozen: bool = False
    """Freeze the network's weights and train the heads alone, to measure a network in evaluation mode."""
    sync_batchnorm: bool = False
    """Synchronised batch norm: statistics over the images of all ranks. A network with batch norm needs it on several
    ranks; on one it changes nothing. Micro-batches (accumulate) are normalised one by one."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Class loss. cross_entropy: of the softmax; bce: binary cross-entropy, of a sigmoid for each class, averaged over
    the classes (DeiT III). Ledgers and evaluations always hold the cross-entropy of the row's own class."""
    bce_threshold: float | None = None
    """bce: classes whose target (of mixed images) is above this threshold count as 1, others as 0; null: soft
    targets."""
    label_smoothing: float = 0.0
    """Label smoothing of the class loss, in [0, 1)."""
    ema_decay: float | None = None
    """Decay of an exponential moving average (EMA) of the weights, which is evaluated beside them; null: no EMA."""
    ema: AverageConfig = field(default_factory=AverageConfig)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer of timm's factory: learning rate, weight decay and gradient clipping."""

    name: str = "adamw"
    """Name of a timm optimizer."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that optimizer which have no key of their own, such as {eps: 1e-6, betas: [0.9, 0.95]}."""
    lr: float = 1e-3
    """Peak learning rate, for a batch of base_batch_size where that is given."""
    base_batch_size: int | None = None
    """Global batch size that lr is meant for: lr is scaled to batch_size. null: no scaling."""
    batch_scaling: Literal["linear", "sqrt"] = "linear"
    """Learning rate scaling with batch_size over base_batch_size: linear or by the square root."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not applied to biases, norms and what the model excludes (position embeddings, class
    token)."""
    momentum: float = 0.9
    """Momentum, or Adam's first beta, unless args has betas."""
    layer_decay: float | None = None
    """Layer-wise learning rate decay, in (0, 1]: the rate of each layer is this factor times that of the next one, and
    the classifier's is lr; null: all alike. For the network alone: heads have no layers."""
    clip_norm: float | None = None
    """Gradient clipping by norm: largest global norm of the gradient; null: none."""
    clip_value: float | None = None
    """Gradient clipping by value: largest absolute entry of the gradient; null: none."""
    clip_agc: float | None = None
    """Adaptive gradient clipping (AGC; Brock et al., 2021): largest norm of a unit's gradient over that of its weights;
    null: none."""


@dataclass(frozen=True)
class HeadsConfig:
    """Random-label prediction heads (RLP heads), which measure what the features hold of single images."""

    labels: int | Literal["auto"] = 10
    """K, the number of random labels. auto: the largest K with which the heads alone stay within 5 points of chance on
    this many images and features; chosen when the run starts, and written into its config.yaml."""
    draws: int = 1
    """M, the number of independent draws of a random label for each sample; each draw has a head of its own at every
    tap."""
    audit_draws: int | None = None
    """Draws for audit heads, which only measure: the regulariser and the joint term never see their labels, so they
    find memory that a regulariser hides from its own heads. null: 1 where there is a regulariser or joint term, else
    0."""
    taps: Literal["all", "none", "inside"] | list[int | str] = "all"
    """Taps, the places where heads read features: after all blocks (or stages), none, inside all blocks (after
    attention and after the MLP), or a list of places: block numbers (negative: from the end), 3.attn, 3.mlp, names of
    modules such as layer2.0."""
    pool: Literal["auto", "token", "mean"] = "auto"
    """Pooling of tokens into a feature vector: the class token, the mean of the patch tokens, or (auto) as the
    classifier does."""
    norm: bool = True
    """Normalise the features (layer norm without parameters) before the heads."""
    hidden: int | None = None
    """Hidden units (ReLU) of each head; null: linear heads. The head-only baseline in reports, and the choice of labels
    auto, stay those of a linear head."""
    dropout: float = 0.0
    """Dropout of the features in training, after the norm, in [0, 1)."""
    joint: float = 0.0
    """Weight μ of the heads' cross-entropy in the loss of the backbone (joint training); 0: it trains the heads
    alone."""
    balance: Literal["iid", "balanced", "per_class"] = "iid"
    """Distribution of the random labels. iid: drawn independently; balanced: each label equally often; per_class:
    independently, heads.labels of them for each class, and a head chooses among those of the image's class."""
    shard: Literal["none", "class", "auto"] = "none"
    """Sharding of the heads over the ranks. none: every rank holds all heads, and their gradients are averaged; class:
    every rank holds a range of each head's labels, and the features travel; auto: class where it sends fewer bytes, the
    heads would not fit otherwise, or their update is fused. What is learned stays the same."""
    update: Literal["separate", "fused", "auto"] = "auto"
    """Update of the heads. separate: the optimizer steps when the gradients of all heads are there; fused: each head is
    stepped as its gradient is made, which is nowhere kept (with adamw, adam, sgd or momentum) or only for one head at a
    time; auto: fused on a CPU where nothing is kept. What is learned stays the same."""
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

    def telling(self, *, audited: bool) -> Literal["own", "audit"]:
        """Return which heads tell what the network remembers: audit heads if there are any, from which no regulariser hides.

        With a joint term it is the own heads: the network learns their labels, and never sees those of the audit heads.
        """
        return "audit" if audited and self.joint == 0 else "own"

    @property
    def label_balance(self) -> Literal["iid", "balanced"]:
        """How the training images' labels are drawn: inside each class, where the classes have labels of their own."""
        return "balanced" if self.balance == "balanced" else "iid"


@dataclass(frozen=True)
class RegularizerConfig:
    """Regulariser: a loss of the heads' output that trains the backbone to memorise less."""

    kind: RegularizerKind = "unlikelihood"
    """Loss that the backbone minimises, with p the head's softmax and y the random label. unlikelihood: -log(1 - p_y);
    uniform: cross-entropy of p to equal probabilities; reversal: log p_y (gradient reversal, unbounded); entropy: log K
    minus the entropy of p."""
    factor: float = 0.0
    """Weight λ of the regulariser; at 0 (and heads.joint 0) the backbone is bit-identical to one trained without
    heads."""
    taps: Literal["all"] | list[int | str] = "all"
    """Taps that are regularised, by the same names as heads.taps."""
    target: float | None = None
    """Target for λ: clean random-label accuracy of the audit heads minus that of least-squares heads refitted to fresh
    labels on the same features (eval.refit; without it, minus the head-only baseline), averaged over the regularised taps.
    0.02: two points above; heads that are trained along stay below it, so that such a target lets λ fall. λ starts at
    factor and is adjusted after every clean pass, with a line; null: λ is factor."""
    target_rate: float = 20.0
    """Gain of the adjustment: a clean pass multiplies λ by exp(target_rate x (accuracy - refit - target)),
    by ten at most, and keeps it within a thousand times factor and a thousandth of it."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule (timm's schedulers), updated at every step."""

    name: Literal["cosine", "linear", "step", "multistep", "constant"] = "cosine"
    """Decay after the warm-up. cosine, linear: down to min_lr_fraction; step: times decay_rate every decay_every
    epochs; multistep: times decay_rate at each of the milestones; constant: no decay."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up to the peak learning rate, cut to the epochs of the run, or of its first cycle."""
    min_lr_fraction: float = 0.0
    """Final learning rate as a fraction of the peak (cosine, linear)."""
    cooldown_epochs: float = 0.0
    """Epochs of cool-down: at the end, at the final learning rate (cosine, linear)."""
    cycles: int = 1
    """Number of cycles, with warm restarts: each cycle starts again at the peak (cosine, linear)."""
    cycle_decay: float = 1.0
    """Decay factor of the cycles: peak of each one as a fraction of the peak of the one before, in (0, 1]."""
    decay_every: float = 30.0
    """Epochs between drops of the learning rate (step)."""
    milestones: list[float] = field(default_factory=list)
    """Epochs at which the learning rate drops, ascending (multistep)."""
    decay_rate: float = 0.1
    """Decay factor of the learning rate at each drop, in (0, 1] (step, multistep)."""

    @property
    def has_cycles(self) -> bool:
        """Whether this kind of decay can start again at the peak, and end in a cool-down."""
        return self.name in ("cosine", "linear")

    def first_cycle(self, epochs: int) -> float:
        """Return the epochs of the first cycle, which the warm-up is part of; not above 0: the cool-down leaves none."""
        return (epochs - self.cooldown_epochs) / max(self.cycles, 1) if self.has_cycles else epochs


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Early stopping: the run ends before its epochs are over. The schedules still span all epochs."""

    patience: int | None = None
    """Evaluations in a row without improvement after which the run ends; null: no early stopping."""
    metric: Literal["eval_top1", "eval_loss", "eval_ema_top1", "eval_ema_loss"] = "eval_top1"
    """Figure that must improve, on the held-out images; eval_ema_...: of the averaged weights (EMA)."""
    min_delta: float = 0.0
    """Improvement over the best figure so far that must be exceeded to count as one."""


@dataclass(frozen=True)
class StabilityConfig:
    """Training stability: steps that are not finite, spikes, and replicas that drift apart. Changes no finite step."""

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What a loss or gradient that is not finite does; its update is never taken. stop: end the run at the next log
    line; skip: leave the batch out, its rows of the ledger skipped, and after more than max_skipped in a row roll back;
    rollback: go back to the last checkpoint at once and leave the batch out from then on."""
    max_skipped: int = 3
    """Batches in a row that are skipped (on_nonfinite skip) before the run rolls back to its last checkpoint and leaves
    them out."""
    max_rollbacks: int = 3
    """Roll-backs to one checkpoint, and restarts by a launcher that end at one step, before the run stops for good."""
    spike_window: int = 100
    """Steps over which the mean and deviation of loss, gradient norms and image_rms are (exponentially) averaged, for
    z-scores."""
    spike_z: float = 10.0
    """z-score of the class loss, a gradient norm or image_rms (root mean square of the prepared images) from which on a
    step is named as a spike."""
    drift_every: int = 100
    """Steps between comparisons of a hash of the weights over the ranks, which ends the run where one differs; each
    reads every weight once. 0: none."""


@dataclass(frozen=True)
class LossScaleConfig:
    """Loss scaling, so that small gradients do not underflow in fp16; network, heads and audit heads have one each."""

    initial: float = 65536.0
    """Initial loss scale (precision fp16). Each step whose gradients overflow is skipped and halves it."""
    growth_every: int = 2000
    """Steps in a row without overflow after which the loss scale doubles (precision fp16)."""
