"""Import Gradio in little more than half the time. `app.py` imports this before anything that imports Gradio.

Whenever it is imported, Gradio reads the source of each of its components and writes a stub file for editors beside it.
It leaves out classes without a source file, so for the length of this import they have none.
"""

import contextlib
import inspect
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Let Gradio's classes, and those made from them, have no source file: they get no stub then."""
    find = inspect.getfile

    def find_unless_gradio(thing: object) -> str:
        if getattr(thing, "__module__", "").startswith("gradio."):
            raise OSError("not looked for")
        return find(thing)  # type: ignore[arg-type]

    with mock.patch.object(inspect, "getfile", find_unless_gradio):
        yield


with without_stubs():
    import gradio  # noqa: F401 - it is imported for everybody after us
