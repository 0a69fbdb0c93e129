"""Manifests that anybody may have written, sealed as a run seals them: read whole, or refused in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.engine.gauges.spikes import SpikeDetector
from rlpheads.engine.runs.checkpoint import DamagedCheckpointError, write_sealed_manifest
from rlpheads.engine.runs.record_digests import FileDigest
from rlpheads.engine.runs.run_manifest import Position, RunManifest, WindowShape, read_run_manifest

FULL = {
    "step": 7,
    "files": {".metadata": {"bytes": 900, "xxh3_128": "ab"}},
    "fingerprint": "f",
    "heldout_fingerprint": "h",
    "config": {"epochs": 3, "data": {"root": "images"}},
    "position": {"epoch": 1, "consumed": 64, "left_out": [3, 9], "skipped_in_a_row": [6, 7]},
    "regularizer_factor": 0.25,
    "contents": {"train": {"17": "ab12"}},
    "order_version": 1,
    "window": {"names": ["class_loss", "backbone_grad_norm"], "steps": [6, 7], "ranks": 2},
    "record": {"metrics.jsonl": {"bytes": 3, "sha256": "cd"}},
    "spikes": {"class_loss": [40, 2.5, 0.125]},
}
"""Of a run that writes all that there is to say."""


def read(folder: Path, content: dict) -> RunManifest:
    write_sealed_manifest(folder, content)
    return read_run_manifest(folder)


def test_what_a_run_says_comes_back(tmp_path):
    """Also the batches that it left out, and how many in a row it skipped: a resume goes on exactly there."""
    found = read(tmp_path, FULL)
    assert (found.step, found.factor, found.config) == (7, 0.25, FULL["config"])
    assert found.position == Position(1, 64, (3, 9), (6, 7))
    assert found.window == WindowShape(("class_loss", "backbone_grad_norm"), (6, 7), 2)
    assert found.record == {"metrics.jsonl": FileDigest(3, "cd")}
    assert found.contents == FULL["contents"]
    detector = SpikeDetector(20, 8.0)
    detector.load(found.spikes)
    assert detector.state() == {"class_loss": (40, 2.5, 0.125)}


def test_what_older_versions_did_not_say_counts_as_nothing(tmp_path):
    older = {key: FULL[key] for key in ("step", "files", "fingerprint", "heldout_fingerprint", "config")}
    found = read(tmp_path, older | {"position": {"epoch": 1, "consumed": 64}, "regularizer_factor": 0})
    assert found.position == Position(1, 64)
    assert (found.window, found.order_version, found.record, found.spikes, found.contents) == (None, 1, {}, {}, {})


WRONG = {
    "spikes": [3, {"class_loss": 1}, {"class_loss": [1, 2]}, {"class_loss": ["a", 0, 0]}, {"class_loss": [9, 1, -1]}],
    "position": [
        {"epoch": 1, "consumed": 64, "left_out": [3, "x"]},
        {"epoch": 1, "consumed": 64, "left_out": 3},
        {"epoch": 1, "consumed": 64, "skipped_in_a_row": [-1]},
        {"epoch": 1.5, "consumed": 64},
    ],
    "window": [
        7,
        {"names": ["a"], "steps": [1], "ranks": 2**62},
        {"names": [1], "steps": [1], "ranks": 1},
        {"names": ["a"], "steps": [[]], "ranks": 1},
    ],
    "record": [{"../status.json": {"bytes": 1, "sha256": "a"}}, {"/etc/passwd": {"bytes": 1, "sha256": "a"}}, {"m": 1}],
    "contents": [{"train": {"007": "ab"}}, {"train": {"9" * 5000: "ab"}}, {"train": {"٣": "ab"}}, {"train": 1}],
    "config": ["text", json.loads('{"a":' * 40 + "1" + "}" * 40)],
    "regularizer_factor": [float("nan"), float("inf"), "0.5", None],
    "files": [{"../x": {"bytes": 1, "sha256": "a"}}, {"a/b": {"bytes": 1, "sha256": "a"}}, {".metadata": {"bytes": 1}}],
    "order_version": [-1, "1"],
    "fingerprint": [3],
}


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_field_that_is_none_is_damage_in_one_line(tmp_path, key, value):
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is damaged") as caught:
        read(tmp_path, FULL | {key: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FULL)), st.sampled_from([None, *FULL["position"], "names", "ranks", "train"]), JSON)
def test_any_value_anywhere_is_taken_or_refused(tmp_path_factory, key, inner, value):
    content = dict(FULL)
    nested = content[key]
    content[key] = nested | {inner: value} if isinstance(nested, dict) and inner is not None else value
    try:
        found = read(tmp_path_factory.getbasetemp(), content)
    except DamagedCheckpointError:
        return
    SpikeDetector(20, 8.0).load(found.spikes)
    assert json.dumps(found.config) == json.dumps(content["config"])
