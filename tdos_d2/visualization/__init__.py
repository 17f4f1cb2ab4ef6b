"""Pictures of arrays: labels, scores, objects."""
