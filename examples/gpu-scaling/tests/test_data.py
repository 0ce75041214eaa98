"""What people bring: images of other modes, labels of other kinds, more clients than images."""

import numpy as np
import pytest
from gpu_scaling.kit.flower import RunFailed
from gpu_scaling.kit.testing import (
    BIN,
    alpha,
    copy,
    edit,
    in_process,
    only_run,
    plain,
    posix_only,
    results,
    run,
    sixteen,
    write_digits,
    write_hidden,
    write_words,
)

pytestmark = posix_only
SMALL = {"num_server_rounds": 1, "clients_to_train": 4, "executor": "inline"}


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
    ("clients", "message"),
    [
        (400, "360 test images are too few for 400 clients"),
        (300, "min-partition-size = 4: cannot split 1437 train images into 300 partitions"),
    ],
)
def test_too_many_clients_are_refused_once_by_the_server(clients, message, tmp_path, caplog):
    settings = {"partitioning": "dirichlet", "dirichlet_alpha": 0.1, "min_partition_size": 4}
    settings["cache_dir"] = str(tmp_path / "cache")
    with pytest.raises(RunFailed, match=message):
        in_process(tmp_path, clients, **SMALL | settings)
    assert "left out" not in caplog.text


def test_unreadable_images_are_told_in_each_run(tmp_path, caplog):
    name = write_digits(tmp_path / "data", 32, plain)
    (tmp_path / "data/train/1/1.png").write_bytes(b"no picture")
    for folder in ("computed", "cached"):
        caplog.clear()
        in_process(tmp_path / folder, 4, dataset=name, **SMALL)
        [told] = [line for line in caplog.messages if "left out" in line]
        assert "(1.png): cannot identify image file" in told


def test_images_follow_the_code_and_the_settings_that_make_them(tmp_path):
    """Grey 28x28, as the README's list of what to change says: for pixels, network and pool."""
    app, cache = copy(tmp_path, "run.sh"), tmp_path / "cache"
    source = f"Source('digits', 0, 'iid', 1.0, 1, 0, '{cache}')"
    code = f"from gpu_scaling.dataset import Source; {source}.prepare()"
    assert run([BIN / "python", "-c", code], app).returncode == 0
    edit(
        app / "gpu_scaling/dataset.py",
        "IMAGE_SIZE, CHANNELS = 32, 3",
        "IMAGE_SIZE, CHANNELS = 28, 1",
    )
    edit(
        app / "gpu_scaling/kit/pixels.py",
        "pixels = np.asarray(image)",
        "pixels = 255 - np.asarray(image)",
    )
    command = [BIN / "python", "-m", "gpu_scaling.kit.in_process", "--num-supernodes", "4"]
    changes = f"num-server-rounds=4 batch-size=16 pool-idle=1.0 cache-dir='{cache}'"
    done = run([*command, "--run-config", "offline.toml", "--run-config", changes], app)
    assert done.returncode == 0, done.stdout
    assert results(app)[4]["evaluate_metrics_serverapp"]["accuracy"] > 0.8
    shapes = {np.load(path).shape for path in tmp_path.glob("cache/*/test-images.npy")}
    assert shapes == {(360, 3, 32, 32), (360, 1, 28, 28)}
    corners = [np.load(path)[:, 0, 0, 0] for path in tmp_path.glob("cache/*/test-images.npy")]
    assert sorted({int(corner.min()) for corner in corners}) == [0, 255]  # inverted, as the code


def test_a_pool_outlives_a_network_that_cannot_be_warmed_up(tmp_path):
    app = copy(tmp_path, "run.sh")
    edit(app / "gpu_scaling/task.py", "nn.Conv2d(CHANNELS, 32", "nn.Conv2d(CHANNELS + 1, 32")
    command = [BIN / "python", "-m", "gpu_scaling.kit.in_process", "--num-supernodes", "2"]
    command += ["--run-config", "offline.toml", "--run-config", "pool-idle=1.0"]
    done = run([*command, "--run-config", "num-server-rounds=1"], app)
    assert "expected input[200, 3, 32, 32] to have 4 channels" in done.stdout.splitlines()[-1]
