"""Vision language models: load, ask, score, size."""
