"""Blocks that can go: which there are, which matter least, and taking them away."""
