"""Measuring a model: what it costs, how long it takes, what it scores."""
