"""Using a trained model: drawing (the predictor and reports come here too)."""
