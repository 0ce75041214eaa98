"""`make federate`: scripts as people write them become apps that train as the scripts do."""

import os
import re
import shutil
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
        ("mnist_inline", 24, "arguments='--lr 0.02'"),
        ("trainer_text", 32, "local-epochs=0"),
    ],
)
def test_one_client_trains_as_the_script_does_and_two_run(name, steps, config, tmp_path):
    (tmp_path / "scripts").mkdir()
    script = Path(shutil.copy(SCRIPTS / f"{name}.py", tmp_path / "scripts"))
    told = federate(script, tmp_path)
    assert SAME in told, told
    assert f"{steps} steps" in told
    assert [path for path in script.parent.rglob("*") if path.is_file()] == [script]
    app = tmp_path / "my-app"
    assert files(app / "my_app" / "kit") == files(ROOT / "kit")
    own = (app / "my_app" / "own" / f"{name}.py").read_bytes()
    assert own == (SCRIPTS / f"{name}.py").read_bytes()
    readme = (app / "README.md").read_text()
    keys = flatten(flower_settings(app)["app"]["config"])
    assert not [key for key in keys if f"\n| `{key}` | `" not in readme]
    assert not [word for word in ("federated_app", "federated-app", "the-script") if word in readme]
    assert ("arguments" in keys) == name.startswith("mnist")

    command = [sys.executable, "-m", "my_app.kit.in_process", "--num-supernodes", "2"]
    done = call([*command, "--run-config", f"num-server-rounds=2 {config}"], app)
    assert done.returncode == 0, done.stdout
    first, *_, last = (entry["evaluate_metrics_serverapp"] for entry in results(app))
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > first["accuracy"]


def test_flat_script_is_imported_without_its_training(tmp_path):
    """In each process: what it defines can be sent to another, such as a DataLoader's worker."""
    told = federate(SCRIPTS / "cifar_flat.py", tmp_path)
    assert SAME in told, told
    assert "32 steps" in told
    assert "made at the top of the file" in told
    app = tmp_path / "my-app"
    own = app / "my_app" / "own" / "cifar_flat.py"
    assert own.read_bytes() == (SCRIPTS / "cifar_flat.py").read_bytes()
    send = "import pickle, my_app.own.cifar_flat as s; assert not hasattr(s, 'net'); "
    send += "open('net.pickle', 'wb').write(pickle.dumps(s.Net()))"
    receive = "import pickle; print(type(pickle.load(open('net.pickle', 'rb'))).__module__)"
    assert call([sys.executable, "-c", send], app).stdout == ""
    assert call([sys.executable, "-c", receive], app).stdout == "my_app.own.cifar_flat\n"
    command = [sys.executable, "-m", "my_app.kit.in_process", "--num-supernodes", "2"]
    done = call([*command, "--run-config", "num-server-rounds=1"], app)
    assert done.returncode == 0, done.stdout
    assert all("accuracy" in entry["evaluate_metrics_serverapp"] for entry in results(app))


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
INLINE = """
net = Net()
trainloader, testloader = loaders()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(2):
    for x, y in trainloader:
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
test(net, testloader)
"""
TEST = """    net.eval()
    hits = count = 0
    with torch.no_grad():
        for x, y in testloader:
            hits += (net(x).argmax(1) == y).sum().item()
            count += len(y)
    print(f"epoch {epoch}, accuracy {hits}/{count} ({hits / count:.0%})")
"""


def indented(text: str) -> str:
    return textwrap.indent(text, "    ")


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
        (HEAD + MAIN + indented(INLINE.replace("in trainl", "in 3 * l")), "through no DataLoader"),
        (
            HEAD + INLINE.replace("in trainloader:", "in zip(trainloader, testloader):"),
            r"`zip\(trainloader, testloader\)`, line \d+: a client has one DataLoader, not two",
        ),
        (
            HEAD + INLINE.replace("    for x", "    trainloader, _ = loaders()\n    for x"),
            r"in trainloader`, line \d+, goes through another loader each time, or one",
        ),
        (
            HEAD + INLINE.replace("for epoch", "other = DataLoader(points(9, 2))\nfor epoch")
            .replace("in trainloader:", "in trainloader:\n        z = next(iter(other))"),
            "reads other, too, and a client has one DataLoader to train on",
        ),
        (
            HEAD + INLINE.replace("net = Net()", "net = Net()\nother = Net()")
            .replace("(net(x), y)", "(net(x) + other(x), y)")
            .replace("(net.parameters()", "([*net.parameters(), *other.parameters()]"),
            r"trains more than one model \(net, other\): put them into one nn.Module",
        ),
        (
            HEAD + INLINE + INLINE[INLINE.index("for epoch"):],
            "there is more than one training: .*put them into one function",
        ),
        (
            HEAD + "def show():\n    print(net)\n" + INLINE,
            r"the model 'net' is a global name: show\(\) reads 'net'",
        ),
        (
            HEAD + "def show():\n    print(epoch)\n" + INLINE,
            r"show\(\) reads 'epoch', a global name, and lines \d+ to \d+, which bind it, train",
        ),
        (
            HEAD + INLINE + "\nget_ipython().run_line_magic('matplotlib', 'inline')",
            r"get_ipython\(\), line \d+, is there in a notebook only",
        ),
        (
            HEAD + TRAIN + BLOCK + LOOP + "    train(net, trainloader, optimizer)",
            r"train is called more than once, line \d+ and line \d+, and a federation has one",
        ),
        (
            HEAD + TRAIN + BLOCK + re.sub("optimizer = .*", "net, optimizer = make()", LOOP),
            r"'optimizer' is made together with the model \(line \d+\)",
        ),
        (
            HEAD + TRAIN + BLOCK
            + LOOP.replace("    for", "    net, optimizer = wrap(net)\n    for"),
            r"'optimizer' is made together with the model .* prepare the model alone",
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
        (
            HEAD + INLINE.replace("test(net", "test(average")
            .replace("for epoch", "average = Average(net)\nfor epoch"),
            r"is tested is 'average', made of the model \(line \d+\), and a federation averages",
        ),
        (
            HEAD.split("def test")[0] + INLINE.replace("test(net, testloader)", "print(net(x))"),
            r"`net\(x\)`, line \d+, tests on all data at once, and a client has a part",
        ),
        (
            HEAD + TRAIN.replace("in loader", "in loaders[phase]")
            .replace("net, l", "net, phase, l") + BLOCK + LOOP.replace("net, t", "net, 'train', t"),
            r"goes through a loader for each phase: have train\(\) take one",
        ),
        (
            HEAD.replace("testloader)\n", "testloader) / len(testset)\n") + TRAIN
            + "testset = points(32, 1)" + BLOCK
            + LOOP.replace("    opt", "    testloader = DataLoader(testset)\n    opt"),
            r"test\(\) takes the length of all of 'testset', a global name, and a client has",
        ),
        (
            HEAD.replace("self.layer(x)", "self.layer(x) * len(known)") + "known = {}"
            + INLINE.replace("net = Net()", "for i in range(3):\n    known[i] = 1\nnet = Net()"),
            r"Net\(\) reads 'known', a global name, and lines \d+ to \d+, .* fill it: make it in",
        ),
        (
            (HEAD + TRAIN).replace("testloader):\n", "testloader, result):\n") + BLOCK
            + LOOP.replace("        train(", "        result = train(")
            .replace("testloader)\n", "testloader, result)\n"),
            r"takes 'result', which the training makes, lines \d+ to \d+, and a client tests apart",
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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (HEAD + MAIN + indented(INLINE) + "main()", ["for x, y in trainloader:", "'loss': loss"]),
        (HEAD + TRAIN + MAIN + LOOP + "main()", ["script.train(net, trainloader, optimizer)"]),
        (  # all but the loop at the top of the file
            (HEAD + INLINE).replace("for epoch", 'if __name__ == "__main__":\n  for epoch'),
            ["optimizer = script.torch.optim.SGD(net.parameters(), lr=0.1)"],
        ),
        (  # a test between the epochs, in a loop of its own
            (HEAD + INLINE).replace("test(net, testloader)\n", TEST),
            ["net.eval()\n    with script.torch.no_grad():", "figures({'accuracy': hits / count})"],
        ),
        (  # what the test decides is a part of the training
            (HEAD + INLINE).replace(
                "test(net, testloader)\n",
                TEST + "    if hits < 9:\n        optimizer.param_groups[0]['lr'] *= 0.1\n",
            ),
            ["if hits < 9:", "count += len(y)\n        if hits"],
        ),
        (  # what is made of the model, or sets it, is made once
            (HEAD + INLINE).replace(
                "for epoch",
                "nn.init.zeros_(net.layer.bias)\nfor p in net.parameters():\n"
                "    p.requires_grad = False\nfor epoch",
            ),
            ["zeros_(net.layer.bias)\n    for p in net.parameters():", "lr=0.1)\n    glue.reseed"],
        ),
        (  # seeds of each epoch
            HEAD + INLINE.replace("    for x", "    torch.manual_seed(epoch)\n    for x"),
            ["script.torch.manual_seed(epoch)\n        for x"],
        ),
        (  # a scaler is fitted where what it returns is kept
            HEAD + INLINE.replace("loaders()", "loaders(values)").replace(
                "net = Net()",
                "scaler = Scaler()\nvalues = scaler.fit_transform(read())\nnet = Net()",
            )
            .replace("test(net, testloader)\n", TEST.replace("+= len(y)", "+= scaler.inverse(y)")),
            ["values = scaler.fit_transform(read())\n    return scaler, values"],
        ),
        (  # a first batch, that gives a lazy layer its shape
            HEAD + INLINE.replace("optimizer =", "net(next(iter(trainloader))[0])\noptimizer ="),
            ["net = script.Net()\n    net(next(iter(trainloader))[0])\n    return net"],
        ),
        (  # a list that is filled
            (HEAD + INLINE).replace(
                "net = Net()", "parts = []\nparts.append(Net())\nnet = nn.Sequential(*parts)"
            ),
            ["parts = []\n    parts.append(script.Net())\n    net = script.nn.Sequential(*parts)"],
        ),
        (  # loaders in a dict, progress bars
            HEAD + INLINE.replace("trainloader, testloader =", "a, b =")
            .replace("optimizer =", "loaders_of = {'train': a, 'test': b}\noptimizer =")
            .replace("in trainloader", "in tqdm(loaders_of['train'])")
            .replace("testloader)", "loaders_of['test'])"),
            ["for x, y in train_data:", "return loaders_of['train'], loaders_of['test']"],
        ),
    ],
)  # fmt: skip
def test_loops_become_train_and_evaluate(text, parts, tmp_path):
    task = task_of(text, tmp_path)
    assert not [part for part in parts if part not in task.text()], task.text()
    assert "glue.passes(range(2), config.local_epochs)" in task.text()
    assert not [line for line in task.told() if "print" in line]


def test_early_stop_is_left_out_with_the_test_that_it_needs(tmp_path):
    stop = "    stopper(meter.avg, net)\n    if stopper.early_stop:\n        break\n"
    test = TEST.replace("count += len(y)", "count += len(y)\n            meter.update(y)")
    text = (HEAD + INLINE).replace("test(net, testloader)\n", "    meter = Meter()\n" + test + stop)
    text = task_of(text.replace("for epoch", "stopper = Early()\nfor epoch"), tmp_path).text()
    train = text[text.index("def train(") : text.index("def evaluate(")]
    assert "stop" not in train
    assert "meter.update" not in train
    assert "meter.update" in text


def test_what_is_drawn_is_drawn_once_and_in_one_go(tmp_path):
    """Else each client splits anew, and test examples are drawn as training examples were."""
    made = "x, y = torch.randn(64, 8), torch.randint(2, (64,))\n"
    made += "x, held, y, kept = train_test_split(x, y)\nheld = held + torch.randn(8)\n"
    loaders = "trainloader = DataLoader(TensorDataset(x, y), 8, shuffle=True)\n"
    loaders += "testloader = DataLoader(TensorDataset(held, kept))"
    text = HEAD + made + INLINE.replace("trainloader, testloader = loaders()", loaders)
    text = task_of(text.replace("net = Net()", "net = Net(x.shape[1])"), tmp_path).text()
    settings = text[text.index("@cache\ndef settings(") : text.index("def build(")]
    assert "glue.reseed(config.seed)" in settings
    assert "train_test_split(x, y)\n    held = held + " in settings
    assert "draw" not in text[text.index("def data(") :]
    draws = "def draw(n):\n    return torch.randn(n)\nnoise = draw(3)\n"
    draws += "def noisy(x):\n    return x + noise\n"
    text = task_of(HEAD + draws + INLINE, tmp_path).text()
    assert "glue.reseed(42)" in text
    assert "glue.reseed(config.seed + 1)" in text[text.index("def data(") :]


def test_lengths_are_of_a_clients_part(tmp_path):
    sets = "trainset, testset = points(64, 0), points(32, 1)\n"
    sets += "trainloader, testloader = DataLoader(trainset, 8), DataLoader(testset, 8)"
    text = HEAD + INLINE.replace("trainloader, testloader = loaders()", sets)
    text = text.replace(
        "test(net, testloader)\n", TEST.replace("hits / count", "hits / len(testset)")
    )
    text = text.replace("for epoch", "plan = Plan(optimizer, len(trainset))\nfor epoch", 1)
    text = text.replace("optimizer.step()", "optimizer.step()\n        plan.step()")
    text = task_of(text, tmp_path).text()
    assert "'accuracy': hits / len(testloader.dataset)" in text
    assert "Plan(optimizer, len(trainloader.dataset))" in text


def test_names_of_the_scripts_and_epochs_that_a_test_takes(tmp_path):
    loop = LOOP.replace("net = Net()", "config = 8\n    net = Net(config)")
    loop = loop.replace("(net, testloader)", "(net, testloader, epoch)")
    loop = loop.replace(
        "trainloader, testloader = loaders()", "trainloader, testloader = loaders(config)"
    )
    head = HEAD.replace("def test(net, testloader)", "def test(net, testloader, epoch)")
    text = task_of(head + TRAIN + BLOCK + loop, tmp_path).text()
    assert "config, = settings(own_config)" in text
    assert "epoch = range(2)[-1]\n    return glue.figures(script.test(net, testloader, epoch))" in (
        text.replace(", 'accuracy'", "")
    ), text


def test_what_no_client_can_do_alone_is_told(tmp_path):
    (tmp_path / "data.csv").touch()
    made = "values = Scaler().fit_transform(read('data.csv'))\nz = values[0]\n"
    made += "net = Net()\naverage = Average(net)"
    look = "    with torch.no_grad():\n        picture = net(z)\n        show(picture)\n    for x"
    loop = INLINE.replace("net = Net()", made).replace("loaders()", "loaders(values)")
    loop = loop.replace("    for x", look).replace("step()", "step()\n        average.update(net)")
    text = HEAD + loop
    task = task_of(text, tmp_path)
    told = "\n".join(task.told())
    assert "on all clients' data" in told
    assert "`values = Scaler().fit_transform(read('data.csv'))`" in told
    assert "found from where you stand only, give whole paths: data.csv" in told
    assert "made of the model anew in each round, and not averaged:" in told
    assert "picture" not in task.text()


def test_folder_beside_the_script_is_read_and_copied(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "net.py").write_text(HEAD)
    text = "import torch\nfrom torch.nn.functional import cross_entropy\nfrom parts.net import *\n"
    text = text.replace("*", "Net, loaders, test") + INLINE
    task = task_of(text, tmp_path)
    assert "net = script.Net()" in task.text()
    assert task.script.beside == [tmp_path / "parts" / "net.py"]


def test_what_is_left_out_is_told_by_its_text(tmp_path):
    text = (HEAD + INLINE).replace(
        "test(net, testloader)\n", TEST + "    if hits > 9:\n        best = hits\n"
    )
    told = "\n".join(task_of(text, tmp_path).told())
    assert "lines 42 to 43: `if hits > 9: best = hits`" in told, told


def test_functions_that_nothing_calls_are_called_by_their_parameters(tmp_path):
    """And what is drawn when a file is imported is the same in every process."""
    train = TRAIN.replace("optimizer):", "device, epochs=3):")
    text = task_of(HEAD + train, tmp_path).text()
    assert "train_data, test_data = script.loaders()" in text
    assert "epochs=config.local_epochs or 3" in text
    assert "TRAINING: dict[str, Any] | None = None" in text
    assert "glue.reseed(42)" not in text
    top = "trainset, testset = random_split(points(90, 0), [60, 30])\n"
    text = task_of(HEAD + top + train, tmp_path, data="trainset,testset").text()
    assert "trainset, testset = script.random_split(script.points(90, 0), [60, 30])" in text
    assert "train_data = trainset" in text
    assert "glue.reseed(42)" not in text
    read = "def show():\n    return len(trainset)\n"
    text = task_of(HEAD + top + read + train, tmp_path, data="trainset,testset").text()
    assert "glue.reseed(42)" in text
    assert "train_data = script.trainset" in text


def test_made_app_needs_no_pytest():
    """It is installed with the app's tests only; the kit's `testing` imports it."""
    for path in [*TEMPLATE.glob("federated_app/**/*.py"), *(ROOT / "kit" / "exam").rglob("*.py")]:
        assert not re.search(r"import pytest|kit\.testing|\.testing import", path.read_text()), path
