"""A checkpoint is whole or it is none."""

import json
from pathlib import Path

import pytest
import torch
from strangers_files import make_manifest_agree

from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.checkpoint import CheckpointError, DamagedCheckpointError, Retention, Writers
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint

FACTS = {"position": {"epoch": 1, "consumed": 64}}


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.full((100, 10), value), "steps": torch.tensor(3)}}


def save(folder: Path, step: int, launched, value: float = 1.0, keep: int = 2) -> Path:
    return write_checkpoint(folder, step, state(value), FACTS, Writers(launched.control, is_main=True), Retention(keep))


def verified(path: Path) -> dict:
    manifest = checkpoint.read_manifest(path)
    checkpoint.verify(path, manifest["files"])
    return manifest


def test_round_trip(tmp_path, launched):
    saved = save(tmp_path, 7, launched, value=2.5)
    assert saved.name == "step=000000007"
    assert verified(saved)["position"] == FACTS["position"]
    loaded = state(0.0)
    checkpoint.load(saved, loaded, launched)
    torch.testing.assert_close(loaded, state(2.5), rtol=0, atol=0)


def test_newest_is_found_and_older_ones_go(tmp_path, launched):
    for step in (9, 10, 100):
        save(tmp_path, step, launched)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=000000010", "step=000000100"]
    assert checkpoint.list_whole(tmp_path)[-1] == tmp_path / "step=000000100"


def test_folder_without_manifest_is_no_checkpoint(tmp_path, launched):
    save(tmp_path, 1, launched)
    torn = save(tmp_path, 2, launched)
    (torn / "manifest.json").unlink()
    assert checkpoint.list_whole(tmp_path) == [tmp_path / "step=000000001"]
    assert checkpoint.list_whole(tmp_path / "nowhere") == []


def test_leftover_of_a_killed_save_is_no_checkpoint_and_no_obstacle(tmp_path, launched):
    leftover = tmp_path / ".step=000000005.tmp"
    leftover.mkdir()
    (leftover / "manifest.json").write_text("{}")
    assert checkpoint.list_whole(tmp_path) == []
    assert verified(save(tmp_path, 5, launched))["step"] == 5


def test_same_step_is_replaced(tmp_path, launched):
    save(tmp_path, 5, launched, value=1.0)
    saved = save(tmp_path, 5, launched, value=4.0)
    loaded = state(0.0)
    checkpoint.load(saved, loaded, launched)
    assert loaded["model"]["weight"][0, 0] == 4.0
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def test_checkpoint_set_aside_by_a_killed_save_is_found(tmp_path, launched):
    save(tmp_path, 5, launched).rename(tmp_path / ".step=000000005.old")
    checkpoint.sweep(tmp_path)
    (found,) = checkpoint.list_whole(tmp_path)
    assert found == tmp_path / "step=000000005"
    verified(found)


def test_leftovers_of_other_steps_are_swept(tmp_path, launched):
    (tmp_path / ".step=000000003.tmp").mkdir()
    save(tmp_path, 5, launched)
    assert [path.name for path in tmp_path.iterdir()] == ["step=000000005"]


def test_sweeping_takes_what_killed_saves_and_removals_leave_and_nothing_else(tmp_path, launched):
    whole = save(tmp_path, 5, launched)
    for name in (".step=000000005.old", ".step=000000001.gone", ".step=000000007.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    for name in ("damaged.step=000000003", ".step=five.tmp", ".notes.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".step=000000009.tmp").symlink_to(whole)
    save(tmp_path, 5, launched)
    kept = {"damaged.step=000000003", ".step=five.tmp", ".notes.tmp", ".step=000000009.tmp", whole.name}
    assert {path.name for path in tmp_path.iterdir()} == kept


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "does not have the hash that was recorded when it was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes, not \d+"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["flipped bit", "cut short", "gone"],
)
def test_damage_is_named(tmp_path, launched, damage, message):
    saved = save(tmp_path, 1, launched)
    (shard,) = saved.glob("*.distcp")
    damage(shard)
    with pytest.raises(CheckpointError, match=f"{shard.name} {message}.*begin again with --run.overwrite"):
        verified(saved)


def test_files_that_an_older_version_hashed_by_sha256_are_compared(tmp_path, launched):
    saved = save(tmp_path, 1, launched)
    make_manifest_agree(saved)
    assert {"sha256", "bytes"} == verified(saved)["files"][".metadata"].keys()
    (shard,) = saved.glob("*.distcp")
    flip(shard)
    with pytest.raises(CheckpointError, match="does not have the hash"):
        verified(saved)


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("facts", [7, {}, {"bytes": 3}, {"bytes": "3", "sha256": ""}, {"bytes": 3, "xxh3_128": 1}])
def test_facts_of_a_file_that_say_no_size_or_hash_are_damage(tmp_path, launched, facts):
    saved = save(tmp_path, 1, launched)
    manifest = checkpoint.read_manifest(saved)
    checkpoint.write_sealed_manifest(saved, {"step": 1, "files": manifest["files"] | {".metadata": facts}})
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is damaged \(.*; there is none before it"):
        checkpoint.read_manifest(saved)


@pytest.mark.wrong("checkpoint")
def test_content_that_is_not_finite_is_damage_whatever_the_hashes_say(tmp_path, launched):
    verified(save(tmp_path, 1, launched))
    spoiled = save(tmp_path, 2, launched, value=torch.nan)
    with pytest.raises(DamagedCheckpointError, match=r"step=000000002 is not finite: model\.weight; .*step=000000001"):
        verified(spoiled)


def test_remedy_names_the_checkpoint_before(tmp_path, launched):
    save(tmp_path, 1, launched)
    saved = save(tmp_path, 2, launched)
    (saved / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="move that folder away to resume from step=000000001"):
        verified(saved)


@pytest.mark.wrong("checkpoint")
def test_damaged_manifest_is_named(tmp_path, launched):
    saved = save(tmp_path, 1, launched)
    (saved / "manifest.json").write_text('{"step": 1, "fi')
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        checkpoint.read_manifest(saved)


@pytest.mark.wrong("checkpoint")
def test_manifest_that_says_something_else_is_damaged(tmp_path, launched):
    """Wherever it was changed; but not for how it is laid out, nor when a version that knew no hash wrote it."""
    saved = save(tmp_path, 1, launched)
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    for change in ({"step": 2}, {"position": {"epoch": 1, "consumed": 96}}, {"sha256": ""}, {"more": 1}):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged \(it does not have the hash"):
            checkpoint.read_manifest(saved)
    path.write_text(json.dumps(manifest, sort_keys=True))
    assert checkpoint.read_manifest(saved) == manifest
    before_hashes = {key: value for key, value in manifest.items() if key not in ("format", "sha256")}
    path.write_text(json.dumps(before_hashes))
    assert checkpoint.read_manifest(saved) == before_hashes


def test_manifest_of_a_later_format_is_no_damage(tmp_path, launched):
    saved = save(tmp_path, 1, launched)
    checkpoint.write_sealed_manifest(saved, checkpoint.read_manifest(saved) | {"format": checkpoint.FORMAT + 1})
    with pytest.raises(CheckpointError, match=rf"is of format {checkpoint.FORMAT + 1}: a later version") as caught:
        checkpoint.read_manifest(saved)
    assert not isinstance(caught.value, checkpoint.DamagedCheckpointError)


def test_damaged_checkpoints_are_set_aside_under_names_of_their_own(tmp_path, launched):
    names = [checkpoint.set_aside(save(tmp_path, 1, launched)).name for _ in range(3)]
    assert names == ["damaged.step=000000001", "damaged.step=000000001.1", "damaged.step=000000001.2"]
    assert checkpoint.list_whole(tmp_path) == []


def test_manifest_covers_every_file(tmp_path, launched):
    saved = save(tmp_path, 1, launched)
    files = json.loads((saved / "manifest.json").read_text())["files"]
    assert set(files) == {path.name for path in saved.iterdir()} - {"manifest.json"}


def test_ends_of_epochs_are_kept_whatever_steps_add(tmp_path, launched):
    """Of the newest two, and of the newest two that close an epoch."""
    writers = Writers(launched.control, is_main=True)
    for step in range(1, 12):
        position = {"epoch": step // 4, "consumed": step % 4 * 32}
        write_checkpoint(tmp_path, step, state(1.0), {"position": position}, writers, Retention(2, epochs=2))
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["04", "08", "10", "11"]


def test_weights_hash_sees_one_bit_and_nothing_else():
    layer = torch.nn.Linear(3, 2)
    before = checkpoint.weights_sha256(layer)
    assert checkpoint.weights_sha256(layer.requires_grad_(False)) == before
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert checkpoint.weights_sha256(layer) != before
