from decimal import Decimal

import pytest

from evaluation.cost import estimate_credits, format_credits


@pytest.mark.parametrize(
    ("weights", "precision", "size", "expected"),
    [
        ("klein-4b", None, 1024, "1.4"),
        ("klein-4b", "fp8", 1024, "1.4"),
        ("klein-4b", "bf16", 1024, None),
        ("klein-9b", None, 1040, "1.7"),
        ("klein-9b-kv", "bf16", 2048, "2.1"),
        ("pocket", "bf16", 128, "0.1"),
    ],
)
def test_an_image_costs_what_the_catalogue_says(weights: str, precision: None, size: int, expected: str | None) -> None:
    found = estimate_credits(weights, precision, width=size, height=size)
    assert found == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize(
    ("amount", "said"),
    [("9.8", "about 9.8 credits"), ("14", "about 14 credits"), ("1", "about 1 credit"), ("0.02", "about 0.1 credits")],
)
def test_credits_in_words(amount: str, said: str) -> None:
    assert format_credits(Decimal(amount)) == said
