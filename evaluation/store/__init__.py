"""Runs, their cells, ratings and presets, as they are kept."""
