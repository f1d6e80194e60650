"""Judge a LoRA: sweep its strengths, store every image, score them, show them. Knows backends, never the pipeline."""
