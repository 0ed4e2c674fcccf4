"""Samples until they are tensors: sources, their order, the augmentation plan, the engines, the loader.

Floor 1 of Tacopress. Nothing here knows of caches, models or Accelerate. Importing this package imports
nothing else, so that the pure functions (`pipelines.plan`, `pipelines.order`, `pipelines.splits`) run with numpy alone.
"""
