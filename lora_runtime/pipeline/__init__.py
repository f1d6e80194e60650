"""The klein pipeline: find and load weights, attach LoRAs, render one batch of many strengths, own the device."""
