"""`make federate`: scripts as people write them become apps that train as the scripts do."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from federate.app_folder import TEMPLATE
from federate.python_trees import CannotBeConverted
from federate.script import Script
from federate.search import find_training
from federate.task_file import Task
from on_this_machine import BIN, results
from repository import ROOT, flatten, flower_settings
from test_kit import files

from kit.settings import Settings

SCRIPTS = ROOT / "tests" / "scripts"
SAME = "The same weights, bit for bit"
LIGHTNING = ("lightning", "pytorch-lightning", "lightning-utilities", "torchmetrics")


def call(command: list, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def federate(script: Path, folder: Path, *words: str, **more: str) -> str:
    command = [sys.executable, ROOT / "tools" / "federate", script, folder / "my-app", *words]
    return call(command, folder, **more).stdout


@pytest.mark.parametrize(
    ("name", "steps", "config"),
    [
        ("cifar_tutorial", 50, "partitioning='dirichlet'"),
        ("mnist_main", 48, "arguments='--lr 0.5 --batch-size 32'"),
        ("trainer_text", 32, "local-epochs=0"),
    ],
)
def test_one_client_trains_as_the_script_does_and_two_run(name, steps, config, tmp_path):
    told = federate(SCRIPTS / f"{name}.py", tmp_path)
    assert SAME in told, told
    assert f"{steps} steps" in told
    app = tmp_path / "my-app"
    assert files(app / "my_app" / "kit") == files(ROOT / "kit")
    own = (app / "my_app" / "own" / f"{name}.py").read_bytes()
    assert own == (SCRIPTS / f"{name}.py").read_bytes()
    readme = (app / "README.md").read_text()
    keys = flatten(flower_settings(app)["app"]["config"])
    assert not [key for key in keys if f"\n| `{key}` | `" not in readme]
    assert not [word for word in ("federated_app", "federated-app", "the-script") if word in readme]
    assert ("arguments" in keys) == (name == "mnist_main")

    command = [sys.executable, "-m", "my_app.kit.in_process", "--num-supernodes", "2"]
    done = call([*command, "--run-config", f"num-server-rounds=2 {config}"], app)
    assert done.returncode == 0, done.stdout
    first, *_, last = (entry["evaluate_metrics_serverapp"] for entry in results(app))
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > first["accuracy"]


def test_app_passes_its_own_tests_and_runs_by_flower(tmp_path):
    federate(SCRIPTS / "mnist_main.py", tmp_path)
    app = tmp_path / "my-app"
    done = call([sys.executable, "-m", "pytest", "-q", "tests"], app)
    assert "5 passed" in done.stdout, done.stdout
    done = call([BIN / "flwr", "run", ".", "--run-config", "offline.toml"], app)
    assert len(results(app)) == 3, done.stdout

    task = app / "my_app" / "task.py"
    task.write_text(task.read_text().replace("lr=args.lr", "lr=0.5 * args.lr"))
    done = call([sys.executable, "-m", "my_app.centralised"], app)
    assert done.returncode == 1
    assert "Not the same weights" in done.stdout
    where = (
        "They part at step 1, in conv1.weight: there the script's optimizer has lr = 1.0, not 0.5"
    )
    assert where in done.stdout


def test_app_has_every_key_that_the_kit_needs():
    keys = flatten(flower_settings(TEMPLATE)["app"]["config"])
    assert not {name for _, name in Settings.declared()} - keys.keys()


@pytest.mark.thorough
def test_lightning_module(tmp_path):
    """With lightning from the registry, beside what is installed."""
    site = tmp_path / "site"
    versions = ["--no-deps", "--constraint", ROOT / "constraints.txt"]
    done = call([BIN / "uv", "pip", "install", "--target", site, *versions, *LIGHTNING], tmp_path)
    assert done.returncode == 0, done.stdout
    told = federate(SCRIPTS / "lightning_module.py", tmp_path, PYTHONPATH=str(site))
    assert SAME in told, told
    app = tmp_path / "my-app"
    done = call([sys.executable, "-m", "pytest", "-q", "tests"], app, PYTHONPATH=str(site))
    assert "5 passed" in done.stdout, done.stdout


# Parts of scripts of other shapes; each is `HEAD` with more.
HEAD = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

def points(count, seed):
    values = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(values, (values[:, 0] > 0).long())

def loaders(batch_size=16):
    return DataLoader(points(64, 0), batch_size, shuffle=True), DataLoader(points(32, 1))

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, x):
        return self.layer(x)

def test(net, testloader):
    with torch.no_grad():
        return sum((net(x).argmax(1) == y).sum().item() for x, y in testloader)
"""
TRAIN = """
def train(net, loader, optimizer):
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
"""
LOOP = """
    net = Net()
    trainloader, testloader = loaders()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(2):
        train(net, trainloader, optimizer)
    test(net, testloader)
"""
MAIN, BLOCK = "\ndef main():", '\nif __name__ == "__main__":'
INLINE = LOOP.replace("train(net, trainloader, optimizer)", "net(0).backward()\n")


def task_of(text: str, folder: Path, **chosen: str) -> Task:
    path = folder / "train.py"
    path.write_text(text)
    task = Task(find_training(Script(path, chosen)), "my_app")
    compile(task.text(), "task.py", "exec")
    return task


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEAD, "nothing in train.py trains: no function with `.backward"),
        (HEAD + BLOCK + INLINE, r"the training loop, lines \d+ to \d+, is under `if __name__"),
        (HEAD + MAIN + INLINE, r"is in main\(\), which makes the model, too"),
        (HEAD + MAIN + INLINE, r"Indent it under `def train\(net\):`"),
        (HEAD + textwrap.dedent(INLINE), "is at the top of the file, where an import runs it"),
        (HEAD + TRAIN + MAIN + LOOP + "main()", r"main\(\), line \d+, trains when the file is imp"),
        (
            HEAD + TRAIN + BLOCK + re.sub("optimizer = .*", "net, optimizer = make()", LOOP),
            r"'optimizer' is made together with the model \(line \d+\)",
        ),
        (
            HEAD + TRAIN + "net = Net()" + BLOCK + LOOP.replace("net = Net()", ""),
            "the model 'net' is made at the top of the file",
        ),
        (
            HEAD + TRAIN.replace("net, loader, optimizer", "epoch") + BLOCK + "\n    train(1)",
            r"train\(1\), line \d+, is given no model that its caller makes",
        ),
        (
            HEAD + TRAIN.replace("cross_entropy(", "args.scale * cross_entropy(")
            + BLOCK + LOOP.replace("net = Net()", "net, args = Net(), 1"),
            r"train\(\) uses 'args', which is bound only under `if __name__ == ",
        ),
        (
            HEAD + TRAIN + BLOCK + "\n    for fold in range(3):" + LOOP.replace("\n", "\n    "),
            "each pass of the loop makes a model of its own",
        ),
        (
            HEAD + TRAIN + BLOCK + LOOP.replace("train(net, trainloader,", "train(net, 3,"),
            r"train\(…\), line \d+, is given no data",
        ),
        (HEAD + "import no_such_package", "it imports no_such_package, which is not installed"),
        (HEAD + "import deepspeed", "deepspeed, line .* it trains in processes that DeepSpeed"),
        (
            HEAD.split("def test")[0] + TRAIN + BLOCK + LOOP.replace("test(net, testloader)", ""),
            "nothing in train.py tests: .* name it: TEST=function",
        ),
        (HEAD + TRAIN, r"train\(\) needs 'optimizer', and nothing in train.py says what that is"),
        (
            HEAD + TRAIN + TRAIN.replace("train", "fit") + BLOCK + LOOP
            + "    fit(net, trainloader, optimizer)",
            "there is more than one training: train, .*; fit, .*. Name one: TRAIN=function",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(text, why, tmp_path):
    with pytest.raises(CannotBeConverted, match=why):
        task_of(text, tmp_path)


def test_what_was_named_is_taken(tmp_path):
    text = HEAD + TRAIN + TRAIN.replace("train", "fit") + BLOCK + LOOP
    text += "    fit(net, trainloader, optimizer)"
    assert "script.fit(net, trainloader, optimizer)" in task_of(text, tmp_path, train="fit").text()
    with pytest.raises(
        CannotBeConverted, match=r"TRAIN=learn: train\.py has no 'learn'; it defines"
    ):
        task_of(text, tmp_path, train="learn")
    with pytest.raises(CannotBeConverted, match="there is no module 'engine' here; there are trai"):
        task_of(text, tmp_path, test="engine:test")


def test_scheduler_that_needs_a_test_keeps_it_and_other_tests_are_left_out(tmp_path):
    loop = LOOP.replace(
        "optimizer)\n    test", "optimizer)\n        test(net, testloader)\n    test"
    )
    text = task_of(HEAD + TRAIN + BLOCK + loop, tmp_path).text()
    assert text.count("script.test(") == 1
    assert "for epoch in glue.passes(range(2), config.local_epochs):" in text
    needed = "score = test(net, testloader)\n        scheduler.step(score)\n    test"
    loop = loop.replace("test(net, testloader)\n    test", needed)
    loop = loop.replace("    for", "    scheduler = Plateau(optimizer)\n    for")
    text = task_of(HEAD + TRAIN + BLOCK + loop, tmp_path).text()
    assert "score = script.test(net, testloader)\n        scheduler.step(score)" in text


def test_functions_that_nothing_calls_are_called_by_their_parameters(tmp_path):
    """And what is drawn at the top of the file is the same in every process."""
    train = TRAIN.replace("optimizer):", "device, epochs=3):")
    text = task_of(HEAD + train, tmp_path).text()
    assert "train_data, test_data = script.loaders()" in text
    assert "epochs=config.local_epochs or 3" in text
    assert "TRAINING: dict[str, Any] | None = None" in text
    assert "glue.reseed(42)" not in text
    top = "trainset, testset = random_split(points(90, 0), [60, 30])\n"
    text = task_of(HEAD + top + train, tmp_path, data="trainset,testset").text()
    assert "glue.reseed(42)" in text
    assert "train_data = script.trainset" in text


def test_made_app_needs_no_pytest():
    """It is installed with the app's tests only; the kit's `testing` imports it."""
    for path in [*TEMPLATE.glob("federated_app/**/*.py"), *(ROOT / "kit" / "exam").rglob("*.py")]:
        assert not re.search(r"import pytest|kit\.testing|\.testing import", path.read_text()), path
