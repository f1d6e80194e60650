"""LoRA files: read them without trusting them, understand every spelling, say which base they are for. No torch."""
