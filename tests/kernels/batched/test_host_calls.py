"""What the host does around few labels, in calls: at these sizes it is most of what a step of the heads takes."""

import pytest
import torch
from host_calls import count_calls

from rlpheads.kernels.random_label_loss import random_label_losses


# 246 and 421 when this was written, by torch 2.14; 2.11 makes up to 80 more
@pytest.mark.parametrize(("num_heads", "limit"), [(1, 270), (12, 520)])
def test_a_step_of_few_labels_makes_few_calls(num_heads: int, limit: int) -> None:
    features = [torch.randn(8, 4) for _ in range(num_heads)]
    weights = [torch.randn(10, 4, requires_grad=True) for _ in features]
    biases = [torch.zeros(10, requires_grad=True) for _ in features]
    labels = [torch.randint(10, (8,)) for _ in features]

    def step() -> None:
        random_label_losses(features, weights, labels, biases=biases).cross_entropy_HB.mean().backward()

    counts = [count_calls(step) for _ in range(4)]
    assert counts[1] == counts[2] == counts[3] <= limit
