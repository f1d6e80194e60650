"""Numbers and texts as people type them and programs send them: a value, or a sentence that names the field."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evaluation.strengths import join_strengths, parse_strengths
from lora_runtime.errors import InvalidInput
from lora_runtime.written import plain_signs, read_decimal, read_text, read_whole

no_deadline = settings(deadline=None)  # a busy machine is no failure

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def refused(read: Callable[[], object]) -> str | None:
    """The sentence of a refusal, or None where there was a value."""
    try:
        read()
    except InvalidInput as error:
        return str(error)
    return None


@pytest.mark.parametrize("given_", [7, 7.0, "7", " 7 ", "+7", "7.0", "7.", "７", "٧", "\u200b7\u00a0", Decimal(7)])
def test_one_number_in_every_spelling(given_: object) -> None:
    assert read_whole("Seed", given_) == 7
    assert read_decimal("Strength", given_) == 7


@pytest.mark.parametrize(
    ("given_", "number"),
    [
        ("0.85", "0.85"), (".5", "0.5"), ("0,85", "0.85"), ("－０．５", "-0.5"), ("−1", "-1"), ("0.30", "0.3"),
        (0.1 + 0.2, "0.3"), (1e-4, "0.0001"), ("1e-3", "0.001"), (1e300, "1e300"), ("0.12345678901", "0.12345678901"),
    ],
)  # fmt: skip
def test_a_number_is_exact_and_the_noise_of_a_float_is_not_part_of_it(given_: object, number: str) -> None:
    assert read_decimal("Strength", given_) == Decimal(number)


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("seven", "'seven'"), ("", "''"), ("1 2", "'1 2'"), ("1_000", "'1_000'"), ("0x7", "'0x7'"), (True, "True"),
        (None, "None"), ([7], "a list"), ({"seed": 7}, "an object"), (float("nan"), "nan"), (float("inf"), "inf"),
        (10**400, "that number"), ("9" * 81, f"'{'9' * 79}…'"), ("x" * 9000, f"'{'x' * 79}…'"), (b"7", "b'7'"),
        ("\ud800" * 99, "'" + "\\ud800" * 13 + "\\…'"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_shown_and_the_field_named(given_: object, shown: str) -> None:
    with pytest.raises(InvalidInput) as whole:
        read_whole("Seed", given_)
    assert str(whole.value) == f"Seed: {shown} is not a whole number. Write one such as 7."
    with pytest.raises(InvalidInput) as number:
        read_decimal("Guidance", given_, remedy="Leave it empty.")
    assert str(number.value) == f"Guidance: {shown} is not a number. Leave it empty."


@pytest.mark.parametrize("given_", [7.5, "7.5", 1e-9])
def test_a_fraction_is_not_a_whole_number(given_: object) -> None:
    with pytest.raises(InvalidInput, match="is not a whole number"):
        read_whole("Width", given_)


def test_a_text_is_a_text() -> None:
    assert (read_text("Prompt", "7"), read_text("Prompt", None)) == ("7", "")
    with pytest.raises(InvalidInput, match="Prompt: a list is not a text"):
        read_text("Prompt", ["a cat"])


@pytest.mark.parametrize(
    ("given_", "strengths"),
    [
        ("0-1 [3]", "0, 0.5, 1"), ([0, 0.5], "0, 0.5"), (0.5, "0.5"), (17.0, None), ("0.7", "0.7"), ([], None),
        ([0, "0.5", "0.7 to 0.9 [2]"], "0, 0.5, 0.7, 0.9"), ([0.1 * 3, 1.1 * 3], "0.3, 3.3"), ((1, 0), "1, 0"),
        (None, None), ([None], None), ([[0], 1], None), ({"strengths": 1}, None), (True, None), ([0] * 9000, None),
    ],
)  # fmt: skip
def test_strengths_of_a_program(given_: object, strengths: str | None) -> None:
    if strengths is not None:
        assert parse_strengths(join_strengths(given_)) == parse_strengths(strengths)
        return
    with pytest.raises(InvalidInput, match="Strengths"):
        parse_strengths(join_strengths(given_))


@no_deadline
@given(st.text())
def test_plain_signs_keep_every_position(text: str) -> None:
    assert len(plain_signs(text)) == len(text)
    assert plain_signs(plain_signs(text)) == plain_signs(text)


@no_deadline
@pytest.mark.parametrize("read", [read_whole, read_decimal, read_text])
@given(given_=anything)
@example(given_="\ud800" * 60)
@example(given_=-(10**5000))
@example(given_="1e999")
def test_anything_is_a_value_or_a_sentence(read: Callable[[str, object], object], given_: object) -> None:
    said = refused(lambda: read("Field", given_))
    assert said is None or (said.startswith("Field: ") and said.endswith(".") and len(said) < 400)


@no_deadline
@given(anything)
@example([1e300])
@example(["1"] * 3000)
def test_strengths_of_any_program_are_values_or_a_sentence(given_: object) -> None:
    said = refused(lambda: parse_strengths(join_strengths(given_)))
    assert said is None or (said.startswith("Strengths") and said.endswith(".") and len(said) < 300)
