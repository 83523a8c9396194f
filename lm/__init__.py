"""The language model and the code that trains, stores and uses it."""
