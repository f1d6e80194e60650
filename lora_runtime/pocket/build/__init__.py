"""How the pocket klein was made; `python -m lora_runtime.pocket.build` makes it again."""
