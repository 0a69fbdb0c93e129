"""The table of damaged files says what became of them, and does not call it as stated when it is not."""

from dataclasses import replace
from io import StringIO

import pytest
from failure_corpus import Trial, file_table, summary, try_all
from image_corpus import CORPUS, CorpusFile, Outcome
from rich.console import Console

pytestmark = pytest.mark.long

SOME = ("baseline.JPEG", "text.jpg", "half_with_an_end.jpg")


def printed(table) -> str:
    text = StringIO()
    Console(width=200, file=text).print(table)
    return text.getvalue()


@pytest.fixture(scope="module")
def files() -> list[CorpusFile]:
    return [file for file in CORPUS if file.name in SOME]


def test_files_are_tried_three_times_and_counted(files):
    tried = try_all(files, ["torch"])
    assert tried == {
        "torch": {
            "baseline.JPEG": Trial("read", "read", "read"),
            "text.jpg": Trial("skipped", "error", "skipped"),
            "half_with_an_end.jpg": Trial("read", "read", "skipped"),
        }
    }
    text = printed(summary(files, tried | {"ffcv": None}))
    assert "3 of 3" in text
    assert "1 of 1 (1 with a picture)" in text
    assert "not installed" in text
    assert "skipped, error, skipped" in printed(file_table(files, tried))


def test_what_is_not_as_stated_is_not_counted(files):
    """A plain text that is said to be a picture, and a picture that is said to be none."""
    wrong = {Outcome.READ: Outcome.REFUSED, Outcome.REFUSED: Outcome.READ}
    swapped = [replace(file, outcome=wrong[file.outcome]) for file in files if file.outcome in wrong]
    assert "0 of 2" in printed(summary(swapped, try_all(swapped, ["torch"])))


@pytest.mark.parametrize(
    "tried", [("skipped", "read", "skipped"), ("read", "read", "read"), ("read", "error", "skipped")]
)
def test_a_damaged_file_must_be_treated_alike_and_be_left_out_once_verified(tried):
    assert not Trial(*tried).is_as_stated(Outcome.DAMAGED)
