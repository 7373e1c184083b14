"""Trained models for other programs: as ONNX, and as weights that another library's model loads."""
