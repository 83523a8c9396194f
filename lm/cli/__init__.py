"""What is asked and answered before training: the menu, and what a trained model is used for."""
