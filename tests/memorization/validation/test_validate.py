"""The table of known answers: what it runs, what it prints, and that it can fail."""

import io
import math

import pytest
from rich.console import Console

from rlpheads.memorization.validation import (
    closed_form_answers,
    membership_answers,
    simulated_answers,
    trained_answers,
    validate,
)
from rlpheads.memorization.validation.known_answer import KnownAnswer

QUICK = (
    *closed_form_answers.CHECKS,
    simulated_answers.separability_simulated,
    simulated_answers.held_out_at_chance,
    trained_answers.regularizer_gradients,
    trained_answers.regularizer_effect,
    trained_answers.detachment,
    membership_answers.nearest_neighbour_memorisation,
)


@pytest.mark.long
@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
def test_known_answers(check):
    answers = check()
    assert answers
    assert [answer for answer in answers if not answer.passed] == []


@pytest.mark.slow
def test_the_whole_table_passes():
    assert validate.main(console=Console(file=io.StringIO())) == 0


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        (KnownAnswer("inside", 1.0, 1.05, 0.1), True),
        (KnownAnswer("outside", 1.0, 1.2, 0.1), False),
        (KnownAnswer("equal", 2, 2, 0), True),
        (KnownAnswer("above a bound", 0.85, 0.99, 0.0, at_least=True), True),
        (KnownAnswer("below a bound", 0.85, 0.8, 0.0, at_least=True), False),
        (KnownAnswer("not a number", 1.0, math.nan, 10.0), False),
        (KnownAnswer("not a number", 1.0, math.nan, 10.0, at_least=True), False),
    ],
)
def test_verdicts(answer, passed):
    assert answer.passed is passed


def test_one_answer_off_fails_the_run_and_is_marked():
    def sound():
        """A sound check.

        With more to say.
        """
        return [KnownAnswer("right", 1.0, 1.0, 0.0)]

    def unsound():
        """An unsound check."""
        return [KnownAnswer("wrong", 1.0, 2.0, 0.5)]

    output = io.StringIO()
    console = Console(file=output, width=120)
    assert validate.main([sound], console) == 0
    assert "OFF" not in output.getvalue()
    assert "A sound check" in output.getvalue()
    assert validate.main([sound, unsound], console) == 1
    assert "OFF" in output.getvalue()
    assert "1 of 2 known answers within tolerance" in output.getvalue()


def test_an_empty_table_fails():
    assert validate.main([], Console(file=io.StringIO())) == 1


def test_every_check_has_a_title_of_its_own():
    titles = [validate.title(check) for check in validate.CHECKS]
    assert len(set(titles)) == len(titles)
    assert "Untitled" not in titles
