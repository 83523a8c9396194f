"""A run: its training loop's parts, its state, and what happens between steps."""
