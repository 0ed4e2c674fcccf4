"""Models by name, and model files: architecture plus weights, never a pickle."""
