"""Checkpoints that survive anything, and archived runs."""
