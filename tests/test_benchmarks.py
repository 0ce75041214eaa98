"""Each measurement can be started: its imports work, and its arguments are read."""

import subprocess
import sys

from repository import ROOT

# All in one process, since their imports take seconds.
START_EACH = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


def test_every_script_starts():
    folder = ROOT / "benchmarks"
    scripts = [path.name for path in folder.glob("*.py") if "main()" in path.read_text()]
    assert len(scripts) > 10
    done = subprocess.run(
        [sys.executable, "-c", START_EACH, *scripts], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(scripts)
