"""Pruning of single weights in one go."""
