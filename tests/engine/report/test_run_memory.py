"""What a run remembers, from real ledgers: membership by loss and loss trace, memory by class, and the tables of both."""

import json
import math

import pytest
import torch
from rich.console import Console

from rlpheads.engine.learner.fresh_refit import FreshRefit
from rlpheads.engine.report.run_memory import class_table, measure_run_memory, membership_table, size_lines
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata

TARGETS = torch.arange(3).repeat_interleave(torch.tensor([80, 40, 20]))
NAMES = ("cat", "dog", "emu")


def ledger_of(loss_N: torch.Tensor, hit_TMN: torch.Tensor | None = None, skipped: int = 0) -> Ledger:
    num_samples = len(loss_N)
    hit_TMN = torch.zeros(2, 3, num_samples) if hit_TMN is None else hit_TMN
    ledger = Ledger(num_samples, 2, 3)
    index = torch.arange(skipped, num_samples)
    hit_TMB = hit_TMN[:, :, skipped:]
    values = torch.zeros(hit_TMB.shape)
    ledger.record(index, TARGETS[skipped:], loss_N[skipped:], loss_N[skipped:] < 1, hit_TMB, values, values)
    ledger.skip(torch.arange(skipped))
    return ledger


def write_epoch(folder: RunFolder, epoch: int, **ledgers: Ledger) -> None:
    for phase, ledger in ledgers.items():
        metadata = LedgerMetadata("f" * 64, 0, 10, (0, "1.attn"), 3, epoch, phase, "train", epoch, num_audit_draws=1)
        ledger.write_parquet(folder.ledger(epoch, phase), metadata)


@pytest.fixture
def measured(tmp_path):
    """Members' losses fall to near 0 within four epochs, but for the last class's; held-out losses stay."""
    folder, generator = RunFolder(tmp_path), torch.Generator().manual_seed(0)
    start_N = 1 + torch.rand(140, generator=generator)
    for epoch in range(4):
        falling_N = torch.where(TARGETS == 2, start_N, start_N * 0.3**epoch)
        write_epoch(folder, epoch, clean=ledger_of(falling_N, skipped=3), heldout=ledger_of(start_N))
    hit_TMN = torch.rand(2, 3, 140, generator=generator) < torch.tensor([0.9, 0.1])[:, None, None]
    clean, heldout = ledger_of(falling_N, hit_TMN, skipped=3), ledger_of(start_N)
    refit = FreshRefit([0.1, 0.1], [0.01, 0.01], torch.full((2, 140), 0.1, dtype=torch.float64), 50)
    return measure_run_memory(clean, heldout, folder, NAMES, (0, "1.attn"), 2, refit)


def test_members_are_told_by_loss_and_by_the_fall_of_their_loss(measured):
    members = 117 / 137  # those of the first two classes, of all that were seen
    for name in ("loss", "loss trace"):
        assert measured.membership[name].auc.value == pytest.approx(members + (1 - members) / 2, abs=0.03)
    assert measured.trace_epochs == 4


def test_the_classes_are_those_of_the_images_that_were_seen(measured):
    assert [each.num_train for each in measured.classes] == [77, 40, 20]
    assert [each.loss_excess.excludes(0) for each in measured.classes] == [True, True, False]
    assert [[tap.excludes(0) for tap in each.excess_T] for each in measured.classes] == [[True, False]] * 3
    assert measured.size.keys() == {"loss_excess", "label_excess"}
    assert measured.size["loss_excess"].rho > 0


def test_the_file_holds_everything_and_the_tables_the_rest(measured):
    content = json.loads(json.dumps(measured.content()))
    assert [each["class"] for each in content["classes"]] == list(NAMES)
    assert content["classes"][0]["rla_T"][0].keys() == {"value", "low", "high"}
    assert content["membership"]["loss"]["tpr_at_fpr"].keys() == {"0.01", "0.001"}
    assert content["taps"] == [0, "1.attn"]
    console = Console(width=200, record=True)
    console.print(membership_table(measured), class_table(measured))
    text = console.export_text()
    assert "loss trace" in text
    assert "emu" in text
    assert "RLA, tap 1.attn" in text
    assert "Spearman" in "".join(size_lines(measured))


def test_without_heads_and_epochs_what_is_missing_is_said(tmp_path):
    loss_N, ledger = torch.rand(140, generator=torch.Generator().manual_seed(1)), Ledger(140, 0, 1)
    ledger.record(torch.arange(140), TARGETS, loss_N, loss_N < 1)
    found = measure_run_memory(ledger, ledger, RunFolder(tmp_path), NAMES, (), 1, None)
    assert found.membership["loss"].auc.value == 0.5
    assert found.classes[0].rla_T == ()
    console = Console(width=200, record=True)
    console.print(membership_table(found), class_table(found))
    assert "loss traces need 4 epochs" in console.export_text().replace("\n", " ")
    assert not any(map(math.isnan, found.classes[2].loss))


def test_a_single_heldout_image_has_no_interval_and_classes_that_are_alike_no_correlation(tmp_path):
    outside = ledger_of(torch.full((140,), 1.5), skipped=79)
    inside, refit = ledger_of(torch.linspace(0.5, 1, 140)), FreshRefit([0.0] * 2, [0.01] * 2, torch.zeros(2, 140), 50)
    memory = measure_run_memory(inside, outside, RunFolder(tmp_path), NAMES, (0, "1.attn"), 2, refit)
    console = Console(width=200, record=True)
    console.print(class_table(memory))
    text = console.export_text()
    assert "(no interval)" in text
    assert "nan" not in text + "".join(size_lines(memory))
    assert len(list(size_lines(memory))) == 1
