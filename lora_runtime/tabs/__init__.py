"""Pages of the app that run a LoRA: the Playground and the finetunes."""
