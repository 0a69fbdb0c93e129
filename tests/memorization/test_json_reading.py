"""JSON of run folders: whatever is wrong with it is one error of one line that says what."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping, read_rows

KINDS = {"kind": "text", "step": "count"}


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "it holds no mapping"),
        (b"\xff", "can't decode byte"),
        (b'{"kind": 1, "step": 2}', "kind is 1, which is no text"),
        (b'{"kind": "epoch", "step": true}', "step is True, which is no count"),
        (b'{"kind": "epoch", "step": -1}', "step is -1, which is no count"),
        (b'{"kind": "epoch", "step": 9223372036854775808}', "which is no count"),
        (b'{"kind": "epoch", "step": null}', "step is None, which is no count"),
        (b'{"kind": "epoch"}', "it lacks step"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_each_damage_is_one_error_with_its_reason(content, reason):
    with pytest.raises(DamagedJsonError, match=reason) as caught:
        parse_mapping(content, KINDS)
    assert "\n" not in str(caught.value)


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize("value", ['"0.5"', "{}", "[[1]]", '[1, "2"]', "1" + "0" * 400])
def test_a_figure_is_a_number_or_a_list_of_numbers(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        f'{{"kind": "step", "step": 1, "loss": [0.5, null]}}\n{{"kind": "step", "step": 2, "loss": {value}}}\n'
    )
    with pytest.raises(DamagedJsonError, match="line 2: loss is .*, which is no number"):
        list(read_rows(path, KINDS))


LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(TREES)
def test_what_is_parsed_is_what_was_written_or_an_error_of_its_own(value):
    content = json.dumps(value).encode()
    try:
        found = parse_mapping(content)
    except DamagedJsonError:
        assert not isinstance(value, dict)
    else:
        assert json.dumps(found) == json.dumps(value)
