"""The training step: who trains whom, what padding and accumulation change (nothing), and no host synchronisation."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.engine.config.data import AugmentConfig, MixConfig
from rlpheads.engine.config.learning import AverageConfig, RegularizerConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.gauges.meters import Meters
from rlpheads.engine.learner.ema import build_average
from rlpheads.engine.learner.learner import Learner, build_heads
from rlpheads.engine.learner.parts import build_part, with_loss_scale, with_pending_update
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.step import TrainStep, build_routes
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.training.loading import augment_spec, mix_spec
from rlpheads.engine.training.training import Training
from rlpheads.loaders.augment.mixing import Mixer
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.contract.batch import Batch
from rlpheads.memorization.heads.combined_loss import TermWeights
from rlpheads.memorization.records.ledger import Ledger

Build = Callable[..., Training]


def take_steps(training: Training, num_steps: int) -> list[dict[str, Tensor]]:
    training.learner.train()
    batches = iter(training.splits.trained.loader)
    return [
        training.step(training.preparation.for_evaluation(next(batches)), number, training.term_weights)
        for number in range(num_steps)
    ]


def backbone_of(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in training.learner.tapped.state_dict().items()}


def heads_of(training: Training) -> dict[str, Tensor]:
    assert training.learner.heads is not None
    return {name: tensor.clone() for name, tensor in training.learner.heads.module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.long
def test_heads_leave_the_backbone_bit_identical(tiny: Config, build: Build):
    clipped = replace(tiny, optim=replace(tiny.optim, clip_norm=0.5))
    with_heads = build(clipped)
    without = build(clipped, heads=replace(tiny.heads, taps="none"))
    take_steps(with_heads, 4)
    take_steps(without, 4)
    assert same(backbone_of(with_heads), backbone_of(without))


@pytest.mark.long
def test_what_heads_drop_and_learn_leaves_the_backbone_bit_identical(tiny: Config, build: Build):
    """The backbone's own dropout is drawn between the heads' of one micro-batch and of the next."""
    heads = replace(tiny.heads, hidden=8, dropout=0.3)
    with_heads = build(tiny, accumulate=2, heads=heads)
    without = build(tiny, accumulate=2, heads=replace(tiny.heads, taps="none"))
    take_steps(with_heads, 3)
    take_steps(without, 3)
    assert same(backbone_of(with_heads), backbone_of(without))


@pytest.mark.long
def test_regularizer_trains_the_backbone_and_leaves_the_heads_gradient_alone(tiny: Config, build: Build):
    plain = build(tiny)
    regularized = build(tiny, regularizer=RegularizerConfig(kind="uniform", factor=1.0))
    take_steps(plain, 1)
    take_steps(regularized, 1)
    assert same(heads_of(plain), heads_of(regularized))  # the first step sees the same features
    assert not same(backbone_of(plain), backbone_of(regularized))


@pytest.mark.long
def test_joint_lets_the_labels_reach_the_backbone(tiny: Config, build: Build):
    plain, joint = build(tiny), build(tiny, heads=replace(tiny.heads, joint=1.0))
    take_steps(plain, 1)
    take_steps(joint, 1)
    assert not same(backbone_of(plain), backbone_of(joint))


@pytest.mark.long
def test_only_the_regularized_taps_reach_the_backbone(tiny: Config, build: Build):
    """A regulariser at the first block changes nothing behind it in the first step."""
    plain = build(tiny, model=replace(tiny.model, args={**tiny.model.args, "drop_rate": 0.0}))
    first = build(
        tiny,
        model=plain.run.config.model,
        regularizer=RegularizerConfig(kind="uniform", factor=10.0, taps=[0]),
    )
    take_steps(plain, 1)
    take_steps(first, 1)
    changed = {name for name, tensor in backbone_of(plain).items() if not torch.equal(tensor, backbone_of(first)[name])}
    assert changed
    assert not any("blocks.1" in name or name.startswith("backbone.head") for name in changed)


@pytest.mark.long
def test_accumulation_changes_the_sums_by_rounding_only(tiny: Config, build: Build):
    config = replace(tiny, model=replace(tiny.model, args={**tiny.model.args, "drop_rate": 0.0}))
    whole, parts = build(config), build(config, accumulate=4)
    shares, shares_in_parts = take_steps(whole, 1)[0], take_steps(parts, 1)[0]
    for name, value in shares.items():
        torch.testing.assert_close(shares_in_parts[name], value, rtol=1e-5, atol=1e-6)
    left, right = whole.splits.trained.ledger.tensors(), parts.splits.trained.ledger.tensors()
    torch.testing.assert_close(left["class_loss"], right["class_loss"], rtol=1e-5, atol=1e-6)
    assert torch.equal(left["count"], right["count"])


@pytest.mark.long
def test_padding_rows_count_nowhere(tiny: Config, build: Build):
    config = replace(tiny, model=replace(tiny.model, args={**tiny.model.args, "drop_rate": 0.0}))
    short, padded = build(config), build(config)
    rows = next(iter(short.splits.trained.loader))
    half = Batch(rows.images[:16], rows.targets[:16], rows.index[:16], 16)
    blank = torch.zeros_like(rows.images[:16])
    full = Batch(
        torch.cat([half.images, blank]),
        torch.cat([half.targets, torch.zeros(16, dtype=torch.int64)]),
        torch.cat([half.index, torch.full((16,), -1)]),
        16,
    )
    short.learner.train()
    padded.learner.train()
    expected = short.step(short.preparation.for_evaluation(half), 0, short.term_weights)
    obtained = padded.step(padded.preparation.for_evaluation(full), 0, padded.term_weights)
    for name, value in expected.items():
        torch.testing.assert_close(obtained[name], value, rtol=1e-5, atol=1e-6)
    assert padded.splits.trained.ledger.num_seen == 16
    torch.testing.assert_close(backbone_of(padded), backbone_of(short), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_dropout_depends_on_the_step_and_not_on_what_ran_before(tiny: Config, build: Build):
    straight, disturbed = build(tiny), build(tiny)
    take_steps(straight, 2)
    disturbed.learner.train()
    batches = iter(disturbed.splits.trained.loader)
    for number in range(2):
        torch.rand(7)
        disturbed.step(disturbed.preparation.for_evaluation(next(batches)), number, disturbed.term_weights)
    assert same(backbone_of(straight), backbone_of(disturbed))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["unlikelihood", "uniform", "reversal", "entropy"])
def test_regularizer_lowers_its_own_heads_accuracy(tiny: Config, build: Build, kind: str):
    """method.md, known answer 7, on the digits: after the same steps a regularised head knows fewer labels."""
    config = replace(tiny, optim=replace(tiny.optim, lr=3e-3), data=replace(tiny.data, crop_scale=(1.0, 1.0)))

    def last_losses(factor: float) -> float:
        training = build(config, regularizer=RegularizerConfig(kind=kind, factor=factor))
        training.learner.train()
        number = 0
        for epoch in range(6):
            training.splits.trained.loader.set_epoch(epoch)
            for batch in training.splits.trained.loader:
                training.step(training.preparation.for_evaluation(batch), number, training.term_weights)
                number += 1
        return float(training.splits.trained.ledger.label_accuracy_TM.mean())

    assert last_losses(5.0) < last_losses(0.0)


def make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace a module's parameters by fake ones (timm's constructors compute with values, so they run for real)."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            setattr(child, name, mode.from_tensor(parameter))


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "precision", "update"),
    [
        (None, "fp32", "separate"),
        ("unlikelihood", "fp32", "separate"),
        ("entropy", "fp32", "separate"),
        ("uniform", "fp16", "separate"),
        ("entropy", "fp16", "fused"),
    ],
)
def test_step_never_waits_for_the_device(tiny: Config, launched, kind: str | None, precision: str, update: str):
    """Augmentations, mixup, taps, heads, clipping, accumulation, EMA and ledger run on fake tensors, without values."""
    config = replace(
        tiny,
        accumulate=2 if update == "separate" else 1,
        precision=precision,
        optim=replace(tiny.optim, clip_norm=1.0),
        model=replace(
            tiny.model, ema_decay=0.9, label_smoothing=0.1, loss="bce" if kind == "entropy" else "cross_entropy"
        ),
        data=replace(
            tiny.data,
            crop="pad",
            augment=AugmentConfig(policy="rand", cutout=2, erase=0.5, color_jitter=(0.3, 0.3, 0.3, 0.0)),
            mix=MixConfig(mixup=0.8, cutmix=1.0),
        ),
        heads=replace(
            tiny.heads,
            joint=0.5,
            labels=5 if update == "separate" else 1200,
            optim=replace(tiny.heads.optim, clip_norm=1.0),
        ),
        regularizer=RegularizerConfig(kind=kind or "uniform", factor=1.0 if kind else 0.0),
    )
    model = build_model(config, 10)
    heads, audit = build_heads(config, (24, 24), "heads", 2), build_heads(config, (24, 24), "audit", 1)
    ema = build_average(model, 0.9, AverageConfig(warmup=True))
    span = Span(epochs=2, steps_per_epoch=5)
    host_index = np.zeros(32, dtype=np.int64)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        for module in (model, heads, audit, ema.module):
            make_fake(module, mode)
        optims = ((model, config.optim), (heads, config.heads.optim), (audit, config.heads.optim))
        parts = [build_part(module, optim, config.schedule, span, ddp=False) for module, optim in optims]
        if precision == "fp16":
            parts = [with_loss_scale(part, config.loss_scale, torch.device("cpu")) for part in parts]
        if update == "fused":
            parts[1:] = [with_pending_update(part) for part in parts[1:]]
        learner = Learner(*parts, ema, dims=(24, 24))
        step = TrainStep(
            learner=learner,
            table_MN=torch.zeros(3, 100, dtype=torch.int32),
            ledger=Ledger(100, 2, 3),
            routes=build_routes(config, model, 1),
            config=config,
            rank=0,
        )
        images = torch.zeros(32, 3, 8, 8, dtype=torch.uint8)
        zeros = torch.zeros(32, dtype=torch.int64)
        batch = Batch(images, zeros, zeros, 32, host_index=host_index)
        augment = Augment(augment_spec(config.data), Normalize(config.data.mean, config.data.std), seed=0)
        mixer = Mixer(mix_spec(config.data), seed=0)
        meters = Meters(torch.device("cpu"), world_size=1)
        weights = TermWeights(config.regularizer.factor, config.heads.joint)
        learner.train()
        for number in range(2):
            shares = step(
                mixer(batch.with_images(augment(batch.images, zeros, number, host_index)), number, 0), number, weights
            )
            meters.add(number + 1, shares)
    assert {"class_loss", "head_cross_entropy", "joint", "top1", "rla_first", "rla_last"} <= shares.keys()
    assert ("regularizer" in shares) == (kind is not None)


def test_fake_tensors_do_catch_a_host_read():
    with FakeTensorMode(), pytest.raises(Exception, match="_local_scalar_dense"):
        torch.zeros(2).sum().item()


@pytest.mark.long
def test_audit_heads_change_nothing(tiny: Config, build: Build):
    """Not the backbone, not the heads: their labels reach nothing but themselves."""
    regularized = replace(tiny, regularizer=RegularizerConfig(kind="uniform", factor=1.0))
    plain = build(regularized, heads=replace(tiny.heads, audit_draws=0))
    audited = build(regularized, heads=replace(tiny.heads, audit_draws=2))
    take_steps(plain, 3)
    shares = take_steps(audited, 3)[-1]
    assert same(backbone_of(plain), backbone_of(audited))
    assert same(heads_of(plain), heads_of(audited))
    assert {"audit_head_cross_entropy", "audit_rla_first"} <= shares.keys()
    assert audited.splits.trained.ledger.label_accuracy_TM.shape == (2, 4)


@pytest.mark.long
def test_audit_is_on_by_default_where_something_acts_on_the_labels(tiny: Config, build: Build):
    assert build(tiny).learner.audit is None
    assert build(tiny, regularizer=RegularizerConfig(factor=1.0)).learner.audit is not None
    assert build(tiny, heads=replace(tiny.heads, joint=1.0)).learner.audit is not None


@pytest.mark.long
def test_unknown_regularized_tap_is_refused(tiny: Config, build: Build):
    config = replace(tiny, heads=replace(tiny.heads, taps=[1]), regularizer=RegularizerConfig(factor=1.0, taps=[0]))
    with pytest.raises(ValueError, match=r"regularizer\.taps names \[0\], where no head is; heads\.taps are \[1\]"):
        build(config)
