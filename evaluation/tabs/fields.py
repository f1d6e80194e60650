"""Forms: a field is one record, written where the form names it; its component, type and default stand in one place.

    class Play(Form):
        prompt: Annotated[str, Box(gr.Textbox, label="Prompt", lines=2)] = ""
        steps: Annotated[int | None, Box(gr.Number, label="Steps", precision=0)] = None

`lay_out` makes the components, `read` and `write` go between them and the form, `dump` and `load` keep it (a preset is
`dump`, a link fills in what `write` gives). A new field is a new line in its form, and `lay_out` where it stands.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_runtime.errors import InvalidInput
from lora_runtime.written import quote


@dataclass(frozen=True, init=False)
class Box:
    """The component of a field: what makes it, and with which options."""

    make: Callable[..., Any]
    options: Mapping[str, Any]

    def __init__(self, make: Callable[..., Any], **options: Any) -> None:
        object.__setattr__(self, "make", make)
        object.__setattr__(self, "options", options)


class Form(BaseModel):
    """What a person has filled in. A component that holds nothing has the field's default."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    @classmethod
    def boxes(cls) -> dict[str, Box]:
        """The fields that have a component, in their order."""
        marks = ((name, mark) for name, info in cls.model_fields.items() for mark in info.metadata)
        return {name: mark for name, mark in marks if isinstance(mark, Box)}

    @classmethod
    def lay_out(cls, parts: Any, *names: str, **options: Any) -> None:
        """Make the components of fields, in their order, where the caller is; `options` go before the record's own."""
        for name in names:
            box = cls.boxes()[name]
            default = cls.model_fields[name].get_default()
            parts[name] = box.make(**{"value": _shown(default), **box.options, **options})

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return what the components hold.

        Raises:
            InvalidInput: A page has sent what is no value of the field; its label and the value are told.
        """
        try:
            return cls.model_validate({name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise InvalidInput(cls._tell(error)) from error

    def write(self, *, leave: Collection[str] = ()) -> dict[str, Any]:
        """Return the values that put the form on the page, but for the fields to `leave`; None leaves a field too."""
        found = {name: getattr(self, name) for name in self.boxes() if name not in leave}
        return {name: _shown(value) for name, value in found.items() if value is not None}

    def dump(self) -> str:
        """Return the form as JSON, to keep it."""
        return self.model_dump_json()

    @classmethod
    def load(cls, text: str) -> Self:
        """Read a form that was kept; a field that it lacks has its default.

        Raises:
            InvalidInput: It is no form.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidInput("Preset: it cannot be read any more. Delete it, and save it again.") from error

    @classmethod
    def _tell(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        box = cls.boxes().get(name)
        label = box.options.get("label", name) if box else name
        return f"{label}: {quote(str(first['input']))} does not fit. {first['msg']}."


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
