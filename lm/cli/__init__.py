"""The dialogue with the user: the menu before a run, and the uses of a trained model."""
