"""The one training engine: data, losses, metrics, checkpoints, the loop."""
