"""The presses: what to cut from a trained model, and the proof that the cut is right.

Floor 4 of Tacopress: imports every floor below, and nothing imports it.
"""
