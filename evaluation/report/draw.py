"""Fill in an HTML template: every text is escaped, and a name that a template misspells is an error.

The page and the report draw a grid, a verdict, an answer from the same templates; those of the page alone are in
`evaluation/tabs/templates`. A template is given a view: what to say, worked out in Python and tested there.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDERS: Final = tuple(Path(__file__).parents[1] / room / "templates" for room in ("report", "tabs"))


def draw(template: str, **view: object) -> str:
    """Return the HTML of one template, e.g. `draw("report.html", title=…)`."""
    return _environment().get_template(template).render(view).strip()


def part(name: str, template: str = "parts.html", /, **view: object) -> str:
    """Return the HTML of one macro of a template, e.g. `part("hint", text="Saved.", kind="good")`."""
    return str(getattr(_environment().get_template(template).module, name)(**view)).strip()


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDERS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
