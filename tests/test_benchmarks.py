"""Each measurement can be started: what it imports is there, and its arguments are read."""

import multiprocessing
import runpy
import sys

from repository import ROOT

SLOW_IMPORTS = ["datasets", "flwr.simulation", "flwr_datasets.partitioner", "torch", "transformers"]


def test_every_script_starts(monkeypatch):
    """Each as its own process, forked from one that has imported what takes seconds to import."""
    folder = ROOT / "benchmarks"
    scripts = [path for path in folder.glob("*.py") if "main()" in path.read_text()]
    assert len(scripts) > 10
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(SLOW_IMPORTS)
    monkeypatch.syspath_prepend(folder)
    for script in scripts:
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        process = forks.Process(
            target=runpy.run_path,
            args=[str(script)],
            kwargs={"run_name": "__main__"},
            daemon=True,  # one that hangs is killed at the end of the tests, not waited for
        )
        process.start()
        process.join(600)
        assert process.exitcode == 0, script
