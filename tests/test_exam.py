"""The exam finds planted faults, says nothing of a sound app, and changes nothing in it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from on_this_machine import CIFAR, posix_only
from repository import ROOT, example_folder, package_of

from kit.exam.app import App
from kit.exam.exam import Exam, ask
from kit.exam.questions import QUESTIONS
from kit.exam.runs import Runs
from kit.exam.verdict import FAIL, PASS

ADVANCED, VIT = example_folder("advanced-pytorch"), example_folder("vit-finetune")
IMAGE = """ConfigRecord({"seen": data.images[0].numpy().tobytes()})"""
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n"
NORMS = [f"nn.GroupNorm({groups}, {width})" for groups, width in ((4, 32), (8, 64), (8, 128))]
BATCH_NORM = [("task.py", norm, f"nn.BatchNorm2d({norm.split()[-1]}") for norm in NORMS]
Edits = list[tuple[str, str, str]]  # file, what it says, what it says in a copy; "": a new file

# A fault in an example: the question that finds it, and a word of the evidence.
FAULTS: dict[str, tuple[Path, Edits, str, str]] = {
    "nothing is learnt": (
        CIFAR,
        [("task.py", "                optimizer.step()\n", "")],
        "ends",
        "loss",
    ),
    "a seed that is not used": (
        ADVANCED,
        [("task.py", "    torch.manual_seed(seed)\n    model.train()", "    model.train()")],
        "repeats",
        "generators in another state",
    ),
    "a seed that is a constant": (
        CIFAR,
        [
            ("task.py", "torch.manual_seed(seed)\n    network.train()", "torch.manual_seed(1)"),
            ("task.py", "torch.manual_seed(seed)\n    # This", "torch.manual_seed(1)\n    # This"),
            ("config.py", "self.seed, self.test_split", "1, self.test_split"),
        ],
        "repeats",
        "seed + 1 gives the same models",
    ),
    "a checkpoint without the strategy's state": (
        CIFAR,
        [("kit/loop.py", "run.kept = self.keeper.state() | {", "run.kept = {")],
        "resumes",
        "resumed from number",
    ),
    "files that are written in place": (
        CIFAR,
        [
            ("kit/files.py", "with temporary.open(", "with path.open("),
            ("kit/files.py", "        temporary.replace(path)\n", ""),
        ],
        "resumes",
        "resumed from number",
    ),
    "a resume that repeats a round": (
        CIFAR,
        [
            (
                "kit/loop.py",
                "range(run.round + 1, num",
                "range(max(run.round, 0) + (run.round < 1), num",
            )
        ],
        "resumes",
        "resumed from number",
    ),
    "a client error swallowed": (
        CIFAR,
        [
            (
                "client_app.py",
                "    loss = task.train(",
                "    import contextlib\n\n    loss = 0.0\n    with contextlib.suppress(OSError):\n"
                "     loss = task.train(",
            )
        ],
        "bad-client",
        "an error: the model sent to evaluate in round 1",
    ),
    "NaN let through": (
        CIFAR,
        [("kit/replies.py", "if not finite.all() and", "if False and")],
        "bad-client",
        "NaN: ",
    ),
    "an enormous update let through": (
        CIFAR,
        [("kit/guard.py", "if own > ratio * usual > 0:", "if False:")],
        "bad-client",
        "an enormous update: ",
    ),
    "a bad client that the log does not name": (
        CIFAR,
        [("kit/loop.py", "            if problem:\n", "            if False:\n")],
        "bad-client",
        "the log does not name it",
    ),
    "min-replies ignored": (
        CIFAR,
        [("kit/loop.py", "if len(good) < config.min_replies:", "if not good:")],
        "too-few",
        "as if all were well",
    ),
    "the first to answer count": (
        CIFAR,
        [
            (
                "kit/loop.py",
                "sorted(clients.receive(self.timeout), key=clients.partition_of)",
                "list(clients.receive(self.timeout))[:3]",
            )
        ],
        "order",
        "in reverse order",
    ),
    "another order of examples than the centralised one": (
        CIFAR,
        [
            (
                "../cifar.py",
                'task.derive_seed(config["seed"])',
                'task.derive_seed(config["seed"] + 1)',
            )
        ],
        "centralised",
        "cifar:centralised and one client",
    ),
    "counters that are lost": (
        CIFAR,
        [*BATCH_NORM, ("kit/buffers.py", 'if value.dtype.kind != "f" and trained:', "if False:")],
        "keeps-model",
        "num_batches_tracked is 0, outside of what clients sent",
    ),
    "buffers that are moved with momentum": (
        CIFAR,
        [*BATCH_NORM, ("kit/strategies.py", "    if not buffers:\n", "    if True:\n")],
        "keeps-model",
        "outside of what clients sent",
    ),
    "held-out examples trained on": (
        ADVANCED,
        [
            (
                "task.py",
                "Examples(examples.images[training], examples.labels[training])",
                "Examples(examples.images, examples.labels)",
            )
        ],
        "held-out",
        "are trained on",
    ),
    "an image in the reply": (
        CIFAR,
        [
            ("client_app.py", "import Context,", "import ConfigRecord, Context,"),
            ("client_app.py", '"metrics": metrics})', f'"metrics": metrics, "more": {IMAGE}}})'),
        ],
        "leaves",
        "more/seen (uint8, (3072,)) of client",
    ),
    "a cache without the code in its key": (
        VIT,
        [("models.py", '                "code": self.code,\n', "")],
        "cache",
        "was changed, and what it had made before is still used",
    ),
    "a setting that is not checked": (
        CIFAR,
        [
            ("config.py", "dirichlet_alpha: float = positive()", "dirichlet_alpha: float = free()"),
            ("config.py", "    positive,\n", "    positive,\n    true_or_false as free,\n"),
        ],
        "settings",
        "dirichlet-alpha = nan is accepted",
    ),
    "a key in the bundle": (CIFAR, [("access.md", "", KEY)], "bundle", "PRIVATE KEY"),
    "data in the bundle": (
        CIFAR,
        [("rows.toml", "", f"rows = {[*range(30_000)]}")],
        "bundle",
        "rows.toml is bundled",
    ),
}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory) -> Iterator[None]:
    """What the examples import is imported once, so that forks need not."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, os.environ.get(name, ""))  # put back afterwards
        patch.delenv("HF_HOME")
        for app in (CIFAR, ADVANCED, VIT):
            Runs(App(app), tmp_path_factory.mktemp("preload")).preload()
        yield


@posix_only
@pytest.mark.usefixtures("preloaded")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path):
    app, edits, question, evidence = FAULTS[fault]
    exam = Exam(App(changed(app, edits, tmp_path)), tmp_path / "scratch")
    [(_, verdict)] = ask(exam, {question: QUESTIONS[question]})
    assert verdict.verdict == FAIL, verdict
    assert evidence in verdict.evidence
    assert verdict.way_out


@posix_only
@pytest.mark.usefixtures("preloaded")
def test_batch_norm_under_adam_is_no_fault(tmp_path):
    """Its counters travel with one dimension; the bias before it has gradients of rounding only."""
    [sgd] = re.findall(
        r"torch\.optim\.SGD\(.*\)", (CIFAR / package_of(CIFAR) / "task.py").read_text()
    )
    adam = ("task.py", sgd, "torch.optim.Adam(network.parameters(), 1e-3)")
    exam = Exam(App(changed(CIFAR, [*BATCH_NORM, adam], tmp_path)), tmp_path / "scratch")
    asked = ask(exam, {name: QUESTIONS[name] for name in ("centralised", "bad-client")})
    assert [verdict.verdict for _, verdict in asked] == [PASS, PASS]


def changed(app: Path, edits: Edits, folder: Path) -> Path:
    """Return a copy of an app with edits."""
    copy = folder / "copy"
    shutil.copytree(app, copy, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    for file, old, new in edits:
        path = copy / package_of(app) / file
        text = path.read_text() if old else ""
        assert old in text, f"{file} says no longer {old!r}"
        path.write_text(text.replace(old, new) if old else new)
    return copy


def state(folder: Path) -> dict[str, str]:
    """Return a digest of each file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def examine(words: list, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    """Run the command in a folder, and return what exam.json holds."""
    command = [sys.executable, ROOT / "tools" / "exam.py", *words]
    env = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "COLUMNS": "100"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = folder / "exam.json"
    return done, json.loads(found.read_text())["questions"] if found.is_file() else []


@posix_only
def test_the_command_tells_and_changes_nothing(tmp_path):
    app = tmp_path / "app"
    shutil.copytree(CIFAR, app, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    before = state(app)
    done, questions = examine([app, "--only", "ends", "bundle"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [q["name"] for q in questions] == ["ends", "bundle"]
    assert [q["verdict"] for q in questions] == ["pass", "pass"]
    assert "pass      ends          A run comes to its end, and the loss falls." in done.stdout
    assert state(app) == before

    (app / "access.md").write_text(KEY)
    done, _ = examine([app, "--only", "bundle"], tmp_path)
    assert done.returncode == 1
    assert "FAIL      bundle" in done.stdout
    assert "Way out: " in done.stdout


PLAIN = {
    "pyproject.toml": """
[project]
name = "plain"
version = "1.0.0"
[tool.flwr.app]
publisher = "me"
[tool.flwr.app.components]
serverapp = "plain.apps:server"
clientapp = "plain.apps:client"
[tool.flwr.app.config]
num-server-rounds = 3
""",
    "plain/__init__.py": "",
    "plain/apps.py": """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


def data(part):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(part))
    return x, x.sum(1, keepdim=True)


@client.train()
def train(message, context):
    model = torch.nn.Linear(8, 1)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, y = data(context.node_config["partition-id"])
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"loss": float(loss), "num-examples": len(x)})
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    torch.manual_seed(0)
    arrays = ArrayRecord(torch.nn.Linear(8, 1).state_dict())
    rounds = context.run_config["num-server-rounds"]
    FedAvg(fraction_evaluate=0.0).start(grid, arrays, rounds)
""",
}


@posix_only
def test_an_app_without_the_kit_is_examined_as_far_as_it_goes(tmp_path):
    """Flower's own loop: it repeats, but a client that sends NaN poisons the model."""
    app = tmp_path / "plain"
    for name, text in PLAIN.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    done, questions = examine([app], tmp_path)
    assert done.returncode == 1
    found = {q["name"]: q["verdict"] for q in questions}
    assert found["ends"] == found["repeats"] == found["keeps-model"] == found["leaves"] == "pass"
    assert found["bad-client"] == FAIL
    assert found["resumes"] == found["centralised"] == found["engines"] == "not asked"
    evidence = {q["name"]: q["evidence"] for q in questions}
    assert "needs a key like resume-from" in evidence["resumes"]
    assert "NaN" in evidence["bad-client"]


@pytest.mark.parametrize(
    ("files", "told"),
    [({}, "holds no pyproject.toml"), ({"pyproject.toml": "[tool]"}, "no Flower app")],
)
def test_a_folder_without_an_app_is_named(files, told, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done, _ = examine([tmp_path], tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
