"""The Gradio tabs that judge a LoRA: sweep and comparison, their form, markup and look.

`sweep.py` and `comparison.py` lay components out and wire them; what happens on an event is in `run.py` and
`browse.py`; HTML is built in `markup.py`; `api.py` is the endpoint for programs.
"""
