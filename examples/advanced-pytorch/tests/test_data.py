"""A user's data: images of other modes, labels of other kinds, more clients than images."""

import pytest
from pytorch_example.kit.flower import RunFailed
from pytorch_example.kit.testing import (
    BIN,
    alpha,
    copy,
    edit,
    in_process,
    only_run,
    plain,
    results,
    run,
    sixteen,
    write_digits,
    write_hidden,
    write_words,
)

SMALL = {"num_server_rounds": 1, "fraction_train": 1.0, "min_partition_size": 4}


@pytest.mark.parametrize("make", [alpha, sixteen])
def test_images_of_other_modes_are_learnt(make, tmp_path):
    name = write_digits(tmp_path / "data", 28, make)
    history = in_process(tmp_path, 4, dataset=name, **SMALL | {"num_server_rounds": 6})
    assert history[6]["evaluate_metrics_serverapp"]["accuracy"] > 0.85


def test_words_are_classes_and_a_share_is_held_out(tmp_path):
    settings = SMALL | {"dataset": write_words(tmp_path / "data", 28), "test_split": "20%"}
    assert len(in_process(tmp_path, 4, **settings)) == 2
    again = settings | {"test_split": "10%", "resume_from": str(only_run(tmp_path))}
    with pytest.raises(ValueError, match=r"test-split was '20%' in .* and is '10%' now"):
        in_process(tmp_path, 4, **again)


def test_hidden_labels_are_refused_before_anything_is_written(tmp_path):
    message = "10 of 10 labels of its 'test' split are missing, hidden .*test-split='20%'"
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, 4, dataset=write_hidden(tmp_path / "data", 28), **SMALL)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (2000, "1437 train images are too few for 2000 clients"),
        (300, "min-partition-size = 4: cannot split 1437 train images into 300 partitions"),
    ],
)
def test_too_many_clients_are_refused_once_by_the_server(clients, message, tmp_path, caplog):
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, clients, **SMALL | {"dirichlet_alpha": 0.1})
    assert "left out" not in caplog.text


PIXELS = (
    "from pytorch_example import task; print(task.load_test('{}').images.float().mean().item())"
)


def test_pixels_follow_the_code_that_makes_them(tmp_path):
    """The cache of `datasets` by itself does not see a change in a function that is called."""
    app, name = copy(tmp_path), write_digits(tmp_path / "data", 28, plain, 40)
    before = float(run([BIN / "python", "-c", PIXELS.format(name)], app).stdout)
    edit(
        app / "pytorch_example/kit/pixels.py",
        "pixels = np.asarray(image)",
        "pixels = 255 - np.asarray(image)",
    )
    after = float(run([BIN / "python", "-c", PIXELS.format(name)], app).stdout)
    assert after == pytest.approx(255 - before, abs=0.01)


def test_colour_images_need_one_line(tmp_path):
    """The line is in the README's list of what to change."""
    app = copy(tmp_path)
    edit(
        app / "pytorch_example/task.py",
        "IMAGE_SIZE, CHANNELS = 28, 1",
        "IMAGE_SIZE, CHANNELS = 30, 3",
    )
    command = [BIN / "python", "-m", "pytorch_example.kit.in_process", "--num-supernodes", "40"]
    changes = "num-server-rounds=6 min-partition-size=4"
    done = run([*command, "--run-config", "offline.toml", "--run-config", changes], app)
    assert done.returncode == 0, done.stdout
    assert results(app)[6]["evaluate_metrics_serverapp"]["accuracy"] > 0.7
