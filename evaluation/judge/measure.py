"""A run is judged in one go: what no judge has looked at yet is measured, then the answers are read."""

from evaluation.judge.answer import Answer, answer_run
from evaluation.judge.prompt_fit import score_prompts
from evaluation.store.store import Store


def judge_run(store: Store, run_id: str) -> tuple[Answer, ...]:
    """Score the images of a run that have no prompt fit yet, and return its answers; none when its verdict is red.

    Raises:
        NotFound: There is no such run.
        InvalidInput, Unavailable: The judge cannot be loaded.
    """
    for _ in score_prompts(store, store.cells(run_id)):
        pass
    return answer_run(store, run_id)
