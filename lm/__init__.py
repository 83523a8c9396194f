"""The language model and everything that trains, stores and uses it."""
