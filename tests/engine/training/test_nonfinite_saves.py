"""A state that is not finite is never saved, whenever that is found out."""

import torch

from rlpheads.engine.runs.checkpoint import list_whole
from rlpheads.engine.runs.finite_content import NonfiniteStateError


def test_what_is_saved_while_training_goes_on_is_looked_at_first(tiny, build):
    """On the copy: the run ends at the next step that asks, whatever else failed saves may do."""
    training = build(tiny)
    with torch.no_grad():
        training.learner.backbone.module.backbone.head.bias[0] = torch.nan
    training.save()
    training.saver.wait()
    assert training.saver.has_failed_for_good
    assert isinstance(failure := training.saver.last_failure, NonfiniteStateError)
    assert str(failure) == "not finite after step 0: backbone.backbone.head.bias"
    assert not list_whole(training.run.folder.checkpoints)
