"""Models of several families take a whole step with heads; `benchmarks/model_families.py` tries all of them."""

import model_families
import pytest


@pytest.mark.long
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
def test_every_family_works_that_is_not_too_large_to_be_tried():
    tried = {
        family: model_families.try_family(family, name)
        for family, (size, name) in model_families.smallest_models().items()
        if size <= model_families.MOST_PARAMETERS
    }
    assert len(tried) >= 85
    assert {family: result.reason for family, result in tried.items() if result.reason} == {}
