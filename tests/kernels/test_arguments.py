"""Wrong arguments of `random_label_loss`: a clear ValueError each."""

import warnings

import numpy as np
import pytest
import torch
from kernel_problems import IMPLS

from rlpheads.kernels.random_label_loss import random_label_loss, random_label_losses

impls = pytest.mark.parametrize("impl", IMPLS)

GOOD = {"features_BD": torch.zeros(3, 4), "weight_KD": torch.zeros(5, 4), "labels": torch.zeros(3, dtype=torch.int64)}
FLOAT8, BFLOAT8 = torch.float8_e4m3fn, torch.float8_e5m2
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls them a prototype
    NESTED = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(1, 4)])
JAGGED = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(1, 4)], layout=torch.jagged)
TABLE, INDEX = torch.zeros(2, 9, dtype=torch.int32), torch.tensor([0, -1, 1])


@impls
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_BD": torch.zeros(3)}, r"features must be \(B, D\)"),
        ({"weight_KD": torch.zeros(5, 3)}, r"got features \(3, 4\) and weight \(5, 3\)"),
        ({"weight_KD": torch.zeros(1, 4)}, "at least 2 labels"),
        ({"features_BD": torch.zeros(3, 4, dtype=torch.int64)}, "features must be of a floating-point dtype"),
        ({"bias_K": torch.zeros(4)}, r"bias must be \(5,\)"),
        ({"labels": torch.zeros(3)}, "labels must be int32 or int64; got torch.float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be \(3,\)"),
        ({"labels": torch.tensor([0, 5, 1])}, r"labels must be in \[0, 5\); got labels from 0 to 5"),
        ({"labels": torch.tensor([0, -1, 1])}, r"labels must be in \[0, 5\); got labels from -1 to 1"),
        ({"labels": [0, 1, 2]}, r"labels must be a tensor or a tuple \(table, index, draw\); got list"),
        ({"labels": (TABLE, INDEX)}, r"got a tuple \(Tensor, Tensor\)"),
        ({"labels": (TABLE, INDEX, INDEX)}, r"the draw of labels must be an integer in \[0, 2\)"),
        ({"labels": (TABLE, INDEX, 2)}, r"the draw of labels must be an integer in \[0, 2\), .* got 2"),
        ({"labels": (TABLE[0], INDEX, 0)}, r"the table of labels must be int32 or int64 and \(M, N\).*got .*\(9,\)"),
        ({"labels": (TABLE.float(), INDEX, 0)}, "the table of labels must be int32 or int64.*got torch.float32"),
        ({"labels": (TABLE, INDEX[:2], 0)}, r"the index of labels must be \(3,\)"),
        ({"labels": (TABLE, INDEX.float(), 0)}, "the index of labels must be int32 or int64"),
        (
            {"labels": (TABLE, INDEX + 8, 0)},
            r"index must be in \[0, 9\).*-1 for a padding row; got indices from 7 to 9",
        ),
        ({"labels": (TABLE, INDEX - 1, 0)}, r"index must be in \[0, 9\).*got indices from -2 to 0"),
        ({"labels": (TABLE + 5, INDEX, 0)}, r"labels must be in \[0, 5\); got labels from 5 to 5"),
        ({"pair": torch.zeros(2, 3)}, "pair must be a tuple"),
        ({"pair": ((TABLE, INDEX, 7), torch.ones(3))}, "the draw of pair's labels must be"),
        ({"pair": (torch.tensor([0, 1, 1]), 0.5)}, "pair's weight must be a tensor; got float"),
        ({"features_BD": [[0.0] * 4] * 3}, "features must be a tensor; got list"),
        ({"bias_K": 0.0}, "bias must be a tensor; got float"),
        ({"pair": (torch.tensor([0, 9, 1]), torch.ones(3))}, "got labels from 0 to 9"),
        ({"pair": (torch.tensor([0, 1]), torch.ones(3))}, r"pair's labels must be \(3,\)"),
        ({"pair": (torch.tensor([0, 1, 1]), torch.ones(3, 1))}, "pair's weight must be floating-point"),
        ({"pair": (torch.tensor([1, 1, 1]), torch.full((3,), 1.5))}, r"weights of a pair must be in \[0, 1\]"),
        ({"regularizer": "unlikelyhood"}, "unknown regularizer 'unlikelyhood'.*did you mean 'unlikelihood'"),
        ({"regularizer": "cross_entropy"}, "unknown regularizer 'cross_entropy'"),
        ({"impl": "tiled-cpu"}, "unknown impl 'tiled-cpu'.*did you mean 'tiled_cpu'"),
        ({"memory_budget": -1}, "memory_budget must be a number of bytes"),
        ({"memory_budget": True}, "memory_budget must be a number of bytes"),
        ({"memory_budget": 2.5}, "memory_budget must be a number of bytes"),
        (
            {"features_BD": torch.zeros(3, 0), "weight_KD": torch.zeros(5, 0)},
            r"features must have a column \(D\) at least; got \(3, 0\)",
        ),
        ({"features_BD": torch.zeros(3, 4).to(FLOAT8)}, r"features must be .*float16.*; got torch.float8_e4m3fn"),
        ({"weight_KD": torch.zeros(5, 4).to(BFLOAT8)}, r"weight must be .*float16.*; got torch.float8_e5m2"),
        ({"bias_K": torch.zeros(5).to(FLOAT8)}, r"bias must be .*float16.*; got torch.float8_e4m3fn"),
        ({"pair": (INDEX, torch.zeros(3).to(FLOAT8))}, "pair's weight must be .*float16.*; got torch.float8_e4m3fn"),
        ({"features_BD": torch.zeros(3, 4, dtype=torch.complex64)}, "features must be .*; got torch.complex64"),
        ({"features_BD": NESTED}, "features must be a dense tensor.*; got a nested tensor"),
        ({"features_BD": JAGGED}, "features must be a dense tensor.*; got a nested tensor"),
        ({"weight_KD": NESTED}, "weight must be a dense tensor.*; got a nested tensor"),
        ({"labels": NESTED}, "labels must be a dense tensor.*; got a nested tensor"),
        ({"labels": (NESTED, INDEX, 0)}, "the table of labels must be a dense tensor.*; got a nested tensor"),
        ({"pair": (INDEX, NESTED)}, "pair's weight must be a dense tensor.*; got a nested tensor"),
        ({"features_BD": torch.zeros(3, 4).to_mkldnn()}, r"features must be .*; got the layout torch._mkldnn"),
        ({"weight_KD": torch.zeros(5, 4).to_mkldnn()}, r"weight must be .*; got the layout torch._mkldnn"),
        ({"bias_K": torch.zeros(5).to_mkldnn()}, r"bias must be .*; got the layout torch._mkldnn"),
        ({"pair": (INDEX.clamp(0), torch.zeros(3).to_mkldnn())}, "pair's weight .*; got the layout torch._mkldnn"),
        ({"features_BD": torch.zeros(3, 4).to_sparse()}, "features must be .*; got the layout torch.sparse_coo"),
        ({"labels": (TABLE, INDEX.to_sparse(), 0)}, "the index of labels .*; got the layout torch.sparse_coo"),
        ({"labels": (TABLE.to_sparse(), INDEX, 0)}, "the table of labels .*; got the layout torch.sparse_coo"),
    ],
)
def test_bad_input_is_refused(impl: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_label_loss(**{"impl": impl, **GOOD, **change})


@pytest.mark.parametrize("impl", IMPLS)
def test_a_budget_of_numpy_and_heads_of_a_generator(impl: str) -> None:
    expected = random_label_loss(**GOOD, impl=impl).cross_entropy_B
    budget = random_label_loss(**GOOD, impl=impl, memory_budget=np.int64(5)).cross_entropy_B
    assert torch.equal(budget, expected)
    features_BD, weight_KD, labels_B = (GOOD[name] for name in ("features_BD", "weight_KD", "labels"))
    heads = random_label_losses(
        *(features_BD, (each for each in [weight_KD] * 2), (each for each in [labels_B] * 2)), impl=impl
    )
    torch.testing.assert_close(heads.cross_entropy_HB, expected.expand(2, -1))


@pytest.mark.parametrize("impl", ["auto", "triton", *IMPLS])
def test_devices_must_agree(impl: str) -> None:
    with pytest.raises(ValueError, match="weight must be on the features' device cpu; got meta"):
        random_label_loss(GOOD["features_BD"], GOOD["weight_KD"].to("meta"), GOOD["labels"], impl=impl)
    on_meta = {name: tensor.to("meta") for name, tensor in GOOD.items()}
    with pytest.raises(ValueError, match="features must have values; they are on the device meta"):
        random_label_loss(**on_meta, impl=impl)
