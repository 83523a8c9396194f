"""A run: the parts of its training loop, its state, and the scheduled events between steps."""
