"""Reports on evaluations, and pictures of all evaluated frames."""
