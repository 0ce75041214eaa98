"""Aggregation layer by layer: whole models, or long adapters, that no machine holds in memory.

To leave this wing out, delete this folder, ../whole_models.py, tests/test_layerwise.py with
tests/faulty_client.py, and all lines that end with `# layerwise`.
"""
