"""The per-sample record: what is written, merged over ranks, stored and read back."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.measures.label_measures import margin_summary
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import SEEN, SKIPPED, UNSEEN, LedgerError, LedgerMetadata, read_ledger

NUM_SAMPLES, TAPS, NUM_DRAWS = 11, (1, 4, 5), 2
METADATA = LedgerMetadata(
    fingerprint="ab" * 32,
    seed=3,
    num_labels=10,
    taps=TAPS,
    num_draws=NUM_DRAWS,
    epoch=7,
    phase="running",
    split="train",
    step=91,
)


def batch_of(index: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `record` for the given samples; what is recorded depends on the sample and `seed` alone."""
    index_B = torch.tensor(index, dtype=torch.int64)

    def draw(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, NUM_SAMPLES + 1, generator=generator)[..., index_B]

    return {
        "index_B": index_B,
        "targets_B": index_B % 4,
        "class_loss_B": draw(),
        "class_hit_B": draw() > 0,
        "hit_TMB": draw(len(TAPS), NUM_DRAWS) > 0,
        "bits_TMB": draw(len(TAPS), NUM_DRAWS),
        "margin_TMB": -draw(len(TAPS), NUM_DRAWS),
    }


def new_ledger(num_samples: int = NUM_SAMPLES) -> Ledger:
    return Ledger(num_samples, len(TAPS), NUM_DRAWS)


def test_quantiles_of_the_margin_are_those_of_the_samples_seen():
    ledger, batch = new_ledger(), batch_of([4, 0, 9, 2])
    assert ledger.label_margins_QTM([0.05, 0.5]).shape == (2, len(TAPS), NUM_DRAWS)
    assert ledger.label_margins_QTM([0.5]).isnan().all()
    ledger.record(**batch)
    expected = margin_summary(batch["margin_TMB"], levels=(0.05, 0.5)).quantiles
    assert torch.equal(ledger.label_margins_QTM([0.05, 0.5]), expected)


def assert_same(first: Ledger, second: Ledger) -> None:
    for name, values in first.tensors().items():
        assert torch.equal(values, second.tensors()[name]), name


def test_a_row_holds_what_was_recorded_of_its_sample():
    ledger, batch = new_ledger(), batch_of([4, 0, 9])
    ledger.record(**batch)
    rows = ledger.tensors()
    assert rows["status"].tolist() == [SEEN if i in (0, 4, 9) else UNSEEN for i in range(NUM_SAMPLES)]
    assert rows["count"].tolist() == [int(i in (0, 4, 9)) for i in range(NUM_SAMPLES)]
    assert torch.equal(rows["target"][[4, 0, 9]], batch["targets_B"])
    assert torch.equal(rows["class_loss"][[4, 0, 9]], batch["class_loss_B"])
    assert torch.equal(rows["class_hit"][[4, 0, 9]].bool(), batch["class_hit_B"])
    for name in ("hit", "bits", "margin"):
        recorded_TMB = rows[name][[4, 0, 9]].permute(1, 2, 0)
        assert torch.equal(recorded_TMB.to(batch[f"{name}_TMB"].dtype), batch[f"{name}_TMB"])


@given(st.permutations(range(NUM_SAMPLES)), st.lists(st.integers(0, NUM_SAMPLES), max_size=4))
def test_the_ledger_does_not_depend_on_order_or_micro_batches(order, cuts):
    whole, parts = new_ledger(), new_ledger()
    whole.record(**batch_of(list(range(NUM_SAMPLES))))
    edges = [0, *sorted(cuts), NUM_SAMPLES]
    for first, last in pairwise(edges):
        parts.record(**batch_of(list(order)[first:last]))
    assert_same(whole, parts)


def test_padding_rows_leave_no_trace():
    plain, padded = new_ledger(), new_ledger()
    plain.record(**batch_of([2, 10]))
    batch = batch_of([2, -1, 10, -1])
    for name in ("class_loss_B", "bits_TMB", "margin_TMB"):
        batch[name][..., [1, 3]] = float("nan")
    padded.record(**batch)
    assert_same(plain, padded)
    assert padded.num_seen == 2


def test_a_second_visit_overwrites_and_is_counted():
    ledger, last = new_ledger(), new_ledger()
    ledger.record(**batch_of([1, 2], seed=0))
    ledger.record(**batch_of([2, 3], seed=1))
    last.record(**batch_of([1], seed=0))
    last.record(**batch_of([2, 3], seed=1))
    assert ledger.tensors()["count"][:4].tolist() == [0, 1, 2, 1]
    assert torch.equal(ledger.tensors()["bits"], last.tensors()["bits"])
    assert ledger.num_seen == 3


def test_skipped_rows_are_told_from_unseen_ones_and_never_hide_a_record():
    ledger = new_ledger()
    ledger.record(**batch_of([1]))
    ledger.skip(torch.tensor([1, 2, -1]))
    assert ledger.tensors()["status"][:4].tolist() == [UNSEEN, SEEN, SKIPPED, UNSEEN]
    ledger.record(**batch_of([2]))
    assert ledger.tensors()["status"][2] == SEEN


@given(st.lists(st.integers(0, 2), min_size=NUM_SAMPLES, max_size=NUM_SAMPLES))
def test_the_sum_over_ranks_is_the_ledger_of_one_rank(rank_of_sample):
    single, ranks = new_ledger(), [new_ledger() for _ in range(3)]
    for sample, rank in enumerate(rank_of_sample):
        single.record(**batch_of([sample]))
        ranks[rank].record(**batch_of([sample, -1]))
    merged = ranks[0]
    for name, values in merged.tensors().items():
        for other in ranks[1:]:
            values += other.tensors()[name]
    assert_same(single, merged)


def test_loading_in_place_restores_the_ledger_and_reset_empties_it():
    ledger, restored = new_ledger(), new_ledger()
    ledger.record(**batch_of([1, 5]))
    for name, values in restored.tensors().items():
        values.copy_(ledger.tensors()[name])
    assert_same(ledger, restored)
    restored.reset()
    assert_same(restored, new_ledger())


def test_accuracies_and_bits_are_over_the_samples_seen():
    ledger, index = new_ledger(), [0, 3, 4, 8]
    batch = batch_of(index)
    ledger.record(**batch)
    ledger.skip(torch.tensor([7]))
    torch.testing.assert_close(ledger.label_accuracy_TM, batch["hit_TMB"].double().mean(-1))
    torch.testing.assert_close(ledger.label_bits_TM, batch["bits_TMB"].double().sum(-1))
    assert ledger.class_accuracy == pytest.approx(batch["class_hit_B"].double().mean().item())
    assert ledger.class_loss == pytest.approx(batch["class_loss_B"].double().mean().item())
    assert torch.isnan(new_ledger().label_accuracy_TM).all()


def test_recording_reads_nothing_back_from_the_device():
    """Fake tensors have no values: any read of one, or a branch on one, raises."""
    batch = batch_of([4, -1, 9])
    with FakeTensorMode() as mode:
        ledger = new_ledger()
        ledger.record(**{name: mode.from_tensor(values) for name, values in batch.items()})
        ledger.skip(mode.from_tensor(batch["index_B"]))
        ledger.reset()


def test_losses_with_a_graph_are_recorded_without_it():
    ledger, batch = new_ledger(), batch_of([4])
    ledger.record(**{**batch, "class_loss_B": batch["class_loss_B"].requires_grad_()})
    assert not ledger.tensors()["class_loss"].requires_grad


def test_a_run_without_heads_has_a_ledger_of_the_classes(tmp_path):
    ledger, batch = Ledger(NUM_SAMPLES, 0, 1), batch_of([4])
    ledger.record(*(batch[name] for name in ("index_B", "targets_B", "class_loss_B", "class_hit_B")))
    ledger.write_parquet(tmp_path / "ledger.parquet", replace(METADATA, taps=(), num_draws=1))
    table = read_ledger(tmp_path / "ledger.parquet")
    assert table.class_loss[4] == batch["class_loss_B"].item()
    assert table.hit.shape == (0, 1, NUM_SAMPLES)


def test_a_batch_without_its_heads_is_refused():
    batch = batch_of([4])
    del batch["bits_TMB"]
    with pytest.raises(ValueError, match="3 taps, but bits is missing"):
        new_ledger().record(**batch)


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
        "hit": "list<element: bool>",
        "bits": "list<element: float>",
        "margin": "list<element: float>",
    }
    tap_major = batch_of([2])["bits_TMB"].flatten().tolist()
    assert table.column("bits")[2].as_py() == tap_major
    assert json.loads(table.schema.metadata[b"rlpheads.ledger"])["taps"] == list(TAPS)


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


def test_files_that_are_no_whole_ledger_are_refused_by_name(tmp_path):
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
    column = pq.read_metadata(path).row_group(0).column(7)  # bits
    last_byte = column.data_page_offset + column.total_compressed_size - 1
    path.write_bytes(whole[:last_byte] + bytes([whole[last_byte] ^ 1]) + whole[last_byte + 1 :])
    with pytest.raises(LedgerError, match="no readable Parquet file"):
        read_ledger(path)


def test_a_ledger_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"rlpheads.ledger": json.dumps({"version": 99})}), path)
    with pytest.raises(LedgerError, match="version 99, and this code reads versions up to 2"):
        read_ledger(path)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        Ledger(*sizes)


def test_draws_of_audit_heads_are_told_apart(tmp_path):
    metadata = replace(METADATA, num_audit_draws=1)
    new_ledger().write_parquet(tmp_path / "ledger.parquet", metadata)
    read = read_ledger(tmp_path / "ledger.parquet").metadata
    assert read == metadata
    assert read.draws == {"own": slice(0, 1), "audit": slice(1, 2)}
    assert METADATA.draws == {"own": slice(0, 2)}
    assert replace(METADATA, num_audit_draws=2).draws == {"audit": slice(0, 2)}
    with pytest.raises(LedgerError, match="3 audit draws among 2 draws"):
        new_ledger().write_parquet(tmp_path / "other.parquet", replace(METADATA, num_audit_draws=3))


def test_a_file_of_version_1_is_read_as_having_no_audit_draws(tmp_path):
    path = tmp_path / "ledger.parquet"
    new_ledger().write_parquet(path, METADATA)
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[b"rlpheads.ledger"])
    del told["num_audit_draws"]
    old = json.dumps(told | {"version": 1}).encode()
    pq.write_table(table.replace_schema_metadata({b"rlpheads.ledger": old}), path)
    assert read_ledger(path).metadata == METADATA
