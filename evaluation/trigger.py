"""The trigger phrase of a LoRA in a prompt: is it there, put it in, take it out.

Case does not matter: text encoders hardly tell it, and people do not write it alike.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A trigger phrase, and whether the prompt of a row has it."""

    phrase: str
    there: bool

    def apply(self, prompt: str) -> str:
        """Return `prompt` with the phrase or without it."""
        return add_trigger(prompt, self.phrase) if self.there else remove_trigger(prompt, self.phrase)


def has_trigger(prompt: str, phrase: str) -> bool:
    """Whether the phrase stands somewhere in the prompt."""
    return re.search(re.escape(phrase), prompt, re.IGNORECASE) is not None


def add_trigger(prompt: str, phrase: str) -> str:
    """Return the prompt as it is when it has the phrase, else with the phrase in front."""
    return prompt if has_trigger(prompt, phrase) else f"{phrase} {prompt}".strip()


def remove_trigger(prompt: str, phrase: str) -> str:
    """Return the prompt without the phrase, and without the blanks and commas that were around it."""
    while has_trigger(prompt, phrase):  # again, as what stood on both sides may make the phrase anew
        prompt = re.sub(rf"\s*{re.escape(phrase)}\s*", " ", prompt, flags=re.IGNORECASE)
        prompt = re.sub(r"\s+,", ",", re.sub(r",(\s*,)+", ",", prompt)).strip(" ,\n\t")
    return prompt
