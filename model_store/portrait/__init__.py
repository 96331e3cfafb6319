"""The embedded engine: one photo and one voice on a plain CPU, nothing to download, faster than real time."""
