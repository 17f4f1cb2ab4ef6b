"""Configs and checkpoints: what training, prediction and tools all need."""
