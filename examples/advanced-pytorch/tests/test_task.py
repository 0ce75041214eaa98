"""The model learns, heads do not disturb each other, and the data is right."""

import pytest
import torch
from pytorch_example import partitions, task
from torch import nn

DIGITS = {"alpha": 1.0, "min_partition_size": 8, "test_fraction": 0.2, "seed": 42}
HYPERPARAMETERS = {"epochs": 2, "batch_size": 8, "learning_rate": 0.03, "momentum": 0.5, "seed": 7}


def load(partition_id: int, num_partitions: int = 10) -> tuple[task.Examples, task.Examples]:
    return task.load_partition("digits", partition_id, num_partitions, **DIGITS)


def test_partitions_hold_every_training_example_once():
    parts = [part for i in range(10) for part in load(i)]
    assert sum(len(part.labels) for part in parts) == 1437
    assert len(task.load_test("digits").labels) == 360
    assert parts[0].images.shape[1:] == (1, 28, 28)
    assert parts[0].images.dtype == torch.uint8


def test_partitions_are_loaded_once():
    assert load(3)[0].images is load(3)[0].images


def test_model_learns_digits():
    torch.manual_seed(0)
    model = task.Net()
    data = load(0, num_partitions=1)[0]
    task.train(model, data, **HYPERPARAMETERS)
    [(loss, accuracy)] = task.evaluate(model, task.load_test("digits"), model.head)
    assert accuracy > 0.9
    assert loss < 0.4


def test_personal_head_leaves_the_shared_model_alone():
    models, losses, data = [], [], load(0, num_partitions=1)[0]
    for head in (None, nn.Linear(64, 10)):
        torch.manual_seed(0)
        models.append(task.Net())
        losses.append(task.train(models[-1], data, personal_head=head, **HYPERPARAMETERS))
    assert losses[0] == losses[1]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert task.evaluate(models[1], task.load_test("digits"), head)[0][1] > 0.9  # and it learns


def test_evaluation_agrees_with_the_plain_way():
    torch.manual_seed(0)
    model, data = task.Net(), task.load_test("digits")
    [(loss, accuracy)] = task.evaluate(model, data, model.head)
    logits = model(task.to_pixels(data.images))
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())


def test_impossible_partitions_name_their_keys():
    with pytest.raises(RuntimeError, match="min-partition-size = 100: cannot split 1437"):
        task.load_partition("digits", 0, 50, 1.0, 100, 0.2, 42)


def test_real_fashion_mnist(real_data):
    dataset = str(real_data / "fashion_mnist")
    train, held_out = task.load_partition(dataset, 0, 50, 1.0, 10, 0.2, 42)
    assert len(train.labels) + len(held_out.labels) == 1524
    assert task.num_classes(dataset) == 10
    pixels = task.to_pixels(task.load_test(dataset).images)
    assert pixels.mean().item() == pytest.approx(0, abs=0.01)
    assert pixels.std().item() == pytest.approx(1, abs=0.01)


def test_partitions_can_be_drawn(tmp_path):
    path = tmp_path / "partitions.png"
    partitions.draw_partitions("digits", 10, 0.5, 8, 42, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
