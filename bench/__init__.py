"""Benches: what is fast, beside its peers or its floor in the same run. Not tests, and not shipped."""
