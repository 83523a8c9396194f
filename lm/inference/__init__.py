"""Using a trained model: decoding, sampling, drafting, talking."""
