"""The copy-paste example of a finetune, as the Dashboard shows it: curl and Python, trigger phrase included."""

from lora_runtime.catalogue import find_weights
from lora_runtime.registry.finetune import Finetune
from lora_runtime.snippets import Fields, Language, write_program

__all__ = ["Language", "write_example", "write_prompt"]


def write_example(finetune: Finetune, base_url: str, language: Language) -> str:
    """Return a program that renders one image with `finetune` and prints where it is.

    The key is read from BFL_API_KEY; without keys on the server it may be anything.
    """
    fields: Fields = {
        "prompt": write_prompt(finetune),
        "finetune_id": finetune.id,
        "finetune_strength": 1.0,
    }
    return write_program(f"{base_url}{finetune.endpoint.path}", fields, language)


def write_prompt(finetune: Finetune) -> str:
    """Return a prompt to begin with, which the base understands and which has the trigger phrase."""
    phrase = finetune.trigger_phrase
    if find_weights(finetune.weights).bundled:
        return f"a {phrase or 'red cat'} in the snow"
    return f"A portrait{f' of {phrase}' if phrase else ''} in a sunlit studio, soft key light"
