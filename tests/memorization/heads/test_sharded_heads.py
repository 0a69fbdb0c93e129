"""Heads sharded by class: what they compute is what whole heads compute, at any number of ranks."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_problems import KINDS, relative_error
from second_derivatives import WAYS
from simulated_ranks import (
    GlobalBatch,
    HeadProblem,
    HeadResults,
    evaluate_simulated,
    evaluate_whole,
    simulated_ranks,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.heads.sharded_heads import HeadCall, ShardedRLPHeads, forward_together

NUM_RANKS = (1, 2, 3, 4, 8, 16, 64)
TERMS = [HeadTerms(impl="reference"), HeadTerms(joint=True, impl="reference")]
TERMS += [HeadTerms(kind, (0, 2), joint=number % 2 == 0, impl="reference") for number, kind in enumerate(KINDS)]
ONE_TAP = HeadTerms("entropy", (0,), joint=True, impl="reference")
ALL_TERMS = HeadTerms("entropy", (0, 2), joint=True, impl="reference")

terms_of_each_kind = pytest.mark.parametrize(
    "terms", TERMS, ids=lambda terms: f"{terms.regularizer}{', joint' * terms.joint}"
)


def largest_error(actual: HeadResults, expected: HeadResults) -> float:
    """Largest error of any value or gradient, relative to all of its kind; hits must be equal."""
    assert torch.equal(actual.losses.hit_TMB, expected.losses.hit_TMB)
    pairs = [
        *zip(actual.losses, expected.losses, strict=True),
        *((actual.gradients[name], value) for name, value in expected.gradients.items()),
        *zip(actual.taps, expected.taps, strict=True),
    ]
    assert all((found is None) == (value is None) for found, value in pairs)
    return max(relative_error(found, value) for found, value in pairs if value is not None and value.numel())


def error_at(world_size: int, problem: HeadProblem, terms: HeadTerms) -> float:
    """Error of heads sharded over simulated ranks against the same heads held whole."""
    batch = problem.batch(world_size)
    with simulated_ranks(world_size) as mode:
        actual = evaluate_simulated(problem, batch, terms, mode, world_size)
    return largest_error(actual, evaluate_whole(problem, batch, terms))


@terms_of_each_kind
def test_every_term_over_ragged_ranges(terms):
    assert error_at(3, HeadProblem(num_labels=10, rows_per_rank=4), terms) <= 1e-12


@pytest.mark.parametrize(
    "world_size", [1, 2, 4, pytest.param(8, marks=pytest.mark.long), 16, pytest.param(64, marks=pytest.mark.long)]
)
def test_any_number_of_ranks_also_where_some_hold_no_class(world_size):
    assert error_at(world_size, HeadProblem(num_labels=10, rows_per_rank=2, dims=(6,), num_draws=1), ONE_TAP) <= 1e-12


def test_a_rank_without_a_class_where_some_taps_alone_are_regularised():
    assert (
        error_at(3, HeadProblem(num_labels=2, rows_per_rank=2), HeadTerms("uniform", (0, 2), impl="reference")) <= 1e-12
    )


@pytest.mark.slow
@terms_of_each_kind
@pytest.mark.parametrize("world_size", NUM_RANKS)
def test_single_precision_of_every_term_at_every_number_of_ranks(world_size, terms, capsys):
    error = error_at(world_size, HeadProblem(num_labels=1000, rows_per_rank=2, dtype=torch.float32), terms)
    with capsys.disabled():
        print(f"\n{world_size:3} ranks, {terms.regularizer}{', joint' * terms.joint}: {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize(
    "terms",
    [TERMS[0], *(HeadTerms(kind, (0, 2), joint=True, impl="reference") for kind in ("unlikelihood", "uniform"))],
)
@pytest.mark.parametrize(
    ("options", "mixed"),
    [({}, True), ({"hidden": 5}, False), ({"num_blocks": 4}, False), ({"num_blocks": 4, "hidden": 5}, True)],
    ids=["pairs", "hidden layers", "labels for each class", "all of them"],
)
def test_pairs_hidden_layers_and_labels_for_each_class(options, mixed, terms):
    assert (
        error_at(3, HeadProblem(num_labels=5, rows_per_rank=2, num_draws=1, mixed=mixed, options=options), terms)
        <= 1e-12
    )


@pytest.mark.parametrize("num_real", [(4, 1, 0), (0, 3, 2)], ids=str)
def test_uneven_rows_filled_up_with_padding_give_the_gradients_of_the_real_rows(num_real):
    """Also where a rank has none: the last batch over several ranks."""
    problem = HeadProblem(num_labels=10, rows_per_rank=4, mixed=True)
    full = problem.batch(3)
    valid_G = torch.cat([torch.arange(4) < count for count in num_real])
    with simulated_ranks(3) as mode:
        padded = evaluate_simulated(problem, replace(full, valid_G=valid_G), ALL_TERMS, mode, 3)
    pair = (full.pair[0][:, valid_G], full.pair[1][valid_G])
    real = GlobalBatch([tap[valid_G] for tap in full.taps], full.labels_MG[:, valid_G], pair, valid_G[valid_G])
    expected = evaluate_whole(problem, real, ALL_TERMS)
    for name, value in expected.gradients.items():
        assert relative_error(padded.gradients[name], value) <= 1e-12, name
    for found, value in zip(padded.taps, expected.taps, strict=True):
        assert relative_error(found[valid_G], value) <= 1e-12
        assert not found[~valid_G].any()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    num_labels=st.integers(2, 40),
    world_size=st.integers(1, 4),
    rows_per_rank=st.integers(1, 3),
    num_draws=st.integers(1, 2),
    kind=st.sampled_from(KINDS),
    mixed=st.booleans(),
)
def test_any_sizes(num_labels, world_size, rows_per_rank, num_draws, kind, mixed):
    problem = HeadProblem(num_labels, rows_per_rank, dims=(4,), num_draws=num_draws, mixed=mixed, seed=num_labels)
    assert error_at(world_size, problem, HeadTerms(kind, (0,), joint=True, impl="reference")) <= 1e-12


def test_ties_over_all_ranks_go_to_the_lowest_label():
    problem = HeadProblem(num_labels=7, rows_per_rank=7, dims=(3,), num_draws=1)
    batch = problem.batch(4)
    batch.taps[0].zero_()  # all logits are the biases: 0 to 1.2, by label modulo 7
    with simulated_ranks(4) as mode:
        heads = [problem.own_part(ClassShards(rank, 4)) for rank in range(4)]
        assert [len(part.heads[0][0].bias) for part in heads] == [2, 2, 2, 1]
        actual = evaluate_simulated(problem, batch, TERMS[0], mode, 4)
    assert torch.equal(actual.losses.hit_TMB[0, 0], batch.labels_MG[0] == 6)


@pytest.mark.parametrize("hidden", [None, 4])
def test_initial_weights_are_those_of_whole_heads(hidden):
    """To the last bit, also where a head is drawn in several slabs."""
    dims, num_labels = (4, 70000), 40
    whole = RLPHeads(dims, num_labels, 1, seed=3, hidden=hidden)
    parts = [
        ShardedRLPHeads(dims, num_labels, 1, seed=3, hidden=hidden, shards=ClassShards(rank, 3)) for rank in range(3)
    ]
    for name, expected in whole.named_parameters():
        pieces = [part.get_parameter(name) for part in parts]
        found = pieces[0] if name.startswith("layers") else torch.cat(pieces)
        assert torch.equal(found, expected), name
    assert {part.num_parameters for part in parts} == {sum(each.numel() for each in whole.parameters())}


def test_heads_of_one_width_are_slices_of_one_buffer():
    part = ShardedRLPHeads((6, 9, 9), 10, 2, seed=0, shards=ClassShards(1, 4))
    storages = {name: parameter.untyped_storage().data_ptr() for name, parameter in part.named_parameters()}
    assert storages["heads.1.0.weight"] == storages["heads.2.1.weight"] != storages["heads.0.0.weight"]
    assert part.heads[1][0].weight.untyped_storage().nbytes() == 4 * 4 * 3 * 9


def test_a_change_of_one_head_is_no_new_version_of_another():
    """Else copies of the others' weights would be made again: heads are updated one by one, and kept by their versions."""
    heads = ShardedRLPHeads((6, 6), 5, 2, seed=0, shards=ClassShards(0, 2))
    changed, *others = heads.heads_at((0, 1))
    before = [head.weight._version for head in others]
    with torch.no_grad():
        changed.weight.add_(1)
    assert [head.weight._version for head in others] == before


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("impl", ["reference", "batched", "tiled_cpu"])
@pytest.mark.parametrize("frozen", ["heads.0", "weight"])
def test_what_is_not_frozen_learns_beside_what_is(group_of_one, frozen, impl):
    """The heads of the first tap, or all weights but the biases."""
    problem = HeadProblem(num_labels=40, rows_per_rank=4, dims=(6, 6), dtype=torch.float32)
    batch = problem.batch(1)

    def gradients(heads, impl: str) -> dict[str, torch.Tensor | None]:
        for name, parameter in heads.named_parameters():
            parameter.requires_grad_(frozen not in name)
        combine_losses(heads(batch.taps, batch.labels_MG, HeadTerms(impl=impl))).total.backward()
        return {name: parameter.grad for name, parameter in heads.named_parameters()}

    expected = gradients(problem.whole_heads(), "reference")
    found = gradients(problem.own_part(ClassShards(0, 1)), impl)
    for name, gradient in expected.items():
        assert (gradient is None) == (frozen in name)
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("terms", "hidden", "num_backward"),
    [(TERMS[0], None, 0), (ALL_TERMS, None, 1), (TERMS[0], 4, 1), (ALL_TERMS, 4, 1)],
)
def test_number_of_messages(group_of_one, terms, hidden, num_backward):
    """Two forward, for any number of taps and draws; one backward where features are trained, and otherwise none."""
    problem = HeadProblem(num_labels=10, rows_per_rank=4, mixed=True, options={"hidden": hidden})
    batch, heads = problem.batch(1), problem.own_part(ClassShards(0, 1))
    with CommDebugMode() as forward:
        losses = heads([tap.requires_grad_() for tap in batch.taps], batch.labels_MG, terms, batch.pair).losses
        total = sum(each.sum() for each in losses[:3] if each is not None)
    assert {str(name): count for name, count in forward.get_comm_counts().items()} == {"c10d._allgather_base_": 2}
    with CommDebugMode() as backward:
        total.backward()
    assert sum(backward.get_comm_counts().values()) == num_backward
    with CommDebugMode() as shared:
        heads.sum_replicated_gradients()
    assert sum(shared.get_comm_counts().values()) == (hidden is not None)


@pytest.mark.parametrize(
    ("options", "mixed"),
    [({}, False), ({}, True), ({"hidden": 4}, True), ({"num_blocks": 3}, True), ({"dropout": 0.2}, False)],
)
def test_two_modules_together_compute_what_each_does_alone(group_of_one, options, mixed):
    """In as many messages as one; linear heads' features travel once for both."""
    problem = HeadProblem(num_labels=10, rows_per_rank=4, mixed=mixed, options=options)
    batch = problem.batch(1)
    heads, audit = problem.own_part(ClassShards(0, 1)), problem.own_part(ClassShards(0, 1))
    terms = [ALL_TERMS, HeadTerms(impl="reference")]
    results = []
    for together in (True, False):
        taps = [tap.clone().requires_grad_() for tap in batch.taps]
        torch.manual_seed(0)
        calls = [
            HeadCall(each, batch.labels_MG, own, batch.pair) for each, own in zip((heads, audit), terms, strict=True)
        ]
        with CommDebugMode() as counted:
            found = forward_together(calls, taps) if together else [call.heads(taps, *call[1:]) for call in calls]
            sum(value.sum() for each in found for value in each.losses[:3] if value is not None).backward()
        modules = (heads, audit)
        gradients = [parameter.grad.clone() for module in modules for parameter in module.parameters()]
        for module in modules:
            module.zero_grad()
        values = [value for each in found for value in each.losses if value is not None]
        results.append([*values, *gradients, *(tap.grad for tap in taps)])
        assert sum(counted.get_comm_counts().values()) == (3 if together else 5 + ("hidden" in options))
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


class CountedOperations(TorchDispatchMode):
    """How many operations torch is asked for."""

    total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.total += 1
        return operation(*args, **(kwargs or {}))


def operations_of_a_step(make, num_heads, num_labels, kind):
    terms = HeadTerms(kind, tuple(range(num_heads)) if kind else ())
    heads, labels_MB = make((4,) * num_heads, num_labels, 1, seed=0), torch.randint(num_labels, (1, 8))

    def step():
        taps = [torch.randn(8, 4, requires_grad=True) for _ in range(num_heads)]
        losses = heads(taps, labels_MB, terms)
        weights = TermWeights(factor=float(kind is not None))
        combine_losses(losses, torch.ones(8, dtype=torch.bool), 8, 1, weights).total.backward()

    step()  # the first use of an operator takes more
    with CountedOperations() as counted:
        step()
    return counted.total


SHARDED = functools.partial(ShardedRLPHeads, shards=ClassShards(0, 1))


@pytest.mark.parametrize("kind", [None, "unlikelihood"])
@pytest.mark.parametrize("num_heads", [1, 12])
def test_operations_of_a_step_are_those_of_whole_heads_at_any_number_of_labels(group_of_one, num_heads, kind):
    """At most 1.3 times as many; and flat: few labels are written out, many taken in tiles, which whole heads cut up."""
    sharded = {count: operations_of_a_step(SHARDED, num_heads, count, kind) for count in (10, 1_000, 5_000, 50_000)}
    whole = {count: operations_of_a_step(RLPHeads, num_heads, count, kind) for count in sharded}
    assert all(sharded[count] <= 1.3 * whole[count] for count in sharded), (sharded, whole)
    for counts, most in ((sharded, 1.2), (whole, 1.4)):
        assert counts[10] == counts[1_000]
        assert counts[5_000] == counts[50_000] <= most * counts[10], (sharded, whole)


@pytest.mark.parametrize(("num_labels", "impl"), [(10, "auto"), (10, "reference"), (5_000, "auto")])
@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("term", ["cross_entropy_TMB", "regularizer_RMB", "joint_TMB"])
@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives_are_refused_by_name(group_of_one, num_labels, impl, hidden, term, way):
    """Of features where they are trained, else of the hidden layer or the head itself; no zeros."""
    problem = HeadProblem(num_labels, rows_per_rank=4, options={"hidden": hidden})
    heads, batch = problem.own_part(ClassShards(0, 1)), problem.batch(1)
    of_parameter = term == "cross_entropy_TMB"
    name = "layers.0.0.weight" if hidden else "heads.0.0.weight"

    def total(tensor):
        given = {name: 1 * tensor} if of_parameter else {}
        taps = batch.taps if of_parameter else [1 * tensor, *batch.taps[1:]]
        terms = HeadTerms("uniform", (0, 2), joint=True, impl=impl)
        return getattr(functional_call(heads, given, (taps, batch.labels_MG, terms)).losses, term).sum()

    trained = dict(heads.named_parameters())[name] if of_parameter else batch.taps[0]
    with pytest.raises(RuntimeError, match="differentiated twice.*sharded.*impl='reference'"):
        WAYS[way](total, trained.detach().clone().requires_grad_())


def test_own_rows_are_those_that_a_rank_gave(group_of_one):
    problem = HeadProblem(num_labels=10, rows_per_rank=4)
    batch, heads = problem.batch(1), problem.own_part(ClassShards(0, 1))
    gathered = heads(batch.taps, batch.labels_MG, TERMS[0], valid_B=batch.valid_G)
    assert torch.equal(gathered.valid_G, batch.valid_G)
    moved = gathered._replace(first_row=1, num_rows=2)
    assert torch.equal(moved.own.bits_TMB, gathered.losses.bits_TMB[:, :, 1:3])


def test_dtensors_need_a_mesh():
    with pytest.raises(ValueError, match="make them by ClassShards.of_mesh"):
        ClassShards(0, 2).as_dtensor(torch.zeros(2, 3), 4)
