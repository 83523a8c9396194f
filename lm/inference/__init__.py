"""Inference with a trained model: decoding, sampling, drafting, chat."""
