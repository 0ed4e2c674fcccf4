"""Carry out a plan: encoded or raw images in, uint8 pixels out.

Two engines do the same thing. `cpu` runs threads over simplejpeg, OpenCV and torch kernels; `dali` runs an NVIDIA DALI
graph on a GPU, or on the CPU as the reference that the cpu engine is held against. Neither draws a random number.
"""
