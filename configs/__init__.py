"""Presets: what they may say (schema.py), the sources they may name (catalog.py), what was edited since (diff.py)."""
