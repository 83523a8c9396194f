"""Crash-safe checkpoints, and archived runs."""
