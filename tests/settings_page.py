"""Write docs/settings.md from settings.py: `python -m tests.settings_page`. A test says when that is due."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lora_runtime.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = """# Settings

Every setting is an environment variable, read once at the start. This page is made from
[settings.py](../lora_runtime/settings.py) by `python -m tests.settings_page`. Beside these, `HF_TOKEN` and
`HF_HUB_OFFLINE` act as in every program of Hugging Face's, and `GRADIO_ROOT_PATH=/prefix` serves behind a proxy under a
prefix.

| variable | meaning | values | default |
|---|---|---|---|
"""


def write_page() -> str:
    """Return the page: a row for each variable, in the order of the class."""
    rows = (
        f"| `{variable(name, field)}` | {field.description} | {values(field.annotation)} | {default(field)} |\n"
        for name, field in Settings.model_fields.items()
    )
    return HEAD + "".join(rows)


def variable(name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or f"KLEIN_LAB_{name.upper()}")


def values(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    return next((word for kind, word in words.items() if annotation is kind), "")


def default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "by where it runs"
    if field.default is None:
        return "none"
    if isinstance(field.default, int) and field.default >= 1024**3:
        return f"{field.default / 1024**3:g} GiB"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    PAGE.write_text(write_page())
