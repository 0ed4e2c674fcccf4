"""What runs a network: PyTorch or onnxruntime, behind one small interface."""
