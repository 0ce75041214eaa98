"""Backbones: torchvision's names, transforms and download path; files that fit, and others."""

import pickle

import pytest
import torch
from PIL import Image
from torchvision import models
from vit_finetune.models import BUILDERS, Backbone, download


def random_image(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


def small(weights: str = "none", precision: str = "float32", **changes) -> Backbone:
    settings = {"normalization": "half", "image_size": 32, "seed": 1} | changes
    return Backbone("vit_tiny", weights, precision=precision, **settings)


def test_every_vit_of_torchvision_has_a_name():
    names = {"vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "vit_tiny"}
    assert BUILDERS.keys() == names
    widths = {n: Backbone(n, "none", "imagenet", 224).width for n in names}
    assert widths["vit_b_16"] == 768
    assert widths["vit_tiny"] == 192
    parameters = sum(
        p.numel() for p in Backbone("vit_b_16", "none", "imagenet", 224).build().parameters()
    )
    assert parameters == 85_798_656  # torchvision's 86,567,656 without the head


def test_transform_is_the_published_one():
    backbone = Backbone("vit_b_16", "IMAGENET1K_V1", "imagenet", 224)
    image = random_image(300, 400)
    expected = models.ViT_B_16_Weights.IMAGENET1K_V1.transforms()(image)
    seen = []
    backbone.module = lambda batch: seen.append(batch)  # what the model is given
    backbone.precision = "float32"
    backbone.features(backbone.central_crop(image)[None])
    torch.testing.assert_close(seen[0][0], expected)


def test_random_weights_repeat_and_differ_by_seed():
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    one, same, other = (small(seed=s).features(images) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)


def test_bfloat16_gives_nearly_the_same_features():
    images = torch.stack([small().central_crop(random_image(40, 50))] * 2)
    exact, fast = (small(precision=p).features(images).float() for p in ("float32", "bfloat16"))
    assert torch.cosine_similarity(exact, fast).min() > 0.999


def test_key_tells_features_apart(tmp_path):
    state = small().module.state_dict()
    torch.save(state, tmp_path / "one.pth")
    torch.save(state | {"class_token": state["class_token"] + 1}, tmp_path / "other.pth")
    keys = {
        small().key,
        small(seed=2).key,
        small(precision="bfloat16").key,
        small(normalization="imagenet").key,
        small(image_size=48).key,
        small(str(tmp_path / "one.pth")).key,
        small(str(tmp_path / "other.pth")).key,
    }
    assert len(keys) == 7


def test_own_file_is_used_and_its_head_left_out(tmp_path):
    backbone = small()
    state = backbone.module.state_dict() | {"heads.head.weight": torch.zeros(200, 192)}
    torch.save(state, tmp_path / "own.pth")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    loaded = small(str(tmp_path / "own.pth"), seed=99)
    assert torch.equal(loaded.features(images), backbone.features(images))


def test_file_that_does_not_fit_names_the_keys(tmp_path):
    state = dict(small(image_size=64).module.state_dict())
    state["extra"] = state.pop("class_token")
    torch.save(state, tmp_path / "misfit.pth")
    with pytest.raises(ValueError, match="does not fit") as error:
        _ = small(str(tmp_path / "misfit.pth")).module
    assert "has unknown extra" in str(error.value)
    assert "lacks class_token" in str(error.value)
    assert "encoder.pos_embedding is (1, 17, 192), not (1, 5, 192)" in str(error.value)
    assert "misfit.pth" in str(error.value)


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_file_with_code_is_not_run(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="not a state dict that can be read safely"):
        _ = small(str(tmp_path / "evil.pth")).module
    assert "this must not run" not in capsys.readouterr().out


def test_wrong_names_list_the_right_ones():
    with pytest.raises(ValueError, match=r"model\.name = 'resnet18': choose one of vit_b_16"):
        Backbone("resnet18", "none", "imagenet", 224)
    with pytest.raises(ValueError, match=r"IMAGENET1K_SWAG_LINEAR_V1, none"):
        _ = Backbone("vit_b_16", "IMAGENET2", "imagenet", 224).file
    with pytest.raises(ValueError, match=r"image-size = 224: .* needs 384"):
        Backbone("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", "imagenet", 224)
    with pytest.raises(ValueError, match=r"model\.normalization = 'half'"):
        Backbone("vit_b_16", "IMAGENET1K_V1", "half", 224)
    with pytest.raises(ValueError, match="image-size = 50: not a multiple of the patch size"):
        small(image_size=50)


def test_published_weights_come_from_torch_hubs_folder(tmp_path, monkeypatch):
    """torchvision's own loading path, with a file of the published name where it looks for it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    backbone = Backbone("vit_b_16", "none", "imagenet", 224, "float32", seed=3)
    head = {"heads.head.weight": torch.zeros(1000, 768), "heads.head.bias": torch.zeros(1000)}
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(backbone.module.state_dict() | head, folder / "vit_b_16-c867db91.pth")

    published = Backbone("vit_b_16", "IMAGENET1K_V1", "imagenet", 224, "float32")
    assert published.file == folder / "vit_b_16-c867db91.pth"
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    assert torch.equal(published.features(images), backbone.features(images))
    loaded = models.ViT_B_16_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
    assert torch.equal(loaded["class_token"], backbone.module.class_token)


def test_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        RuntimeError, match=r"model\.weights = 'IMAGENET1K_V1': cannot download"
    ) as e:
        download(models.ViT_B_16_Weights.IMAGENET1K_V1)
    assert "offline.toml" in str(e.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_real_weights_fit(real_data):
    path = real_data / "vit-tiny" / "vit_tiny_patch16_224_torchvision.pth"
    backbone = Backbone("vit_tiny", str(path), "half", 224, "float32")
    assert backbone.features(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 192)
