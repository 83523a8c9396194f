"""Standard benchmarks of a trained model, through lm_eval: tasks, prompts and metrics are its own."""
