"""Tests, in folders that mirror the product; parts that several of them share are imported as ``tests.…``."""
