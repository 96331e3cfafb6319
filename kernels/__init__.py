"""Triton kernels of the video transformer, each beside its plain-torch reference."""
