"""The trained model for other programs: Hugging Face, llama.cpp, Ollama; its card and its upload."""
