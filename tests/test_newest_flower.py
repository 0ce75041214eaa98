"""Parts of `tools/newest_flower.py` that need no other Flower release than the pinned one."""

import re
import subprocess
import sys

import pytest
from newest_flower import PROMISES, Promise, problems, rounds, versions
from repository import ROOT, example_folder, example_names, flatten, flower_settings, load_toml

PROMISE = Promise("accuracy", 0.9, 0.02, clients=3)
LOG = "aggregate_train: Received 3 results and 0 failures\n"


def history(*accuracies: float) -> list[dict]:
    return [
        {"round": number, "evaluate_metrics_serverapp": {"accuracy": accuracy}}
        for number, accuracy in enumerate(accuracies)
    ]


@pytest.mark.parametrize("example", example_names())
def test_it_expects_what_the_examples_own_tests_expect(example):
    text = (ROOT / "examples" / example / "tests" / "test_run.py").read_text()
    value, tolerance = re.search(r"TOLERANCE = .*?([\d.]+), ([\d.]+)$", text, re.MULTILINE).groups()
    promise = PROMISES[example]
    assert (promise.value, promise.tolerance) == (float(value), float(tolerance))
    assert rounds(example) >= 4


@pytest.mark.parametrize("example", example_names())
def test_federations_are_the_same_in_both_forms(example):
    """Simulated federations are; newer Flower takes over an address unchanged."""
    declared = flower_settings(example_folder(example))["federations"]
    simulated = {name: given for name, given in declared.items() if "options" in given}
    files = sorted((example_folder(example) / "federations").glob("*.toml"))
    assert [path.stem for path in files] == sorted(simulated)
    for path in files:
        options = flatten(simulated[path.stem]["options"])
        newer = {n.removeprefix("backend.").replace(".", "-"): v for n, v in options.items()}
        assert load_toml(path) == newer


@pytest.mark.parametrize(
    ("results", "log", "found"),
    [
        (history(0.1, 0.5, 0.91), 2 * LOG, []),
        (history(0.1, 0.91), LOG, ["1 of 2 rounds", "replies 3; expected 3 in each of 2 rounds"]),
        (history(0.1, 0.5, 0.87), 2 * LOG, ["accuracy 0.870, not 0.9 ± 0.02"]),
        (history(0.1, 0.5, 0.9), LOG, ["replies 3; expected 3 in each of 2 rounds"]),
        (
            history(0.1, 0.5, float("nan")),
            LOG + LOG.replace("3 results", "2 results"),
            ["replies 3, 2; expected 3 in each of 2 rounds", "accuracy nan, not 0.9 ± 0.02"],
        ),
    ],
)
def test_what_differs_from_the_promise_is_named(results, log, found):
    assert problems(results, log, PROMISE, num_rounds=2) == found


def test_versions_are_read_from_constraints(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("a==1.0\nb-c==2 ; sys_platform == 'linux'\nd==3 ; x\nd==4 ; not x\n")
    assert versions(path) == {"a": "1.0", "b-c": "2"}


def test_unknown_example_is_named():
    tool = ROOT / "tools" / "newest_flower.py"
    done = subprocess.run([sys.executable, tool, "nope"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "EXAMPLE=nope: no such example; there are pytorch-from-centralized" in done.stderr
