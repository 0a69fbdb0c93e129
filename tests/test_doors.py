"""The package's own doors: lazy, typed, each the object of its room; and what a loop of one's own does with them."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import rlpheads
from rlpheads import HeadTerms, RLPHeads, TermWeights, combine_losses, label_table

HEAVY = {"torch", "numpy", "pyarrow", "timm", "torchvision", "scipy", "matplotlib", "rich", "importlib.metadata"}


def test_importing_the_package_imports_the_standard_library_alone():
    code = "import sys; before = set(sys.modules); import rlpheads; dir(rlpheads); print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)
    ours = {name for name in loaded if name.startswith("rlpheads")}
    assert ours == {"rlpheads"}


def test_every_door_opens_and_type_checkers_see_the_same():
    tree = ast.parse(Path(rlpheads.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == rlpheads._MODULES
    assert set(rlpheads.__all__) == {*seen, "__version__"}
    for name, module in seen.items():
        assert getattr(rlpheads, name) is getattr(sys.modules[module], name)
        assert getattr(rlpheads, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'RLPHead'"):
        rlpheads.RLPHead  # noqa: B018


def test_a_source_tree_that_is_not_installed_knows_its_version(monkeypatch):
    installed = rlpheads.__version__

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert rlpheads.__version__ == installed == "0.1.0"


def features_and_labels(draws=1):
    random = torch.Generator().manual_seed(0)
    features_BD = torch.randn(40, 12, generator=random, requires_grad=True)
    return features_BD, label_table(40, 5, num_draws=draws, seed=0, split="train")


def test_heads_measure_from_features_and_labels_alone():
    features_BD, table_MN = features_and_labels()
    heads = RLPHeads([12], 5, 1, seed=0)
    losses = heads(features_BD, table_MN[0])
    logits = torch.nn.functional.layer_norm(features_BD, [12]) @ heads.heads[0][0].weight.T
    torch.testing.assert_close(
        losses.cross_entropy_TMB[0, 0], cross_entropy(logits, table_MN[0].long(), reduction="none")
    )
    assert losses.regularizer_RMB is None
    combine_losses(losses).total.backward()
    assert features_BD.grad is None  # measuring trains the heads alone
    assert heads.heads[0][0].weight.grad.abs().sum() > 0


def test_a_list_of_taps_and_a_table_of_draws_are_the_same_heads():
    features_BD, table_MN = features_and_labels()
    heads = RLPHeads([12], 5, 1, seed=0)
    alone, listed = heads(features_BD, table_MN[0]), heads([features_BD], table_MN)
    assert torch.equal(alone.cross_entropy_TMB, listed.cross_entropy_TMB)


def test_without_padding_and_ranks_a_loss_is_the_mean_over_rows_and_draws_and_the_sum_over_taps():
    features_BD, table_MN = features_and_labels(draws=2)
    heads = RLPHeads([12, 12], 5, 2, seed=0)
    losses = heads([features_BD, features_BD.detach() * 2], table_MN, HeadTerms("unlikelihood", (0,)))
    combined = combine_losses(losses, weights=TermWeights(factor=3.0))
    expected = losses.cross_entropy_TMB.mean((1, 2)).sum() + 3 * losses.regularizer_RMB.mean()
    torch.testing.assert_close(combined.total, expected)
    everything = combine_losses(losses, torch.ones(40, dtype=torch.bool), 40, 1, TermWeights(factor=3.0))
    torch.testing.assert_close(combined.total, everything.total)


@pytest.mark.wrong("library")
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.zeros(4, 11), torch.zeros(4)),
        (torch.zeros(4, 12), torch.zeros(2, 4)),
        (torch.zeros(4, 12), torch.zeros(3)),
    ],
)
def test_features_and_labels_that_do_not_fit_are_told_with_both_shapes(features, labels):
    with pytest.raises(ValueError, match=r"heads for taps of width \[12\] and 1 draws got taps of shape"):
        RLPHeads([12], 5, 1, seed=0)(features, labels.int())
