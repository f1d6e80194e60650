from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evaluation.strengths import (
    DEFAULT_STRENGTHS,
    HIGHEST,
    LOWEST,
    MAX_TEXT,
    MAX_VALUES,
    exact,
    format_strength,
    format_strengths,
    note_strengths,
    parse_strengths,
    refine_strengths,
    unite_strengths,
    write_strengths,
)
from lora_runtime.errors import InvalidStrengths

no_deadline = settings(deadline=None)  # a busy machine is no failure
strengths = st.integers(-150_000, 150_000).map(lambda n: Decimal(n) / 10_000)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0, .5, 1", "0, 0.5, 1"),
        ("0-1.2 [7]", "0, 0.2, 0.4, 0.6, 0.8, 1, 1.2"),
        ("0.7-0.9 (+0.05)", "0.7, 0.75, 0.8, 0.85, 0.9"),
        ("0.7-0.9 (0.05)", "0.7, 0.75, 0.8, 0.85, 0.9"),
        ("0, .5, .., 2", "0, 0.5, 1, 1.5, 2"),
        ("-0.5", "-0.5"),
        ("-1-1 [5]", "-1, -0.5, 0, 0.5, 1"),
        ("-1--0.5 [3]", "-1, -0.75, -0.5"),
        ("1-0 [5]", "1, 0.75, 0.5, 0.25, 0"),
        ("1-0 (+0.5)", "1, 0.5, 0"),
        ("1, .5, .., -1", "1, 0.5, 0, -0.5, -1"),
        ("0, .3, .., 1", "0, 0.3, 0.6, 0.9, 1"),
        ("0, 1, .., 2, .., 4", "0, 1, 2, 3, 4"),
        ("0, .1, .., 0.3-0.5 [2]", "0, 0.1, 0.2, 0.3, 0.5"),
        ("0, 0.5, 0.50, .5, 0", "0, 0.5"),
        ("1, 0", "1, 0"),
        ("+1, -0", "1, 0"),
        ("0-1 [4]", "0, 0.3333, 0.6667, 1"),
        ("0.5-0.5 [3]", "0.5"),
        ("0.5-0.5 (+0.1)", "0.5"),
        ("0-1 (+4)", "0"),
        (" 0\t-\n1[ 3 ] , 2 ", "0, 0.5, 1, 2"),
        ("−1 – 1 [3], 2, 3, …, 4", "-1, 0, 1, 2, 3, 4"),
        ("4, -4", "4, -4"),
        ("0.50000000000", "0.5"),
    ],
)
def test_reads(text: str, values: str) -> None:
    assert format_strengths(parse_strengths(text)) == values


@pytest.mark.parametrize("text", ["0.7-0.9 (+0.1)", "0.7-0.9 [3]", "0.7, 0.8, .., 0.9"])
def test_no_fourth_cell_beyond_the_recommended_range(text: str) -> None:
    """A1111 makes 0.7, 0.7999999999999999, 0.8999999999999999, 0.9999999999999999 of it."""
    assert parse_strengths(text) == (Decimal("0.7"), Decimal("0.8"), Decimal("0.9"))


@pytest.mark.parametrize(
    "text",
    [
        "0.7-0.9", "0.7 - 0.9", "0.7–0.9", "0.7—0.9", "0.7−0.9", "0.7‑0.9", "0.7ー0.9", "0.7 → 0.9", "0.7→0.9",
        "0.7 -> 0.9", "0.7 ==> 0.9", "0.7⇒0.9", "0.7 to 0.9", "0.7to0.9", "0.7 TO .9", "0.7..0.9", "0.7 ... 0.9",
        "0.7…0.9", "0.7‥0.9", "0.7~0.9", "0.7～0.9", "0.7〜0.9", "０．７－０．９", "０。７～０。９", "٠٫٧-٠٫٩",
        "\u200b0.7\u00a0–\u30000.9\ufeff", "[0.7-0.9]",
    ],
)  # fmt: skip
def test_a_range_that_does_not_say_how_many_is_five_values_and_says_so(text: str) -> None:
    assert format_strengths(parse_strengths(text)) == "0.7, 0.75, 0.8, 0.85, 0.9"
    assert note_strengths(text) == "A range without a count or a step is 5 values: 0.7-0.9 [5]."
    for ending in ("[5]", "(+0.05)", "［５］", "【５】", "（＋０．０５）"):
        assert parse_strengths(f"{text.strip('[]')} {ending}") == parse_strengths(text)
        assert note_strengths(f"0, {text.strip('[]')} {ending}") == ""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0; 0.5; 1", "0, 0.5, 1"),
        ("0、0.5，1", "0, 0.5, 1"),
        ("٠، ٠٫٥؛ ١", "0, 0.5, 1"),
        ("[0, 0.5, 1.0]", "0, 0.5, 1"),
        (" [ 0-1 [3] ] ", "0, 0.5, 1"),
        ("0., .5, 1.", "0, 0.5, 1"),
        ("1..2", "1, 1.25, 1.5, 1.75, 2"),
        ("2 to 1, 0", "2, 1.75, 1.5, 1.25, 1, 0"),
        ("-1 – -0.5", "-1, -0.875, -0.75, -0.625, -0.5"),
        ("0.5-0.5", "0.5"),
        ("0 0.5 1", "0, 0.5, 1"),
        ("0\n.5\n1", "0, 0.5, 1"),
        ("[0 0.5\t1]", "0, 0.5, 1"),
        ("0, 0.5 1", "0, 0.5, 1"),
        ("0 0.5-1 [3] 2", "0, 0.5, 0.75, 1, 2"),
        ("0-1 (+0.5) 2", "0, 0.5, 1, 2"),
        ("0 0.5 to 1 [2]", "0, 0.5, 1"),
        ("0 0.5, .., 2", "0, 0.5, 1, 1.5, 2"),
        ("-15 +15", "-15, 15"),
        ("0,1,2", "0, 1, 2"),
        ("0,5,10", "0, 5, 10"),
        ("0,1", "0, 1"),
        ("1,3", "1, 3"),
        ("-5,10", "-5, 10"),
        ("1,5", "1, 5"),
        ("0,0.5,1", "0, 0.5, 1"),
        ("0, 1,2-3, 4", "0, 1, 2, 2.25, 2.5, 2.75, 3, 4"),
    ],
)
def test_reads_what_keyboards_and_programs_write(text: str, values: str) -> None:
    assert format_strengths(parse_strengths(text)) == values


@pytest.mark.parametrize(
    ("text", "position", "meant"),
    [
        ("0,7", 1, "0.7"),
        ("0，7", 1, "0.7"),
        ("-0,5", 2, "-0.5"),
        ("0, 0,7", 4, "0, 0.7"),
        ("0,05", 1, "0.05"),
        ("0,01", 1, "0.01"),
        ("0,7-0,9", 1, "0.7-0.9"),
        ("0,1 - 0,4 [4]", 1, "0.1 - 0.4 [4]"),
        ("0,3-1,2", 1, "0.3-1.2"),
        ("0,3 to 1,2", 1, "0.3 to 1.2"),
        ("0,5 - 1 (+0,1)", 1, "0.5 - 1 (+0.1)"),
        ("0,1, 0,2", 1, "0.1, 0.2"),
        ("0; 0,5; 1", 4, "0; 0.5; 1"),
        ("0 0,5 1", 3, "0 0.5 1"),
        ("0,5 1", 1, "0.5 1"),
        ("0,5; 1", 1, "0.5; 1"),
        ("0,7,0,8,0,9", 1, "0.7,0.8,0.9"),
        ("0, " + "0,25, " * 20 + "1", 4, "0.25"),
    ],
)
def test_a_decimal_comma_has_a_sentence_of_its_own(text: str, position: int, meant: str) -> None:
    with pytest.raises(InvalidStrengths) as caught:
        parse_strengths(text)
    assert (caught.value.position, caught.value.text) == (position, text)
    assert str(caught.value).endswith(f": a comma stands between two values; write a decimal point, as in {meant}.")


def test_a_step_that_does_not_land_stops_before_the_end() -> None:
    assert parse_strengths("0-1 (+0.3)")[-1] == Decimal("0.9")


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", 0, "expected a number"),
        ("[]", 2, "expected a number"),
        ("  ", 2, "expected a number"),
        ("0, x", 3, "expected a number"),
        ("0,", 2, "expected a number"),
        ("0,,1", 2, "expected a number"),
        ("0 x", 2, "a comma"),
        ("0-1 5", 4, "how many a range has"),
        ("0-1 5-6", 4, "how many a range has"),
        ("1e999", 1, "a comma"),
        ("nan", 0, "expected a number"),
        ("inf", 0, "expected a number"),
        ("½", 0, "expected a number"),
        ("²", 0, "expected a number"),
        ("0, 15.5", 3, "from -15 to 15"),
        ("-15.01", 0, "from -15 to 15"),
        ("0-19 [3]", 2, "from -15 to 15"),
        ("0.12345", 6, "4 decimal places"),
        ("0-", 2, "expected a number"),
        ("0 to", 4, "expected a number"),
        ("0-1-2", 3, "how many a range has"),
        ("0-1 step 0.5", 4, "how many a range has"),
        ("0.7 tomorrow", 4, "a comma"),
        ("1 -1", 2, "write a comma before a value of its own, 1, -1, or a range as 1-1"),
        ("0-0.0003", 1, "5 values between 0 and 0.0003 are less than 0.0001 apart"),
        ("0-1 [0.5]", 5, "a step is written (+0.05)"),
        ("[0, 1", 0, "expected a number"),
        ("0-1 [1]", 5, "from 2 to 64"),
        ("0-1 [65]", 5, "from 2 to 64"),
        ("0-1 [-2]", 5, "from 2 to 64"),
        ("0-1 [" + "9" * 900 + "]", 5, "from 2 to 64"),
        ("0-1 [5", 6, 'closing "]"'),
        ("0-1 (+0)", 5, "greater than 0"),
        ("0-1 (-0.1)", 5, "larger number first"),
        ("0-1 (+)", 5, "a step"),
        ("0-1 (+0.1", 9, 'closing ")"'),
        ("0-4 (+0.0001)", 4, "40001 values"),
        ("0-0.001 [64]", 8, "less than 0.0001 apart"),
        ("..", 0, "two values before"),
        ("0, .., 1", 3, "two values before"),
        ("0, 1, ..", 6, "a value after"),
        ("0, 1, .., .., 2", 10, "two values before"),
        ("0, 1, .., -1", 6, "never reaches"),
        ("0, 0, .., 1", 6, "never reaches"),
        ("0, 0.0001, .., 4", 11, "more than 64"),
        ("0-1 [60], 2-3 [60]", 10, "more than 64"),
        ("0, " * MAX_TEXT, MAX_TEXT, "longer than"),
    ],
)
def test_refuses_with_the_position(text: str, position: int, said: str) -> None:
    with pytest.raises(InvalidStrengths, match="character") as caught:
        parse_strengths(text)
    assert (caught.value.position, caught.value.text) == (position, text)
    assert said in str(caught.value)
    assert f"character {position + 1} " in str(caught.value)


@no_deadline
@given(st.lists(strengths, min_size=1, max_size=MAX_VALUES, unique=True))
def test_what_is_written_is_read_back(values: list[Decimal]) -> None:
    assert parse_strengths(format_strengths(values)) == tuple(values)
    assert parse_strengths(write_strengths(values)) == tuple(values)
    assert parse_strengths(", ".join(map(format_strength, values))) == tuple(values)
    assert parse_strengths(" ".join(map(exact, values)).replace(" -", ", -")) == tuple(values)


@no_deadline
@given(strengths, strengths, st.integers(2, MAX_VALUES))
def test_a_counted_range_has_its_count_its_ends_and_its_order(start: Decimal, end: Decimal, count: int) -> None:
    if start != end and abs(end - start) < Decimal(count) / 10_000:
        return  # too close together, refused
    values = parse_strengths(f"{start:f}-{end:f} [{count}]")
    assert values[0] == start
    assert values[-1] == end
    assert len(values) == (count if start != end else 1)
    assert list(values) == sorted(values, reverse=start > end)
    assert parse_strengths(write_strengths(values)) == values


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("0-1.2 [60]", "0-1.2 [60]"),
        ("0, 0.7-0.9 (+0.05)", "0, 0.7-0.9 [5]"),
        ("1-0 [5], 2", "1-0 [5], 2"),
        ("-1--0.5 [6]", "-1--0.5 [6]"),
        ("0-1 [5], 1.2", "0-1 [5], 1.2"),
        (DEFAULT_STRENGTHS, DEFAULT_STRENGTHS),
    ],
)
def test_an_even_range_is_written_as_one(text: str, written: str) -> None:
    assert write_strengths(parse_strengths(text)) == written


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("-2, 0, 2", ""),
        ("5", "Strength 5 is outside -2 to 2: that is for sliders; most LoRAs break there."),
        ("-15-15 [3]", "Strength -15 to 15 is outside -2 to 2: that is for sliders; most LoRAs break there."),
    ],
)
def test_strengths_that_few_loras_take_get_a_word_of_warning(text: str, note: str) -> None:
    assert note_strengths(text) == note


@no_deadline
@given(strengths, strengths, st.integers(1, 90_000).map(lambda n: Decimal(n) / 10_000))
def test_a_stepped_range_stays_within_its_ends(start: Decimal, end: Decimal, step: Decimal) -> None:
    text = f"{start:f}-{end:f} (+{step:f})"
    if abs(end - start) / step >= MAX_VALUES:
        with pytest.raises(InvalidStrengths, match="this step makes"):
            parse_strengths(text)
        return
    values = parse_strengths(text)
    assert values[0] == start
    assert all(min(start, end) <= value <= max(start, end) for value in values)
    assert {abs(after - before) for before, after in pairwise(values)} <= {step}
    assert abs(end - values[-1]) < step


@no_deadline
@given(
    st.text(alphabet="0123456789.-+,[]() …–xe", max_size=40)
    | st.text(alphabet="01.,;-~→to […]（，０７٣〜\u200b", max_size=40)
    | st.text(max_size=40)
)
@example("0-1 [7], 2, .., 3")
@example("0-1 (+" + "9" * 1900 + ")")
@example("0." + "0" * 1900 + ", " + "0" * 90 + "1")
@example(";" * 1000 + "0,1" * 300)
@example("0,1, " * 400)
@example("[" * 1000 + "]" * 1000)
def test_any_text_is_read_or_refused_where_it_is_wrong(text: str) -> None:
    refused = None
    try:
        values = parse_strengths(text)
    except InvalidStrengths as error:
        refused = error
    if refused is not None:
        assert 0 <= refused.position <= len(text)
        assert str(refused).endswith(".")
        assert len(str(refused)) < 300
        return
    assert note_strengths(text) == "" or note_strengths(text).endswith(("].", "break there."))
    assert 1 <= len(values) <= MAX_VALUES
    assert len(set(values)) == len(values)
    assert all(LOWEST <= value <= HIGHEST for value in values)
    assert parse_strengths(format_strengths(values)) == values


@pytest.mark.parametrize(
    ("value", "label", "short"),
    [
        ("0.7", "0.70", "0.7"),
        ("0.1667", "0.1667", "0.1667"),
        ("1", "1.00", "1"),
        ("-0", "0.00", "0"),
        ("1E1", "10.00", "10"),
    ],
)
def test_one_spelling_for_one_value(value: str, label: str, short: str) -> None:
    assert format_strength(Decimal(value)) == label
    assert exact(Decimal(value)) == short


def test_the_default_has_the_base_and_the_advised_range() -> None:
    values = parse_strengths(DEFAULT_STRENGTHS)
    assert values[0] == 0
    assert {Decimal("0.7"), Decimal("0.8"), Decimal("0.9")} <= set(values)


def test_two_lists_are_united_in_the_order_of_the_first() -> None:
    one, more = parse_strengths("0, 1, 0.5"), parse_strengths("0.75, 0.50")
    assert format_strengths(unite_strengths(one, more)) == "0, 0.5, 0.75, 1"
    assert format_strengths(unite_strengths(parse_strengths("1-0 [3]"), more)) == "1, 0.75, 0.5, 0"
    with pytest.raises(InvalidStrengths, match="at most 64"):
        unite_strengths(parse_strengths("0-1 [64]"), [Decimal("0.5")])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.6", "0.8", "0.65, 0.7, 0.75"),
        ("0.8", "0.6", "0.65, 0.7, 0.75"),
        ("-1", "1", "-0.5, 0, 0.5"),
        ("0", "0.1", "0.025, 0.05, 0.075"),
        ("0", "0.0002", "0.0001"),
        ("0", "0.0001", ""),
        ("1", "1", ""),
    ],
)
def test_refining_puts_exact_values_between_two(one: str, other: str, expected: str) -> None:
    assert format_strengths(refine_strengths(Decimal(one), Decimal(other))) == expected
