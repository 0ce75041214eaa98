"""Backbones: any model by its name, transforms, downloads; files that fit, and others."""

import pickle
import re

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision import models
from vit_finetune.models import BUILDERS, Backbone, download


def random_image(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


def small(weights: str = "none", precision: str = "float32", **changes) -> Backbone:
    settings = {"normalization": "half", "image_size": 32, "seed": 1} | changes
    return Backbone("vit_tiny", weights, precision=precision, **settings)


def test_every_classifier_of_torchvision_has_a_name():
    assert {*BUILDERS} == {*models.list_models(module=models), "vit_tiny"}


@pytest.mark.parametrize(
    ("name", "head", "width"),
    [
        ("vit_b_32", "heads.head", 768),
        ("resnet18", "fc", 512),
        ("mobilenet_v3_small", "classifier.3", 1024),
        ("efficientnet_b0", "classifier.1", 1280),
        ("convnext_tiny", "classifier.2", 768),
        ("swin_t", "head", 768),
        ("regnet_y_400mf", "fc", 440),  # cannot be built on the meta device
    ],
)
def test_features_are_what_the_models_head_gets(name, head, width):
    """They are compared with torchvision's whole model, with the same random weights."""
    backbone = Backbone(name, "none", "half", 64, "float32", seed=1)
    assert (backbone.head, backbone.width) == (head, width)
    torch.manual_seed(1)
    sized = {"image_size": 64} if name.startswith("vit") else {}
    whole = models.get_model(name, **sized).eval()
    nn.init.normal_(whole.get_submodule(head).weight)  # a ViT's is zero at first
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = whole(images / 127.5 - 1)
        given = whole.get_submodule(head)(backbone.features(images))
    spread = expected.std()  # tiny in some deep models with random weights
    torch.testing.assert_close(given / spread, expected / spread, rtol=1e-3, atol=1e-3)


class OwnModel(nn.Module):
    """A small model with lazy shapes and computed values, which show only when it runs."""

    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((3, 1, 1), 2.0), persistent=False)
        self.power = int(torch.tensor(1).item())
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(5))
        self.last = nn.LogSoftmax(1) if softmax else nn.Sequential()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(images * self.scale) ** self.power)


@pytest.mark.parametrize(
    ("builder", "head", "width"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), "1", 3072),
        (
            lambda image_size: nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 5)),
            "1",
            3072,
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.Identity()), "", 5),
        (OwnModel, "", 5),  # a power comes after the last layer
        (lambda: OwnModel(softmax=True), "", 5),
        (lambda: nn.Sequential(OwnModel(), nn.Linear(5, 2)), "1", 5),
    ],
)
def test_own_model_is_one_line(monkeypatch, builder, head, width):
    monkeypatch.setitem(BUILDERS, "mine/one", builder)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    one, same = (Backbone("mine/one", "none", "half", 32, "float32", seed=3) for _ in range(2))
    assert (one.head, one.width) == (head, width)
    assert one.features(images).shape == (2, width)
    assert torch.equal(one.features(images), same.features(images))
    assert one.key == same.key


def test_weights_that_a_builder_brings_are_part_of_the_key(monkeypatch):
    body = nn.Conv2d(3, 4, 8, 8)
    model = nn.Sequential(body, nn.Flatten())
    monkeypatch.setitem(BUILDERS, "mine", lambda: model)
    before = Backbone("mine", "none", "half", 32, "float32").key
    nn.init.zeros_(body.weight)
    assert Backbone("mine", "none", "half", 32, "float32").key != before


def test_builder_may_return_the_same_model_each_time(tmp_path, monkeypatch):
    model = nn.Sequential(OwnModel(), nn.Linear(5, 2))
    model(torch.zeros(1, 3, 32, 32))  # shapes its lazy layers
    monkeypatch.setitem(BUILDERS, "mine", lambda: model)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for weights in ("none", str(tmp_path / "mine.pth"), "none"):
        backbone = Backbone("mine", weights, "half", 32, "float32")
        backbone.check()
        assert (backbone.head, backbone.width) == ("1", 5)
        torch.testing.assert_close(backbone.features(images), model[0](images / 127.5 - 1))
    assert isinstance(model[1], nn.Linear)


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (lambda: nn.Conv2d(3, 4, 3), r"it gives torch.Size\(\[1, 4, 30, 30\]\) for an image"),
        (lambda: nn.Linear(7, 2), "RuntimeError: .*mat1 and mat2 shapes cannot be multiplied"),
        (lambda width: nn.Flatten(), "missing 1 required positional argument: 'width'"),
    ],
)
def test_own_model_that_gives_no_features_is_refused(monkeypatch, builder, reason):
    monkeypatch.setitem(BUILDERS, "mine", builder)
    with pytest.raises(
        ValueError,
        match=f"model.name = 'mine' cannot be built and run with image-size = 32.*{reason}",
    ):
        Backbone("mine", "none", "half", 32)


def test_batch_norm_is_frozen():
    backbone = Backbone("resnet18", "none", "half", 32, "float32")
    before = {k: v.clone() for k, v in backbone.module.state_dict().items()}
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    together = backbone.features(images)
    torch.testing.assert_close(together[:1], backbone.features(images[:1]))
    assert all(torch.equal(before[k], v) for k, v in backbone.module.state_dict().items())


class Singular(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(images).flatten(1)


def test_precision_that_a_model_cannot_compute_in_is_named(monkeypatch):
    monkeypatch.setitem(BUILDERS, "mine", Singular)
    images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    assert Backbone("mine", "none", "half", 32, "float32").features(images).shape == (1, 96)
    with pytest.raises(ValueError, match=r"precision = 'bfloat16': mine cannot .*'float32'"):
        Backbone("mine", "none", "half", 32, "bfloat16").features(images)


def test_transform_is_the_published_one():
    backbone = Backbone("vit_b_16", "IMAGENET1K_V1", "imagenet", 224)
    image = random_image(300, 400)
    expected = models.ViT_B_16_Weights.IMAGENET1K_V1.transforms()(image)
    seen = []
    backbone.module = lambda batch: seen.append(batch)  # the model's input
    backbone.precision = "float32"
    backbone.features(backbone.central_crop(image)[None])
    torch.testing.assert_close(seen[0][0], expected)


def test_random_weights_repeat_and_differ_by_seed():
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    one, same, other = (small(seed=s).features(images) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)


@pytest.mark.parametrize("name", ["vit_tiny", "resnet18"])
def test_bfloat16_gives_nearly_the_same_features(name):
    images = torch.stack([small().central_crop(random_image(40, 50))] * 2)
    backbones = (Backbone(name, "none", "half", 32, p, 1) for p in ("float32", "bfloat16"))
    exact, fast = (backbone.features(images).float() for backbone in backbones)
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


IN_A_FILE = {
    "plain": lambda state: state,
    "lightning": lambda state: {
        "epoch": 3,
        "state_dict": {f"model.{k}": v for k, v in state.items()},
    },
    "parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("kind", IN_A_FILE)
@pytest.mark.parametrize("name", ["vit_tiny", "resnet18"])
def test_own_file_is_used_and_its_head_left_out(tmp_path, monkeypatch, name, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone = Backbone(name, "none", "half", 32, "float32", seed=1)
    head = {f"{backbone.head}.weight": torch.zeros(200, backbone.width)}
    state = IN_A_FILE[kind](backbone.module.state_dict() | head)
    torch.save(state, tmp_path / "my [own] file.pth")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    loaded = Backbone(name, "~/my [own] file.pth", "half", 32, "float32", seed=99)
    loaded.check()
    assert torch.equal(loaded.features(images), backbone.features(images))


def test_safetensors_file_is_used(tmp_path):
    backbone = Backbone("resnet18", "none", "half", 32, "float32", seed=1)
    path = tmp_path / "model.safetensors"
    head = {"fc.weight": torch.zeros(200, 512), "fc.bias": torch.zeros(200)}
    safetensors.torch.save_file(backbone.module.state_dict() | head, path)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    loaded = Backbone("resnet18", str(path), "half", 32, "float32", seed=99)
    assert torch.equal(loaded.features(images), backbone.features(images))
    with pytest.raises(ValueError, match=r'does not fit model.name: Missing key.*"class_token"'):
        small(str(path)).check()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"safetensors': not a state dict that can be read safely"):
        loaded.check()


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"student": {}, "teacher": {}}, "it holds student, teacher"),
        ([torch.zeros(1)], "no attribute 'get'"),
        ({"weight": torch.zeros(1)}, "does not fit"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path, content, held):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=rf"model.weights = '.*file.pth'.*{held}"):
        small(str(tmp_path / "file.pth")).check()


def test_file_that_does_not_fit_names_the_keys(tmp_path):
    state = dict(small(image_size=64).module.state_dict())
    state["extra"] = state.pop("class_token")
    torch.save(state, tmp_path / "misfit.pth")
    with pytest.raises(ValueError, match="does not fit") as error:
        _ = small(str(tmp_path / "misfit.pth")).module
    assert 'Unexpected key(s) in state_dict: "extra"' in str(error.value)
    assert 'Missing key(s) in state_dict: "class_token"' in str(error.value)
    assert "size mismatch for encoder.pos_embedding" in str(error.value)
    assert "torch.Size([1, 17, 192]) from checkpoint" in str(error.value)
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
    with pytest.raises(ValueError, match=r"model\.name = 'resnet-18': .*; near it: resnet18"):
        Backbone("resnet-18", "none", "imagenet", 224)
    with pytest.raises(ValueError, match=r"IMAGENET1K_SWAG_LINEAR_V1, .*, none"):
        _ = Backbone("vit_b_16", "IMAGENET2", "imagenet", 224).file
    with pytest.raises(ValueError, match=r"image-size = 224: .* needs 384"):
        Backbone("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", "imagenet", 224)
    with pytest.raises(ValueError, match=r"model\.normalization = 'half'"):
        Backbone("vit_b_16", "IMAGENET1K_V1", "half", 224)
    with pytest.raises(ValueError, match=r"model\.normalization = 'imagenet': .* with 'half'"):
        Backbone("efficientnet_v2_l", "DEFAULT", "imagenet", 480)
    with pytest.raises(ValueError, match=r"image-size = 50: .*indivisible by patch size"):
        small(image_size=50)


@pytest.mark.parametrize("name", ["vit_b_32", "resnet18", "densenet121", "mnasnet0_5", "googlenet"])
def test_published_weights_come_from_torch_hubs_folder(tmp_path, monkeypatch, name):
    """A file of the published name and kind is loaded and transformed as by torchvision."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    weights = models.get_model_weights(name).IMAGENET1K_V1
    whole = models.get_model(name, **({"init_weights": True} if name == "googlenet" else {}))
    nn.init.normal_(whole.get_submodule(Backbone(name, "none", "imagenet", 224).head).weight)
    state = whole.state_dict()
    if name == "densenet121":  # the names of PyTorch 0.3
        state = {re.sub(r"(denselayer\d+\.\w+)([12]\.)", r"\1.\2", k): v for k, v in state.items()}
    if name != "mnasnet0_5":  # it had no counters either
        state = {k: v for k, v in state.items() if "num_batches_tracked" not in k}
    torch.save(state, folder / weights.url.rpartition("/")[2])

    backbone = Backbone(name, "IMAGENET1K_V1", "imagenet", 224, "float32")
    backbone.check()
    assert backbone.file.parent == folder
    whole = models.get_model(name, weights=weights).eval()
    image = random_image(300, 400)
    with torch.inference_mode():
        expected = whole(weights.transforms()(image)[None])
        features = backbone.features(backbone.central_crop(image)[None])
        given = whole.get_submodule(backbone.head)(features)
    spread = expected.std()
    torch.testing.assert_close(given / spread, expected / spread, rtol=1e-3, atol=1e-3)


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
