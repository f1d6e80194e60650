"""Prompt sets on the Sweep tab: put one round the prompt, keep the prompts of the form as one, delete one."""

from typing import Any, Final

import gradio as gr

from evaluation.prompt_sets import PROMPT_SETS, PromptSet, PromptSets
from evaluation.report.draw import part
from evaluation.tabs.page import Caller, Changes, Parts, Said
from evaluation.tabs.sweep_fields import SweepFields
from evaluation.tabs.sweep_form import SweepForm, list_prompts
from lora_runtime.errors import InvalidInput

_DRAWN: Final = ("prompt_set", "prompt_set_name", "prompt_set_delete", "prompt_set_undo", "prompt_set_undone")
_HINT: Final = "prompt_set_hint"


class PromptSetForm(SweepForm):
    """What the handlers read: the form, which set is chosen, and under which name to save. Undo brings one back."""

    prompt_set: str | None = None
    prompt_set_name: str = ""
    prompt_set_undone: Any = None


def lay_out_prompt_sets(parts: Parts) -> None:
    """Lay the fields out where the prompts are."""
    parts["prompt_set"] = gr.Dropdown(
        list(PROMPT_SETS), value=None, label="Use a prompt set", elem_id="prompt-set", filterable=False,
        info="Its scenes with what your prompt shows. Four prompts make an answer that one cannot.",
    )  # fmt: skip
    with gr.Row():
        parts["prompt_set_name"] = gr.Textbox(
            label="Save the prompts as", placeholder="a name", scale=3, min_width=150, elem_id="prompt-set-name"
        )
        parts["prompt_set_save"] = gr.Button("Save set", scale=1, min_width=80, size="md", elem_classes="beside-field")
    parts.html(_HINT)
    with gr.Row():
        parts["prompt_set_delete"] = gr.Button("Delete the set", size="sm", interactive=False, min_width=120)
        parts["prompt_set_undo"] = gr.Button("Undo", size="sm", visible=False, min_width=80)
    parts["prompt_set_undone"] = gr.State(None)


def wire_prompt_sets(parts: Parts, fields: SweepFields) -> None:
    """Wire the fields."""
    act = PromptSetActs(fields)
    told: dict[str, Any] = {"reads": PromptSetForm, "draws": (*_DRAWN, _HINT), "problem": _HINT}
    filled = {**told, "draws": ("prompt", "further_prompts", *_DRAWN, _HINT)}
    parts.on(parts.prompt_set.input, act.use, **filled)
    parts.on([parts.prompt_set_save.click, parts.prompt_set_name.submit], act.save, api_name="save_prompts", **told)
    parts.on(parts.prompt_set_delete.click, act.delete, api_name="delete_prompts", **told)
    parts.on(parts.prompt_set_undo.click, act.undo, api_name="undo_prompts", **told)


class PromptSetActs:
    """The handlers."""

    def __init__(self, fields: SweepFields) -> None:
        self._fields = fields

    @property
    def _sets(self) -> PromptSets:
        return self._fields.prompt_sets

    def use(self, caller: Caller, form: PromptSetForm, said: Said) -> Changes:
        """Fill the prompts with a set, round what the first one shows."""
        if not form.prompt_set:
            return {}
        chosen = self._sets.find(caller.organization, form.prompt_set)
        first, *further = chosen.fill(form.prompt, self._fields.find_trigger(caller, form))
        own = chosen.name not in PROMPT_SETS
        return {
            "prompt": first,
            "further_prompts": "\n".join(further),
            "prompt_set_name": chosen.name if own else "",
            "prompt_set_delete": gr.update(interactive=own),
            "prompt_set_undo": gr.update(visible=False),
            _HINT: part("hint", text=f"The prompts are those of “{chosen.name}”.", kind="good"),
        }

    def save(self, caller: Caller, form: PromptSetForm, said: Said) -> Changes:
        """Keep the prompts of the form under the name; what was there is replaced, which Undo takes back."""
        trigger = self._fields.find_trigger(caller, form)
        kept = PromptSet.of(form.prompt_set_name, list_prompts(form), trigger)
        before = next((each for each in self._sets.list(caller.organization) if each.name == kept.name), None)
        self._sets.save(caller.organization, kept)
        place = ", in place of the one that was there" if before else ""
        return self._tell(caller, kept.name, f"Saved as “{kept.name}”{place}: {' · '.join(kept.prompts)}", before)

    def delete(self, caller: Caller, form: PromptSetForm, said: Said) -> Changes:
        """Delete the chosen set; Undo brings it back."""
        if not form.prompt_set:
            raise InvalidInput("Prompt set: choose the one to delete.")
        gone = self._sets.find(caller.organization, form.prompt_set)
        self._sets.delete(caller.organization, gone.name)
        return self._tell(caller, None, f"Deleted “{gone.name}”.", gone)

    def undo(self, caller: Caller, form: PromptSetForm, said: Said) -> Changes:
        """Bring back what Delete or Save took away."""
        before = form.prompt_set_undone
        if not isinstance(before, PromptSet):
            return {}
        self._sets.save(caller.organization, before)
        return self._tell(caller, before.name, f"“{before.name}” is as it was.", None)

    def _tell(self, caller: Caller, chosen: str | None, text: str, undone: PromptSet | None) -> Changes:
        return {
            **self._fields.list_prompt_sets(caller, chosen),
            "prompt_set_delete": gr.update(interactive=chosen is not None),
            "prompt_set_undone": undone,
            "prompt_set_undo": gr.update(visible=undone is not None),
            _HINT: part("hint", text=text, kind="good"),
        }
