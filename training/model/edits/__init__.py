"""What a press may do to an architecture, as data that rebuilds it: see `training.model.edits.apply`."""
