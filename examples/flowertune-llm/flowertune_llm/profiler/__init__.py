"""Costs of a run: recorded for each task and message, shown by `flwr-profile`.

To leave this wing out, delete this folder, tests/test_profile.py, and all lines that end with
`# profiler`.
"""

from flowertune_llm.profiler.hooks import mod, profiled, task, watched

__all__ = ["mod", "profiled", "task", "watched"]
