"""The rungs of a ladder: what they say, how they are climbed, how they look."""
