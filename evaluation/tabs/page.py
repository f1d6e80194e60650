"""The page as Gradio serves it; here what goes wrong becomes words, for the page, `gradio_client`, MCP and plain HTTP.

An error of ours is told in its own sentence. Any other is a fault of the app's: the caller hears that and no more, as
the words of Python's exceptions help nobody and may tell of this machine; the log has all of it.
"""

from typing import Any, Final

import gradio as gr
from gradio.blocks import BlockFunction

from evaluation.tabs.quick_gradio import without_stubs
from lora_runtime.errors import KleinLabError

FAULT: Final = (
    "The app failed on this, which is a fault of the app. Its log says why; try again, or try something else."
)


with without_stubs():

    class Page(gr.Blocks):  # type: ignore[misc]  # Gradio has no types
        """A `gr.Blocks` whose events answer errors in words."""

        async def process_api(self, block_fn: BlockFunction | int, inputs: list[Any], *more: Any, **named: Any) -> Any:
            """Run an event: what came in, its handler, what goes out."""
            try:
                return await super().process_api(block_fn, inputs, *more, **named)
            except gr.Error:
                raise
            except KleinLabError as error:
                raise gr.Error(str(error), print_exception=False) from error
            except Exception as error:
                raise gr.Error(FAULT) from error

        async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *more: Any, **named: Any) -> Any:
            """Make of what a caller sent the values of the event's fields."""
            wanted = len(block_fn.inputs)
            if len(inputs) < wanted:
                raise gr.Error(
                    f"/{block_fn.api_name} takes {wanted} values; {len(inputs)} came.", print_exception=False
                )
            try:
                return await super().preprocess_data(block_fn, inputs, *more, **named)
            except gr.Error:
                raise
            except Exception as error:
                raise gr.Error(
                    f"/{block_fn.api_name}: a value that was sent does not fit its field. “Use via API” at the foot of "
                    "the page says what each takes.",
                    print_exception=False,
                ) from error
