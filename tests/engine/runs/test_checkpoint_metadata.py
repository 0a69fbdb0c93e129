"""A checkpoint from a stranger runs no code: neither its metadata nor its tensors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strangers_files import Command, make_manifest_agree, replace_metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.checkpoint import CheckpointError, Retention, Writers
from rlpheads.engine.runs.checkpoint_metadata import MetadataError, read_metadata
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint


@pytest.fixture
def saved(tmp_path, launched) -> Path:
    state = {"weight": torch.ones(4, 3), "half": [torch.ones(2, dtype=torch.bfloat16), torch.tensor(True)]}
    return write_checkpoint(tmp_path, 1, state, {}, Writers(launched.control, is_main=True), Retention(1))


@pytest.mark.wrong("checkpoint")
def test_metadata_that_calls_a_function_is_refused_by_name(saved, tmp_path, launched):
    replace_metadata(saved, Command(tmp_path / "touched"))
    wanted = (
        r"step=000000001 is damaged: \.metadata asks for posix\.system, which is no part of a checkpoint; there is none"
    )
    with pytest.raises(CheckpointError, match=wanted):
        checkpoint.verify(saved, checkpoint.read_manifest(saved)["files"])
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):  # where nobody verified
        checkpoint.load(saved, {"weight": torch.zeros(4, 3)}, launched)
    assert not (tmp_path / "touched").exists()


def as_it_is(found):
    return found


def as_an_object(found):
    """Declare a tensor to be an object, which torch would unpickle freely."""
    place = next(iter(found.storage_data.values()))
    return replace(
        found,
        state_dict_metadata={**found.state_dict_metadata, "weight": BytesStorageMetadata()},
        storage_data={**found.storage_data, MetadataIndex("weight"): place},
    )


@pytest.mark.long
@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("declared", [as_it_is, as_an_object])
def test_shard_that_calls_a_function_is_not_run(saved, tmp_path, launched, declared):
    (shard,) = saved.glob("*.distcp")
    torch.save(Command(tmp_path / "touched"), shard)
    found = read_metadata(saved)
    length = shard.stat().st_size
    places = {index: replace(place, offset=0, length=length) for index, place in found.storage_data.items()}
    replace_metadata(saved, declared(replace(found, storage_data=places)))
    with pytest.raises(CheckpointError, match=r"\(Trying to load unsupported GLOBAL posix.system") as caught:
        checkpoint.verify(saved, checkpoint.read_manifest(saved)["files"])
    assert "\n" not in str(caught.value)
    state = {"weight": torch.zeros(4, 3), "half": [torch.zeros(2, dtype=torch.bfloat16), torch.tensor(False)]}
    with pytest.raises(CheckpointError, match="unsupported GLOBAL posix.system"):
        checkpoint.load(saved, state, launched)
    assert not (tmp_path / "touched").exists()


def no_metadata(_found):
    return {}


def no_places(found):
    return replace(found, storage_data=None)


def elsewhere(found):
    places = {index: replace(place, relative_path="../other") for index, place in found.storage_data.items()}
    return replace(found, storage_data=places)


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("change", [elsewhere, no_metadata, no_places])
def test_metadata_lists_the_checkpoints_own_files_alone(saved, change):
    replace_metadata(saved, change(read_metadata(saved)))
    with pytest.raises(MetadataError, match="lists something else than entries of the checkpoint's own files"):
        read_metadata(saved)


@pytest.mark.long
@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", bytes(99), b"\x80\x05K\x01b."])
def test_damaged_metadata_is_one_line(saved, content):
    (saved / ".metadata").write_bytes(content)
    make_manifest_agree(saved)
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read \(") as caught:
        checkpoint.verify(saved, checkpoint.read_manifest(saved)["files"])
    assert "\n" not in str(caught.value)
