# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""A simulation by the command of the installed Flower release: its own federation, its end."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from .. import simulation
from ..simulation import flower_simulation, read
from ..testing import edit, marked, posix_only, run, start

MODULE = simulation.__name__
PACKAGE = Path(simulation.__file__).parents[MODULE.count(".")]  # where it is imported from
PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
description = "What a ServerApp sees"
license = "Apache-2.0"
dependencies = ["flwr[simulation]>=1.25"]
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "seeing:app"
clientapp = "seeing:client_app"
[tool.flwr.app.config]
fails = false
"""
APP = f"""
import json, os, time
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from {MODULE.removesuffix(".simulation")}.flower import shown

app = ServerApp()
client_app = ClientApp()

@app.main()
@shown
def main(grid, context):
    nodes = set()
    while not nodes or nodes != set(grid.get_node_ids()):
        nodes = set(grid.get_node_ids())
        time.sleep(0.5)
    seen = {{"nodes": len(nodes), "whose": os.environ["WHOSE"]}}
    Path("seen.json").write_text(json.dumps(seen))
    if context.run_config["fails"]:
        raise ValueError("it fails as it was told to")
"""


def make(app: Path, nodes: int) -> Path:
    """Return the folder of an app that writes what it sees."""
    (app / "federations").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT.format(name=app.name))
    (app / "seeing.py").write_text(APP)
    resources = "client-resources-num-cpus = 1\nclient-resources-num-gpus = 0.0\n"
    (app / "federations" / "few.toml").write_text(f"num-supernodes = {nodes}\n{resources}")
    return app


@posix_only
def test_two_apps_one_after_the_other_keep_apart(tmp_path):
    """Each has its own federation, outputs, environment, and exit status; nothing is left."""
    for name, nodes, fails in (("one-app", 3, False), ("other-app", 5, True)):
        app, here = make(tmp_path / name, nodes), tmp_path / f"where {name} runs"
        here.mkdir()
        command = [sys.executable, "-m", MODULE, "few", "--app", app]
        command += ["--run-config", f"fails={str(fails).lower()}"]
        done = run(command, here, PYTHONPATH=str(PACKAGE), WHOSE=name)
        assert done.returncode == fails, done.stdout
        assert json.loads((here / "seen.json").read_text()) == {"nodes": nodes, "whose": name}
        assert ("it fails as it was told to" in done.stdout) == fails
        assert not Path("/proc").exists() or not marked(here)
        assert (app / "pyproject.toml").read_text() == PROJECT.format(name=name)


@pytest.mark.thorough
@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_leaves_no_process(number, tmp_path, monkeypatch):
    app, here = make(tmp_path / "one-app", 3), tmp_path / "here"
    here.mkdir()
    edit(app / "seeing.py", "    if context", "    time.sleep(300)\n    if context")
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    monkeypatch.setenv("WHOSE", "nobody's")
    command = [sys.executable, "-m", MODULE, "few", "--app", app]
    process = start(command, here, until=lambda log: (here / "seen.json").exists())
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(60) in (128 + number, -number)
    assert not Path("/proc").exists() or not marked(here)


def test_federation_is_that_of_the_file(tmp_path):
    app = make(tmp_path / "app", 2)
    (app / "federations" / "gpu.toml").write_text("num-supernodes = 4\ninit-args-num-cpus = 1\n")
    words = flower_simulation(app, read(app, "few"), "a=1")
    assert words[1:5] == ["--app", str(app), "--num-supernodes", "2"]
    assert json.loads(words[6]) == {"client-resources": {"num-cpus": 1, "num-gpus": 0.0}}
    assert words[7:] == ["--run-config", "a=1"]
    assert json.loads(flower_simulation(app, read(app, "gpu"), "")[6]) == {
        "init-args": {"num-cpus": 1}
    }
    with pytest.raises(ValueError, match=r"big: no such file in .*; there are few, gpu"):
        read(app, "big")
