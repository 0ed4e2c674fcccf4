"""Crops and the augmentation cache: from annotated photos to Arrow shards, every row with its provenance.

Floor 2 of Tacopress: imports `pipelines`, knows nothing of models.
"""
