"""Benches that need an NVIDIA GPU; elsewhere they say so and end."""
