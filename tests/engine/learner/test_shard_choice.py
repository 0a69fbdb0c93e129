"""Whether heads are sharded: bytes held and bytes sent, and what is said of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.learning import OptimConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner import shard_choice
from rlpheads.engine.learner.shard_choice import (
    HeadWorkload,
    choose_sharding,
    head_workload,
    num_optimizer_states,
    update_line,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


CONFIGS = Path(__file__).parent.parent.parent.parent / "configs"


@pytest.fixture
def imagenet() -> Config:
    return parse_config(["--config", str(CONFIGS / "imagenet_vit_b.yaml")])


def workload(config: Config, device: torch.device = CPU) -> HeadWorkload:
    return head_workload(config, (768,) * 12, 1000, 0, device)


def test_costs_of_the_headline_job(imagenet):
    """Twelve heads of 100,000 labels at D = 768 over eight ranks, in half precision on GPUs."""
    work = workload(imagenet, GPU)
    whole, sharded = work.whole(8), work.sharded(8)
    num_parameters = 12 * 100_000 * 769
    stepped_elsewhere = 12 * 87_500 * 768  # weights, and no biases
    assert whole == (18 * num_parameters - 8 * stepped_elsewhere, 2 * 7 * 4 * num_parameters // 8)
    assert sharded.memory == 18 * num_parameters // 8
    of_features, of_partials = 7 * 128 * (12 * 768 * 2 + 1 + 4), 7 * 1024 * 12 * 7 * 4
    assert sharded.traffic == of_features + of_partials
    assert (
        workload(replace(imagenet, heads=replace(imagenet.heads, labels=10)), GPU).sharded(8).traffic == sharded.traffic
    )


@pytest.mark.parametrize(
    ("layers", "num_taps", "num_gpus"),
    [(["imagenet_vit_b"], 12, (1, 2, 8, 64)), (["imagenet_vit_b", "imagenet_vit_b_every_sample"], 3, (8, 64))],
)
def test_headers_of_the_configs_say_what_the_formula_gives(layers, num_taps, num_gpus):
    files = [CONFIGS / f"{layer}.yaml" for layer in layers]
    config = parse_config([argument for file in files for argument in ("--config", str(file))])
    work = head_workload(config, (768,) * num_taps, 1000, 0, GPU)
    lines = [" ".join(line.split()) for line in files[-1].read_text().splitlines()]
    for ranks in num_gpus:
        costs = [str(each(ranks)).replace(" a rank", "").replace(" a step", "") for each in (work.whole, work.sharded)]
        assert f"# {ranks} {' '.join(costs)}".replace(", 0 B sent", "") in lines


def test_a_label_for_every_image():
    files = [CONFIGS / f"imagenet_vit_b{ending}.yaml" for ending in ("", "_every_sample")]
    config = parse_config([argument for file in files for argument in ("--config", str(file))])
    assert (config.heads.num_labels, config.heads.balance, config.heads.shard) == (1_281_167, "balanced", "class")
    assert config.model.name == "vit_base_patch16_224"
    chosen = choose_sharding(config, head_workload(config, (768,) * 3, 1000, 0, GPU), 8, CPU)
    assert chosen.line == (
        "heads.shard class: 6.65 GB a rank, 4.74 MB sent a step; none: 32.5 GB a rank, 20.7 GB sent a step"
    )


def test_a_fused_update_keeps_no_gradients_but_those_that_ranks_average(imagenet):
    work = workload(imagenet)
    num_parameters = 12 * 100_000 * 769
    assert work.fused
    whole = replace(work, in_ranges=False)
    assert [whole.whole(1).memory, whole.whole(8).memory] == [12 * num_parameters, 16 * num_parameters]
    assert work.sharded(8).memory == 12 * num_parameters // 8


def test_states_of_large_weights_are_spread_over_the_ranks(imagenet):
    """Where nothing looks at a whole gradient, nothing is compiled, and every rank has some classes of it."""

    def states(config: Config, world_size: int = 2) -> float:
        """Numbers that the optimizer keeps at a rank, over those of the parameters."""
        work = workload(config)
        parameters = work.num_parameters(work.num_classes)
        return work.whole(world_size).memory / 4 / parameters - 2

    def of_heads(**changes: Any) -> Config:
        return replace(imagenet, heads=replace(imagenet.heads, **changes))

    of_weights = 768 / 769
    assert states(imagenet) == pytest.approx(2 - of_weights)
    assert states(imagenet, 4) == pytest.approx(2 - 1.5 * of_weights)
    assert states(of_heads(labels=2731), 3) == pytest.approx(2 * (1 - of_weights * (1 - 911 / 2731)))
    assert states(of_heads(labels=2730)) == states(imagenet, 70_000) == 2
    assert states(of_heads(optim=OptimConfig(clip_agc=0.1))) == 2
    assert states(of_heads(optim=OptimConfig("lion"))) == pytest.approx(1 - of_weights / 2)
    assert states(replace(imagenet, runtime=replace(imagenet.runtime, compile=True))) == 2


def test_auto_says_how_heads_are_updated_and_why(imagenet):
    """923 million parameters: 4 bytes each of a gradient, written and read; AdamW reads and writes three times that."""
    fused, separate = (
        "11.1 GB a rank, 22.1 GB through memory a step",
        "14.8 GB a rank, 29.5 GB through memory a step",
    )

    def line(changed: Config, device: torch.device = CPU, world_size: int = 1, *, is_sharded: bool = False) -> str:
        return update_line(changed, workload(changed, device), world_size, device, is_sharded=is_sharded)

    assert line(imagenet) == f"heads.update auto: fused ({fused}), in tiles; separate: {separate}"
    assert line(replace(imagenet, accumulate=2)) == (
        f"heads.update auto: separate ({separate}), as accumulate is 2: micro-batches sum their gradients first; fused: {fused}"
    )
    on_gpu = (
        "heads.update auto: separate (16.6 GB a rank, 35.1 GB through memory a step), "
        "as steps in tiles are not measured on cuda yet; fused: 12.9 GB a rank, 24 GB through memory a step"
    )
    assert line(imagenet, GPU) == on_gpu  # with copies of 2 bytes, which a separate update leaves to be cast
    assert line(imagenet, world_size=8) == (
        "heads.update auto: separate (8.31 GB a rank, 10.2 GB through memory a step), "
        "as heads.shard is auto: the ranks average the gradients of whole heads first"
    )
    assert line(imagenet, world_size=8, is_sharded=True).startswith("heads.update auto: fused (1.38 GB a rank, 2.77 GB")
    lion = replace(imagenet, heads=replace(imagenet.heads, optim=OptimConfig("lion")))
    assert "as lion steps whole heads; adam, adamw, momentum, sgd do in tiles" in line(lion)
    for silent in ({"update": "fused"}, {"update": "separate"}, {"labels": 10}):
        assert line(replace(imagenet, heads=replace(imagenet.heads, **silent))) == ""


def test_audit_heads_hidden_layers_pairs_and_trained_features_cost_more(imagenet):
    work = workload(imagenet)
    plain = work.sharded(8).traffic
    rows = 7 * 128
    assert replace(work, trained_dims=(768, 768)).sharded(8).traffic - plain == rows * 4 * 2 * 768
    audited = replace(work, draws=(1, 1))
    assert audited.sharded(8).traffic - plain == rows * 4 + 7 * 1024 * 12 * 7 * 4
    assert replace(audited, drops=True).sharded(8).traffic - audited.sharded(8).traffic == rows * 12 * 768 * 4
    assert replace(work, mixed=True).sharded(8).traffic - plain == rows * 8 + 7 * 1024 * 12 * 4
    hidden = replace(work, hidden=64, fused=False)
    layers = 12 * 64 * 769
    assert hidden.num_parameters(10) == 12 * 10 * 65 + layers
    assert hidden.sharded(8).memory == 16 * (12 * 12_500 * 65 + layers)


def test_auto_shards_where_the_update_is_to_be_fused(imagenet):
    """Few labels too, which would send less whole: only a rank's own gradients are taken as they are made."""
    few = replace(imagenet, heads=replace(imagenet.heads, labels=10, update="fused"))
    chosen = choose_sharding(few, workload(few), 2, CPU)
    assert chosen.is_sharded
    assert "as heads.update fused needs it; none: " in chosen.line
    assert not choose_sharding(few, workload(few), 1, CPU).is_sharded


def test_auto_takes_what_sends_less_and_says_both(imagenet):
    chosen = choose_sharding(imagenet, workload(imagenet), 8, CPU)
    assert chosen.is_sharded
    assert chosen.line == (
        "heads.shard auto: class (1.38 GB a rank, 35.4 MB sent a step), which sends less than none "
        "(8.31 GB a rank, 6.46 GB sent a step)"
    )
    few = replace(imagenet, heads=replace(imagenet.heads, labels=100))
    refused = choose_sharding(few, workload(few), 8, CPU)
    assert not refused.is_sharded
    assert refused.line == (
        "heads.shard auto: none (14.8 MB a rank, 6.46 MB sent a step), which sends less; "
        "class: 1.92 MB a rank, 35.4 MB sent a step"
    )


def test_auto_shards_what_does_not_fit_though_it_sends_more(imagenet, monkeypatch):
    few = replace(imagenet, heads=replace(imagenet.heads, labels=100))
    monkeypatch.setattr(shard_choice, "_memory_of", lambda _device: 2e7)
    chosen = choose_sharding(few, workload(few), 8, CPU)
    assert chosen.is_sharded
    assert "as whole heads would not fit" in chosen.line


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optim": OptimConfig("lamb")}, "as lamb looks at whole matrices"),
        ({"optim": OptimConfig(clip_agc=0.1)}, "as heads.optim.clip_agc needs whole matrices"),
        ({"labels": 10}, "as 10 labels over 16 ranks would leave some without any"),
    ],
)
def test_auto_says_why_it_cannot_shard(imagenet, changes, reason):
    config = replace(imagenet, heads=replace(imagenet.heads, **changes))
    chosen = choose_sharding(config, workload(config), 16, CPU)
    assert not chosen.is_sharded
    assert reason in chosen.line


@pytest.mark.parametrize(("setting", "is_sharded"), [("none", False), ("auto", False), ("class", True)])
def test_one_rank_has_nothing_to_choose(imagenet, setting, is_sharded):
    config = replace(imagenet, heads=replace(imagenet.heads, shard=setting))
    assert choose_sharding(config, workload(config), 1, CPU) == (is_sharded, "")


@pytest.mark.parametrize(
    ("name", "momentum", "expected"), [("adamw", 0.9, 2), ("sgd", 0.9, 1), ("momentum", 0.0, 0), ("lion", 0.9, 1)]
)
def test_states_that_an_optimizer_keeps(name, momentum, expected):
    assert num_optimizer_states(OptimConfig(name, momentum=momentum)) == expected
