"""A short run of the mutations whose long one is in docs/security.md: nothing crashes, hangs or cannot be rendered."""

from tests.mutate_loras import MUTATIONS, run


def test_mutants_are_refused_in_a_sentence_or_can_be_attached() -> None:
    tally = run(seed=20_000, first=0, count=200)
    assert tally.broken == []
    assert sum(tally.outcomes.values()) == 200
    assert tally.outcomes["accepted"] >= 10
    assert tally.outcomes["LoraUnreadable"] >= 10
    assert len(set(MUTATIONS)) == 11
