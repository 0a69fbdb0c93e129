"""What a trained part says of its gradients."""

import torch
from torch import nn

from rlpheads.engine.learner.parts import total_norm


def test_the_norm_of_a_large_gradient_is_right_to_a_millionth():
    """Taken at once it is 1e-4 too small: torch adds the squares of four million numbers in a few lanes of float32."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.empty(shape)) for shape in ((8192, 512), (8192,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    expected = sum(float(each.grad.double().square().sum()) for each in parameters) ** 0.5
    torch.testing.assert_close(float(total_norm(parameters)), expected, rtol=1e-6, atol=0)
