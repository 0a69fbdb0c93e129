"""Settings of what learns: model, random-label heads, regularizer, optimizers, schedule, loss scale and early stopping."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

RegularizerKind = Literal["unlikelihood", "uniform", "reversal", "entropy"]


@dataclass(frozen=True)
class AverageConfig:
    """How the moving average of the weights follows them (model.ema_decay switches it on)."""

    every: int = 1
    """Optimizer steps between its updates; the decay is that of one update."""
    warmup: bool = False
    """Let the decay rise to model.ema_decay: after t updates it is 1 - (1 + t / warmup_gamma) ^ -warmup_power."""
    warmup_gamma: float = 1.0
    """The larger, the slower the decay rises (warmup)."""
    warmup_power: float = 2 / 3
    """The larger, the faster: with 2/3 it is 0.999 after 31,600 updates, with 3/4 after 10,000 (warmup)."""
    foreach: bool = True
    """Update all tensors in one call; false: one by one, which takes less memory. May change the last bits."""


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
class EarlyStoppingConfig:
    """When a run ends before its epochs are over. The schedules still span all epochs."""

    patience: int | None = None
    """Evaluations in a row without a better figure after which the run is done; null: never."""
    metric: Literal["eval_top1", "eval_loss", "eval_ema_top1", "eval_ema_loss"] = "eval_top1"
    """The figure, on the held-out images; eval_ema_...: of the averaged weights."""
    min_delta: float = 0.0
    """It is better only where it beats the best before by more than this."""


@dataclass(frozen=True)
class LossScaleConfig:
    """The factor that keeps fp16's small gradients from vanishing; network, heads and audit heads have one each."""

    initial: float = 65536.0
    """Where it starts (precision fp16). Each step whose gradients overflow is left out and halves it."""
    growth_every: int = 2000
    """Steps in a row without overflow after which it doubles (precision fp16)."""
