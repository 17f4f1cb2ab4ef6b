"""Loading of configs and checkpoints, shared by training, prediction and tools."""
