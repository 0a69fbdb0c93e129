"""The ledger's Parquet file: columns, metadata, atomic writes, damaged files."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ledger_batches import METADATA, NUM_DRAWS, NUM_SAMPLES, TAPS, batch_of, new_ledger

from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import (
    SKIPPED,
    LabelSource,
    LedgerError,
    read_hit_counts,
    read_ledger,
    read_ledger_metadata,
    read_sample_hits,
)
from rlpheads.memorization.records.ledger_labels import ledger_labels


def test_a_run_without_heads_has_a_ledger_of_the_classes(tmp_path):
    ledger, batch = Ledger(NUM_SAMPLES, 0, 1), batch_of([4])
    ledger.record(*(batch[name] for name in ("index_B", "targets_B", "class_loss_B", "class_hit_B")))
    ledger.write_parquet(tmp_path / "ledger.parquet", replace(METADATA, taps=(), num_draws=1))
    table = read_ledger(tmp_path / "ledger.parquet")
    assert table.class_loss[4] == batch["class_loss_B"].item()
    assert table.hit.shape == (0, 1, NUM_SAMPLES)
    _, num_seen, hits_TM = read_hit_counts(tmp_path / "ledger.parquet")
    assert (num_seen, hits_TM.shape) == (1, (0, 1))
    assert read_sample_hits(tmp_path / "ledger.parquet", np.array([4])).shape == (1, 0, 1)


def test_a_file_reads_back_as_it_was_written(tmp_path):
    ledger, index = new_ledger(), [0, 3, 4, 8]
    batch = batch_of(index)
    ledger.record(**batch)
    ledger.skip(torch.tensor([7]))
    path = tmp_path / "epoch=0007" / "running.parquet"
    ledger.write_parquet(path, METADATA)
    table = read_ledger(path)
    assert table.metadata == METADATA
    assert table.index.tolist() == list(range(NUM_SAMPLES))
    assert table.seen.nonzero()[0].tolist() == index
    assert table.status[7] == SKIPPED
    assert table.count[index].tolist() == [1, 1, 1, 1]
    assert table.target[index].tolist() == batch["targets_B"].tolist()
    assert np.array_equal(table.class_loss[index], batch["class_loss_B"])
    assert np.array_equal(table.class_hit[index], batch["class_hit_B"])
    assert np.array_equal(table.predicted[index], batch["predicted_B"])
    assert np.array_equal(table.confidence[index], batch["confidence_B"])
    for name in ("hit", "bits", "margin"):
        assert np.array_equal(getattr(table, name)[..., index], batch[f"{name}_TMB"]), name
    assert [file.name for file in path.parent.iterdir()] == ["running.parquet"]


def test_what_was_not_measured_cannot_be_averaged_by_mistake(tmp_path):
    ledger = new_ledger()
    ledger.record(**batch_of([0]))
    ledger.write_parquet(tmp_path / "ledger.parquet", METADATA)
    table = read_ledger(tmp_path / "ledger.parquet")
    assert (table.target[1:] == -1).all()
    for values in (table.class_loss, table.bits, table.margin):
        assert np.isnan(values[..., 1:]).all()
        assert not np.isnan(values[..., 0]).any()
    assert not table.hit[..., 1:].any()
    assert not any(values[1:].any() for values in ledger.tensors().values())  # in memory they stay zero


@pytest.mark.long
def test_other_programs_see_the_documented_columns(tmp_path):
    ledger = new_ledger()
    ledger.record(**batch_of([2]))
    ledger.write_parquet(tmp_path / "ledger.parquet", METADATA)
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "index": "int64",
        "status": "uint8",
        "count": "int32",
        "target": "int64",
        "class_loss": "float",
        "class_hit": "bool",
        "predicted": "int32",
        "confidence": "float",
        "hit": "list<element: bool>",
        "bits": "list<element: float>",
        "margin": "list<element: float>",
    }
    tap_major = batch_of([2])["bits_TMB"].flatten().tolist()
    assert table.column("bits")[2].as_py() == tap_major
    assert json.loads(table.schema.metadata[b"rlpheads.ledger"])["taps"] == list(TAPS)


@pytest.mark.long
def test_files_of_several_row_groups_read_back_whole(tmp_path):
    num_samples, num_taps, num_draws = 3000, 100, 10  # more list elements than one row group takes
    ledger = Ledger(num_samples, num_taps, num_draws)
    bits_TMB = torch.arange(num_samples * 1000).float().reshape(num_samples, num_taps, num_draws).permute(1, 2, 0)
    index_B = torch.arange(num_samples)
    ledger.record(index_B, index_B, index_B.float(), index_B % 2 == 0, bits_TMB > 5, bits_TMB, -bits_TMB)
    path = tmp_path / "ledger.parquet"
    ledger.write_parquet(path, replace(METADATA, taps=tuple(range(num_taps)), num_draws=num_draws))
    assert pq.read_metadata(path).num_row_groups == 2
    table = read_ledger(path)
    assert np.array_equal(table.index, index_B)
    assert np.array_equal(table.bits, bits_TMB)
    assert np.array_equal(table.hit, bits_TMB > 5)


def test_metadata_must_fit_the_ledger(tmp_path):
    with pytest.raises(LedgerError, match="2 taps and 2 draws for a ledger of 3 taps and 2 draws"):
        new_ledger().write_parquet(tmp_path / "ledger.parquet", replace(METADATA, taps=(0, 1)))


def test_a_failed_write_keeps_the_older_file(tmp_path):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half of")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert read_ledger(path).metadata == METADATA
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.parquet"]


def test_damaged_files_and_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "ledger.parquet"
    with pytest.raises(FileNotFoundError, match=r"no ledger file .*ledger.parquet"):
        read_ledger(path)
    ledger = new_ledger()
    ledger.record(**batch_of(list(range(NUM_SAMPLES))))
    ledger.write_parquet(path, METADATA)
    whole = path.read_bytes()
    for damaged in (b"", b"not parquet at all", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=r"ledger.parquet is no readable Parquet file"):
            read_ledger(path)
    pq.write_table(pa.table({"index": [1, 2]}), path)
    with pytest.raises(LedgerError, match="not a ledger"):
        read_ledger(path)


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path):
    path = tmp_path / "ledger.parquet"
    ledger = new_ledger()
    ledger.record(**batch_of(list(range(NUM_SAMPLES))))
    ledger.write_parquet(path, METADATA)
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(9)  # bits
    last_byte = column.data_page_offset + column.total_compressed_size - 1
    path.write_bytes(whole[:last_byte] + bytes([whole[last_byte] ^ 1]) + whole[last_byte + 1 :])
    with pytest.raises(LedgerError, match="no readable Parquet file"):
        read_ledger(path)


def test_a_ledger_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"rlpheads.ledger": json.dumps({"version": 99})}), path)
    with pytest.raises(LedgerError, match="version 99, and this code reads versions up to 3"):
        read_ledger(path)


def test_own_and_audit_draws_are_separate_slices(tmp_path):
    metadata = replace(METADATA, num_audit_draws=1)
    new_ledger().write_parquet(tmp_path / "ledger.parquet", metadata)
    read = read_ledger(tmp_path / "ledger.parquet").metadata
    assert read == metadata
    assert read.draws == {"own": slice(0, 1), "audit": slice(1, 2)}
    assert METADATA.draws == {"own": slice(0, 2)}
    assert replace(METADATA, num_audit_draws=2).draws == {"audit": slice(0, 2)}
    with pytest.raises(LedgerError, match="3 audit draws among 2 draws"):
        new_ledger().write_parquet(tmp_path / "other.parquet", replace(METADATA, num_audit_draws=3))


@pytest.mark.parametrize(("version", "lacks"), [(1, ["num_audit_draws", "labels"]), (2, ["labels"])])
def test_files_of_older_versions_are_read(tmp_path, version, lacks):
    """They know nothing of audit draws (1), predicted classes and where the labels come from (1 and 2)."""
    path = tmp_path / "ledger.parquet"
    ledger = new_ledger()
    ledger.record(**batch_of([0, 3]))
    ledger.write_parquet(path, METADATA)
    whole = read_ledger(path)
    table = pq.read_table(path).drop_columns(["predicted", "confidence"])
    told = json.loads(table.schema.metadata[b"rlpheads.ledger"]) | {"version": version}
    old = json.dumps({key: value for key, value in told.items() if key not in lacks}).encode()
    pq.write_table(table.replace_schema_metadata({b"rlpheads.ledger": old}), path)
    read = read_ledger(path)
    assert read.metadata == replace(METADATA, labels=None)
    assert np.array_equal(read.bits, whole.bits, equal_nan=True)
    assert (read.predicted == -1).all()
    assert np.isnan(read.confidence).all()
    with pytest.raises(LedgerError, match="does not say where its random labels come from"):
        ledger_labels(read)


def test_class_columns_are_read_without_the_heads(tmp_path):
    ledger = new_ledger()
    ledger.record(**batch_of([0, 3]))
    ledger.write_parquet(tmp_path / "ledger.parquet", METADATA)
    table = read_ledger(tmp_path / "ledger.parquet", heads=False)
    assert np.array_equal(table.class_loss, read_ledger(tmp_path / "ledger.parquet").class_loss, equal_nan=True)
    assert table.metadata == replace(METADATA, taps=()) != read_ledger_metadata(tmp_path / "ledger.parquet")
    assert table.hit.shape == (0, 2, NUM_SAMPLES)
    assert read_ledger_metadata(tmp_path / "ledger.parquet") == METADATA


@pytest.mark.parametrize("balance", ["iid", "balanced", "per_class"])
def test_labels_of_a_ledger_are_those_of_its_seed(tmp_path, balance):
    ledger = new_ledger()
    ledger.record(**batch_of(list(range(NUM_SAMPLES - 1))))
    ledger.write_parquet(tmp_path / "ledger.parquet", replace(METADATA, labels=LabelSource(77, balance)))
    table = read_ledger(tmp_path / "ledger.parquet")
    drawn = "balanced" if balance == "balanced" else "iid"
    expected = label_table(NUM_SAMPLES, 10, num_draws=NUM_DRAWS, seed=77, split="train", balance=drawn)
    if balance == "per_class":
        expected += 10 * torch.arange(NUM_SAMPLES, dtype=torch.int32) % 40
        expected[:, -1] = -1  # not seen: nobody knows its class
    assert torch.equal(ledger_labels(table), expected)


def rewrite(path, changes=(), drop=(), columns=()):
    """Write a ledger again as another program may: other metadata, other columns."""
    table = pq.read_table(path)
    for name, values in columns:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    metadata = json.loads(table.schema.metadata[b"rlpheads.ledger"]) | dict(changes)
    text = json.dumps({key: value for key, value in metadata.items() if key not in drop})
    pq.write_table(table.replace_schema_metadata({"rlpheads.ledger": text}), path)


CRAFTED = {
    "2.6 TiB of draws": ({"num_draws": 10**9}, (), "its columns are not as long as its metadata claim"),
    "fewer taps than columns": ({"taps": [0]}, (), "its columns are not as long as its metadata claim"),
    "draws as text": ({"num_draws": "2"}, (), "num_draws is '2', which is no count"),
    "draws below 0": ({"num_draws": -2}, (), "num_draws is -2, which is no count"),
    "taps as a number": ({"taps": 3}, (), "taps is 3, which is no list"),
    "taps of lists": ({"taps": [[0], [1], [2]]}, (), "other taps than numbers and names"),
    "more audit draws than draws": ({"num_audit_draws": 9}, (), "or too few draws"),
    "seed as a truth value": ({"seed": True}, (), "seed is True, which is no count"),
    "epoch that is null": ({"epoch": None}, (), "epoch is None, which is no count"),
    "no fingerprint": ({}, ("fingerprint",), "it lacks fingerprint"),
    "no version": ({}, ("version",), "it lacks version"),
    "a balance that is none": ({"labels": {"seed": 1, "balance": "fair"}}, (), "'fair', and can be iid, balanced"),
    "labels as text": ({"labels": "seed 1"}, (), "labels is 'seed 1', which is no mapping"),
    "version of text": ({"version": "2"}, (), "version is '2', which is no count"),
}


@pytest.mark.wrong("ledger")
@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_metadata_is_a_ledger_error_and_takes_no_memory(tmp_path, kind):
    changes, drop, reason = CRAFTED[kind]
    new_ledger().write_parquet(tmp_path / "ledger.parquet", METADATA)
    rewrite(tmp_path / "ledger.parquet", changes, drop)
    with pytest.raises(LedgerError, match=reason):
        read_ledger(tmp_path / "ledger.parquet")


@pytest.mark.wrong("ledger")
@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff", b"[" * 200_000, b"null"])
def test_metadata_that_are_no_mapping_are_a_ledger_error(tmp_path, text):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"rlpheads.ledger": text}), path)
    with pytest.raises(LedgerError, match=r"is damaged: of its metadata, |is no readable Parquet file"):
        read_ledger(path)


@pytest.mark.wrong("ledger")
@pytest.mark.parametrize("name", ["index", "status", "count", "class_loss", "class_hit", "bits", "hit"])
def test_nulls_are_no_numbers(tmp_path, name):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)
    values = pq.read_table(path).column(name).to_pylist()
    values[2] = [None] * len(values[2]) if isinstance(values[2], list) else None
    rewrite(path, columns=[(name, values)])
    with pytest.raises(LedgerError, match=rf"is damaged: \d+ values of {name} are missing"):
        read_ledger(path)


@pytest.mark.wrong("ledger")
def test_rows_of_other_lengths_or_in_another_order_are_refused(tmp_path):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)
    bits = pq.read_table(path).column("bits").to_pylist()
    bits[0], bits[1] = bits[0] + bits[1][:1], bits[1][1:]  # as many numbers as before
    rewrite(path, columns=[("bits", bits)])
    with pytest.raises(LedgerError, match="a row has not 6 values in bits"):
        read_ledger(path)
    new_ledger().write_parquet(path, METADATA)
    rewrite(path, columns=[("index", range(NUM_SAMPLES, 0, -1))])
    with pytest.raises(LedgerError, match=f"not those of samples 0 to {NUM_SAMPLES - 1} in order"):
        read_ledger(path)
