"""The Gradio tabs: Sweep, Playground, Comparison and Finetunes, and the endpoints for programs.

A tab is `<tab>.py` (layout and wiring), `<tab>_form.py` (its fields, a record each) and files of handlers, which are
plain calls. `page.py` is the one way for an event to come in and go out, `fields.py` what a form is, `follow.py` how a
page looks at a run. HTML stands in `templates/`, scripts and style sheets in `web/`.
"""
