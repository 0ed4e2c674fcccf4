"""Draws litter: the pictures of the rendered sample. `photo.py` is the way in; nothing here reads or writes a file."""
