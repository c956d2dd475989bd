"""Measures eventrouter against the machine's limit, both in one run: `python -m benchmarks [NAME...]`."""
