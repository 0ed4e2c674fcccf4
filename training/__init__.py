"""Models, losses, the training engine, measuring, and the jobs that use them.

Floor 3 of Tacopress: imports `pipelines` and `augment_cache`, knows nothing of how a model was pressed.
"""
