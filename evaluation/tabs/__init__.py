"""The Gradio tabs that judge a LoRA: sweep and comparison, their form, markup and look.

`sweep.py` and `comparison.py` lay components out and wire them. What happens on an event of the Sweep tab is in
`fields.py` (the form), `run.py` (a sweep from click to verdict), `extend.py`, `links.py` and `presets.py`; of the
Comparison tab in `comparison_run.py`. `programs.py` has the endpoints for programs.
"""
