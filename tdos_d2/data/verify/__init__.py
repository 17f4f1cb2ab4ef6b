"""Verification of datasets: quick checks before training, and a full report."""
