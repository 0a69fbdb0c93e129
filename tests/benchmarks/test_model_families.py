"""Models of several families take a whole step with heads; `benchmarks/model_families.py` tries all of them."""

import model_families
import pytest


@pytest.mark.parametrize(
    ("family", "name", "num_taps"),
    [
        ("vision_transformer", "test_vit", 6),
        ("convnext", "test_convnext", 4),
        ("resnet", "test_resnet", 5),
        ("efficientnet", "test_efficientnet", 5),
        ("maxxvit", "test_coatnet", 5),
        ("mambaout", "test_mambaout", 4),
        ("wide_resnet", "wrn_16_4", 4),
    ],
)
def test_a_step_with_heads_goes_through(family, name, num_taps):
    result = model_families.try_family(family, name)
    assert result.reason == ""
    assert result.taps == num_taps


def test_a_model_that_cannot_be_tapped_is_named_with_the_reason():
    assert model_families.try_family("none", "vit_of_no_kind").reason.startswith(
        "ValueError: model.name=vit_of_no_kind cannot be built"
    )


@pytest.mark.slow
def test_every_family_works_but_one_that_is_named_with_the_reason():
    tried = {
        name: model_families.try_family(name, models[0]) for name, models in model_families.smallest_models().items()
    }
    assert len(tried) >= 25
    reasons = {name: result.reason for name, result in tried.items() if result.reason}
    assert reasons.keys() == {"gemma4_vit"}
    assert "Tensor.item() cannot be called on meta tensors" in reasons["gemma4_vit"]  # it reads a number of its input
