"""What images say: whether a LoRA acted, and which strength is right."""
