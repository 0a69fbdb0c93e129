"""`rlpheads samples`: rankings of a run's images, from its ledgers, and what is no ranking."""

import csv
import io
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ledger_batches import METADATA

from rlpheads.engine.cli import main
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata
from rlpheads.memorization.records.sample_file import SplitSamples, write_samples

NUM_SAMPLES, NUM_DRAWS = 400, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six ledgers in which sample i has the class loss i/100, give or take, and bits of its own at tap 1 alone."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    random = np.random.default_rng(0)
    own_bits = torch.from_numpy(random.standard_normal(NUM_SAMPLES))
    metadata = replace(METADATA, taps=(0, 1), num_draws=NUM_DRAWS, phase="running")
    for epoch in range(6):
        ledger, index = Ledger(NUM_SAMPLES, 2, NUM_DRAWS), torch.arange(NUM_SAMPLES)
        noise = torch.from_numpy(random.standard_normal((2, NUM_DRAWS, NUM_SAMPLES)))
        bits = torch.stack([noise[0], 3 * own_bits + noise[1]])
        loss = index / 100 + 0.1 * torch.from_numpy(random.random(NUM_SAMPLES))
        ledger.record(
            index,
            index % 4,
            loss,
            epoch >= index / 100,
            bits > 0,
            bits,
            bits,
            predicted_B=torch.zeros_like(index),
            confidence_B=torch.full((NUM_SAMPLES,), 0.25),
        )
        write_ledger(folder, ledger, replace(metadata, epoch=epoch))
    names = [f"c{number % 4}/{number:03d}.png".encode() for number in range(NUM_SAMPLES)]
    offsets = np.cumsum([0, *map(len, names)]).astype(np.int64)
    given = np.arange(NUM_SAMPLES) % 4
    true = np.where(np.arange(NUM_SAMPLES) == 399, 0, given)
    split = SplitSamples(
        "train", METADATA.fingerprint, np.frombuffer(b"".join(names), np.uint8), offsets, true, given, {399: "noisy"}
    )
    write_samples(folder / "samples.parquet", [split], ["ant", "bee", "cat", "dog"])
    return folder


def write_ledger(folder, ledger: Ledger, metadata: LedgerMetadata) -> None:
    ledger.write_parquet(folder / "ledger" / f"epoch={metadata.epoch:04d}" / f"{metadata.phase}.parquet", metadata)


def rows(capsys, *arguments):
    assert main(["samples", *map(str, arguments), "--csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_table_names_image_classes_and_canary(folder, capsys):
    assert main(["samples", str(folder), "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert "running ledgers, greatest class_loss: split-half reliability 1.00 over 6 ledgers" in printed
    first = next(line for line in printed.splitlines() if "c3/399.png" in line)
    assert [cell.strip() for cell in first.strip("│").split("│")][:7] == [
        *("1", "399", "c3/399.png", "ant", "dog", "ant (25 %)", "noisy")
    ]


def test_rankings_are_in_order_by_class_and_by_least(folder, capsys):
    found = rows(capsys, folder, "--top", 500)
    assert len(found) == NUM_SAMPLES
    values = [float(row["value"]) for row in found]
    assert values == sorted(values, reverse=True)
    of_class = rows(capsys, folder, "--class", "bee", "--least", "--top", 2)
    assert {row["given_name"] for row in of_class} == {"bee"}
    assert int(of_class[0]["index"]) < 20
    assert rows(capsys, folder, "--class", "1", "--least", "--top", 2) == of_class


def test_a_class_whose_name_is_another_ones_number_is_taken_by_its_name(folder, tmp_path, capsys):
    """Folders called 1, 10, 2 and 3 are the classes 0 to 3."""
    named = tmp_path / "run"
    shutil.copytree(folder, named)
    samples = pq.read_table(named / "samples.parquet")
    for number, name in (("class", "class_name"), ("given_class", "given_name")):
        called = pa.array(["1", "10", "2", "3"]).take(samples.column(number))
        samples = samples.set_column(samples.schema.get_field_index(name), name, called)
    pq.write_table(samples, named / "samples.parquet")
    for name, number in (("1", "0"), ("10", "1"), ("0", "0")):
        found = rows(capsys, named, "--class", name, "--top", NUM_SAMPLES)
        assert {row["given_class"] for row in found} == {number}
        assert len(found) == NUM_SAMPLES / 4


def test_epochs_of_learning_are_epochs_and_never_comes_last(folder, capsys):
    first_learned = rows(capsys, folder, "--by", "first_learned", "--top", NUM_SAMPLES)
    assert {row["value"] for row in first_learned} >= {"0", "1", "3"}
    by_index = {int(row["index"]): float(row["value"]) for row in first_learned}
    assert by_index[150] == 2


def test_bits_are_ranked_where_draws_agree_and_not_where_they_are_noise(folder, capsys):
    assert len(rows(capsys, folder, "--by", "bits", "--tap", 1, "--top", 5)) == 5
    assert rows(capsys, folder, "--by", "bits", "--tap", 0) == []
    assert main(["samples", str(folder), "--by", "bits", "--tap", "0"]) == 0
    printed = capsys.readouterr().out
    assert "greatest bits at tap 0: not resolvable: needs " in printed
    assert "draws or more" in printed


WRONG = {
    ("--by", "clas_loss"): "--by: got 'clas_loss'; allowed: class_loss, .*; nearest: class_loss",
    ("--by", "audit_bits"): r"the run has no audit heads \(heads.audit_draws\); nearest: bits",
    ("--class", "bea"): "--class: got 'bea'; allowed: ant, bee, cat, dog; nearest: bee",
    ("--by", "bits", "--tap", "7"): "--tap: got '7'; allowed: 0, 1",
    ("--top", "0"): "--top is 0; it must be at least 1",
    ("--phase", "clean"): "has no clean ledger yet; one is written at the end of the last epoch",
}


@pytest.mark.wrong("arguments")
@pytest.mark.parametrize("flags", WRONG)
def test_what_cannot_be_ranked_is_one_line(folder, capsys, flags):
    import re

    assert main(["samples", str(folder), *flags]) == 2
    assert re.search(WRONG[flags], capsys.readouterr().err)


@pytest.mark.wrong("files")
def test_samples_of_other_images_are_refused(folder, tmp_path, capsys):
    import shutil

    shutil.copytree(folder, tmp_path / "run")
    write_samples(tmp_path / "run" / "samples.parquet", [], ["ant"])
    assert main(["samples", str(tmp_path / "run")]) == 2
    assert "names 0 samples of train, and its ledger has 400" in capsys.readouterr().err
