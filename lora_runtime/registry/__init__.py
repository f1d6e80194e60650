"""Whose LoRAs there are on this machine: organizations, finetunes, visitors."""
