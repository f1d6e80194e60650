"""Run a LoRA on FLUX.2 [klein]: weights, LoRA files, one batch of many strengths, backends."""
