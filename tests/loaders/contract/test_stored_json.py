"""JSON beside data: whatever is wrong with it is one ValueError of one line that says what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.loaders.contract.stored_json import check_types, parse_json, reasons_by_index

TYPES = {"split": str, "num_bytes": int, "split_key": str | None}
RIGHT = {"split": "train", "num_bytes": 3, "split_key": None}


@pytest.mark.wrong("file")
@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff", b"", b"{", b"1" * 5000])
def test_what_is_no_json_is_a_value_error_of_one_line(content):
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_bytes": True}, "num_bytes is True, which is no int"),
        ({"num_bytes": 2**63}, "num_bytes is 9223372036854775808"),
        ({"num_bytes": -1}, "num_bytes is -1"),
        ({"num_bytes": 1.0}, "num_bytes is 1.0"),
        ({"split": None}, "split is None"),
        ({"split_key": 1}, r"split_key is 1, which is no str \| None"),
        ({"other": 1}, "'other', which is no key"),
    ],
)
def test_a_value_of_another_type_is_named(change, reason):
    assert check_types(dict(RIGHT), TYPES) == RIGHT
    with pytest.raises(ValueError, match=reason):
        check_types(RIGHT | change, TYPES)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_is_of_the_form_or_a_value_error(value):
    for check in (lambda: check_types(value, TYPES), lambda: reasons_by_index(value if type(value) is dict else {})):
        try:
            found = check()
        except ValueError as error:
            assert str(error)
        else:
            assert isinstance(found, dict)
