"""A cache as plain files: its rows, checked, their names, and the two layouts that other tools read."""
