"""A user's data: images of other modes, labels of other kinds, more clients than images."""

import pytest
from centralized_to_federated.kit.flower import RunFailed
from centralized_to_federated.kit.testing import (
    BIN,
    alpha,
    copy,
    edit,
    in_process,
    only_run,
    results,
    run,
    sixteen,
    write_digits,
    write_hidden,
    write_words,
)

SMALL = {"num_server_rounds": 1, "fraction_train": 1.0}


@pytest.mark.parametrize("make", [alpha, sixteen])
def test_images_of_other_modes_are_learnt(make, tmp_path):
    name = write_digits(tmp_path / "data", 32, make)
    history = in_process(tmp_path, 4, dataset=name, **SMALL | {"num_server_rounds": 6})
    assert history[6]["evaluate_metrics_serverapp"]["accuracy"] > 0.85


def test_words_are_classes_and_a_share_is_held_out(tmp_path):
    settings = SMALL | {"dataset": write_words(tmp_path / "data", 32), "test_split": "20%"}
    assert len(in_process(tmp_path, 4, **settings)) == 2
    again = settings | {"test_split": "10%", "resume_from": str(only_run(tmp_path))}
    with pytest.raises(ValueError, match=r"test-split was '20%' in .* and is '10%' now"):
        in_process(tmp_path, 4, **again)


def test_hidden_labels_are_refused_before_anything_is_written(tmp_path):
    message = "10 of 10 labels of its 'test' split are missing, hidden .*test-split='20%'"
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, 4, dataset=write_hidden(tmp_path / "data", 32), **SMALL)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("clients", "partitioning", "message"),
    [
        (400, "iid", "360 test images are too few for 400 clients"),
        (2000, "dirichlet", "1437 train images are too few for 2000 clients"),
        (300, "dirichlet", "cannot split 1437 train images into 300 partitions"),
    ],
)
def test_too_many_clients_are_refused_by_the_server(clients, partitioning, message, tmp_path):
    settings = SMALL | {"dirichlet_alpha": 0.1, "min_partition_size": 4}
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, clients, **settings, partitioning=partitioning)


@pytest.mark.parametrize("network", ["compact", "tutorial"])
def test_grey_images_need_one_line(network, tmp_path):
    """The line is in the README's list of what to change."""
    app = copy(tmp_path)
    path = app / "centralized_to_federated/task.py"
    edit(path, "IMAGE_SIZE, CHANNELS = 32, 3", "IMAGE_SIZE, CHANNELS = 28, 1")
    command = [BIN / "python", "-m", "centralized_to_federated.kit.in_process"]
    command += ["--num-supernodes", "2", "--run-config", "offline.toml"]
    done = run([*command, "--run-config", f"num-server-rounds=4 network='{network}'"], app)
    assert done.returncode == 0, done.stdout
    assert results(app)[4]["evaluate_metrics_serverapp"]["accuracy"] > 0.8
