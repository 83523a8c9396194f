"""Presets: their schema (schema.py), named sources (catalog.py) and differences (diff.py)."""
