"""What is wrong with a data set: quick checks before training, and a full report."""
