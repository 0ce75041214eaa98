"""The app runs, repeats, and trains as the script does."""

import numpy as np
import pytest
from federated_app import centralised
from federated_app.config import Config
from federated_app.kit.testing import BIN, copy, in_process, results, run

ROUNDS = 2


def test_rounds_train_and_repeat(tmp_path):
    histories = [
        in_process(tmp_path / name, 2, num_server_rounds=ROUNDS) for name in ("first", "second")
    ]
    assert histories[0] == histories[1]
    tested = [entry["evaluate_metrics_serverapp"] for entry in histories[0]]
    assert len(tested) == ROUNDS + 1
    assert tested[0] != tested[1]
    assert all(np.isfinite(list(figures.values())).all() for figures in tested)
    assert all(len(entry["clients"]) == 2 for entry in histories[0][1:])


def test_one_client_with_all_data_trains_as_the_script_does():
    verdict = centralised.compare()
    assert verdict.same, verdict.text


def test_the_command_runs_the_app(tmp_path):
    command = [BIN / "python", "-m", "federated_app.kit.in_process", "--num-supernodes", "2"]
    app = copy(tmp_path)
    done = run([*command, "--run-config", "num-server-rounds=1"], app)
    assert done.returncode == 0, done.stdout
    assert len(results(app)) == 2


@pytest.mark.parametrize(("key", "value"), [("partitioning", "random"), ("min-replies", 0)])
def test_bad_value_is_refused_by_name(run_config, key, value):
    with pytest.raises(ValueError, match=f"{key} = {value!r} is not valid"):
        Config.from_run_config(run_config | {key: value})
