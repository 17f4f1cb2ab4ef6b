"""What is wrong with a dataset: quick checks before training, and a full report."""
