"""Threads that ask at the same time are answered by one call: one transaction, and one sync of the disk, for all.

Nobody waits for company: whoever comes while a call is under way shares the next one with all who came meanwhile.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """`answer` gets what was asked, and returns an answer each, in order; an exception among them is raised by `ask`.

    When `answer` itself raises, each is asked alone, so that what one brings about is nobody else's.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
        self._answer = answer
        self._waiting: list[_Question[Q, A]] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def ask(self, asked: Q) -> A:
        """Return the answer, once its call has ended."""
        question = _Question[Q, A](asked)
        with self._lock:
            self._waiting.append(question)
        with self._turn:
            if not question.answered:
                with self._lock:
                    questions, self._waiting = self._waiting, []
                self._answer_all(questions)
        if question.error is not None:
            raise question.error
        (answer,) = question.answers
        return answer

    def _answer_all(self, questions: "Sequence[_Question[Q, A]]") -> None:
        try:
            answers = self._answer([question.asked for question in questions])
        except Exception as error:  # noqa: BLE001 - raised by `ask`, in the thread of whoever asked
            if len(questions) == 1:
                questions[0].error = error
                return
            for question in questions:
                self._answer_all([question])
            return
        for question, answer in zip(questions, answers, strict=True):
            if isinstance(answer, Exception):
                question.error = answer
            else:
                question.answers = [answer]


class _Question(Generic[Q, A]):
    """One question, and its answer or error once there is one."""

    def __init__(self, asked: Q) -> None:
        self.asked = asked
        self.answers: list[A] = []
        self.error: Exception | None = None

    @property
    def answered(self) -> bool:
        return bool(self.answers) or self.error is not None
