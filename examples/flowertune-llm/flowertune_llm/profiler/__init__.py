"""What a run costs: recorded in each task and message, shown by `flwr-profile`.

To leave this wing out, delete this folder, tests/test_profile.py, and all lines marked
`# profiler`.
"""

from flowertune_llm.profiler.hooks import mod, profiled, task, watched

__all__ = ["mod", "profiled", "task", "watched"]
