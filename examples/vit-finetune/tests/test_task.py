"""The head: it learns, and statistics add over clients."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from vit_finetune import task
from vit_finetune.features import CachedFeatures
from vit_finetune.server_app import whole_head

SETTINGS = {"batch_size": 16, "momentum": 0.9, "label_smoothing": 0.1, "learning_rate": 20.0}


def clusters(width: int = 64, seed: int = 0) -> CachedFeatures:
    """300 noisy points around 10 centres, far from the origin and of uneven spread."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, width, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(300) % 10
    noise = torch.randn(300, width, generator=generator)
    return CachedFeatures(
        (centres[labels] + 0.7 * noise) * torch.linspace(1, 9, width) + 20, labels
    )


def trained(source: CachedFeatures, epochs: int = 5) -> task.Head:
    head = task.Head(source.features.shape[1], 10, task.statistics(task.moments(source)))
    task.train(head, source, epochs=epochs, seed=3, **SETTINGS)
    return head


@pytest.mark.parametrize("width", [64, 768])
def test_one_learning_rate_fits_every_width(width):
    head = trained(clusters(width))
    loss, accuracy = task.evaluate(head, clusters(width, seed=9))
    assert accuracy > 0.95
    assert loss < 1.0


def test_a_new_head_gives_equal_odds():
    source = clusters()
    head = task.Head(64, 10, task.statistics(task.moments(source)))
    assert task.evaluate(head, source)[0] == pytest.approx(np.log(10), rel=1e-6)


def test_statistics_add_over_clients():
    source = clusters()
    parts = [task.moments(source.select(rows)) for rows in torch.arange(300).split(70)]
    total = {name: sum(part[name] for part in parts) for name in parts[0]}
    mean, scale = task.statistics(total)
    scaled = (source.features - mean) * scale
    assert scaled.mean(0).abs().max() < 1e-5
    assert (scaled**2).sum(1).mean().item() == pytest.approx(1, rel=1e-4)


def closed_form(parts: list[CachedFeatures]) -> task.Head:
    """Solve for the head as the server does, from each part's sums."""
    sums = [task.moments(part) | task.class_moments(part, 10) for part in parts]
    total = {name: sum(one[name] for one in sums) for name in sums[0]}
    standard = task.statistics(total)
    weight, offset = task.discriminant(total, standard, 0.2)
    head = task.Head(weight.shape[1], 10, standard, torch.from_numpy(offset))
    head.linear.load_state_dict({"weight": torch.from_numpy(weight)})
    return head


def test_closed_form_depends_on_the_images_not_on_the_split():
    source = clusters()
    by_class = [source.select(torch.where(source.labels == c)[0]) for c in range(10)]
    evenly = [source.select(rows) for rows in torch.arange(300).split(70)]
    one, other = closed_form(by_class), closed_form(evenly)
    torch.testing.assert_close(one.linear.weight, other.linear.weight, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(one.offset, other.offset, rtol=1e-2, atol=1e-2)


def test_closed_form_is_linear_discriminant_analysis():
    """Its logits are scikit-learn's on standardised features, but for a common constant."""
    source = clusters()
    head = closed_form([source])
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2, priors=[0.1] * 10)
    scaled = (source.features - head.mean) * head.scale
    known.fit(scaled.numpy(), source.labels.numpy())
    ours, theirs = head(source.features).detach().numpy(), known.decision_function(scaled.numpy())
    ours, theirs = (logits - logits.mean(1, keepdims=True) for logits in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)


def test_constant_features_do_no_harm():
    source = clusters()
    source.features[:, 5] = 3.0
    assert task.evaluate(trained(source), source)[1] > 0.95


def test_saved_head_works_on_raw_features():
    """`model.safetensors` needs no statistics: they are folded into weight and bias."""
    source = clusters()
    head = trained(source)
    arrays = {"weight": head.linear.weight.detach().numpy()}
    statistics = {"mean": head.mean.numpy(), "scale": head.scale.numpy()}
    folded = {
        k: torch.from_numpy(v) for k, v in whole_head(arrays, statistics, "heads.head").items()
    }
    logits = source.features @ folded["heads.head.weight"].T + folded["heads.head.bias"]
    torch.testing.assert_close(logits, head(source.features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("feature_cache", [True, False])
def test_normalization_that_does_not_suit_a_file_is_found(offline, bright, feature_cache):
    changes = {"model_name": "bright", "model_weights": bright(1.1), "feature_cache": feature_cache}
    wrong = offline(**changes, model_normalization="half")
    better, there, used, here = task.better_normalization(wrong)
    assert (better, used) == ("imagenet", "half")
    assert there > 0.75
    assert here < 0.15
    assert task.better_normalization(wrong) == (better, there, used, here)
    assert task.better_normalization(offline(**changes, model_normalization="imagenet")) is None


def test_normalization_that_does_as_well_is_left_alone(offline, bright):
    changes = {"model_name": "bright", "model_weights": bright(-3)}
    for name in ("imagenet", "half"):
        assert task.better_normalization(offline(**changes, model_normalization=name)) is None


def test_only_weights_from_a_file_may_want_another_normalization(offline):
    assert task.better_normalization(offline()) is None


def test_real_weights_want_their_own_normalization(real_data, offline):
    changes = {
        "dataset": str(real_data / "oxford-flowers"),
        "model_weights": str(real_data / "vit-tiny" / "vit_tiny_patch16_224_torchvision.pth"),
        "image_size": 224,
        "precision": "auto",
    }
    found = task.better_normalization(offline(**changes, model_normalization="imagenet"))
    assert found[::2] == ("half", "imagenet")
    assert found[1] - found[3] > 0.1
    assert task.better_normalization(offline(**changes, model_normalization="half")) is None


def test_held_out_images_are_not_trained_on(offline):
    config = offline(test_fraction=0.25)
    data = task.load_partition(config, 2, 20)
    total = len(data.training.labels) + len(data.held_out.labels)
    assert len(data.held_out.labels) == np.ceil(total / 4)
    rows = torch.cat([data.training.rows, data.held_out.rows])
    assert sorted(rows.tolist()) == list(range(total))
