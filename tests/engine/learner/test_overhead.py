"""What heads cost: measured on steps of the run itself, once everything is written, and not where it would take long."""

from dataclasses import replace

from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.learner.overhead import num_timed_pairs, time_heads


def timed(training, num_pairs=3):
    training.learner.train()
    delivered = next(iter(training.splits.trained.loader))
    batch = training.preparation.for_training(delivered, 0, 0)
    training.step(batch, 0, training.term_weights)
    return time_heads(training.step, batch, 1, training.term_weights, num_pairs)


def steps_of(part) -> set[float]:
    return {float(state["step"]) for state in part.optimizer.state.values()}


def test_steps_with_heads_and_without_are_taken_in_turn_and_the_bytes_of_heads_counted(tiny, build):
    training = build(tiny, heads=replace(tiny.heads, labels=1000))
    found = timed(training)
    heads, (num_draws, num_samples) = training.learner.heads, training.splits.trained.table_MN.shape
    assert (steps_of(training.learner.backbone), steps_of(heads)) == ({1 + 2 * (2 + 3)}, {1 + 2 + 3})
    weights = sum(each.nbytes for each in heads.module.parameters())
    labels = training.splits.trained.table_MN.nbytes
    columns = num_samples * 2 * num_draws * (1 + 4 + 4)
    counts = 4 * len(list(heads.module.parameters()))  # AdamW keeps two moments and a count of steps
    assert found.kept_bytes == 3 * weights + labels + columns + counts
    assert found.step_bytes is None
    assert f"overhead of the heads: {100 * found.share:+.1f}% time a step" in found.describe()


def test_audit_heads_and_a_regulariser_are_part_of_what_heads_cost(tiny, build):
    regularizer = RegularizerConfig(kind="uniform", factor=0.5)
    training = build(tiny, regularizer=regularizer, heads=replace(tiny.heads, labels=2000, audit_draws=4))
    assert timed(training).kept_bytes > 3 * 4 * 2 * 6 * 2000 * 24  # floats of two taps, two draws and four audit draws
    assert training.learner.tapped.taps == (0, 1)  # the taps are read again


def test_nothing_is_timed_where_there_is_nothing_to_compare(tiny, build):
    assert timed(build(tiny, heads=replace(tiny.heads, taps="none"))) is None
    assert timed(build(tiny, model=replace(tiny.model, frozen=True))) is None
    assert [num_timed_pairs(steps) for steps in (0, 59, 60, 139, 200, 10**6)] == [0, 0, 3, 6, 10, 10]
