"""The frozen backbone: a model without its head, its weights and its transform."""

import hashlib
import inspect
import json
import re
import sys
import textwrap
import zipfile
from collections.abc import Iterable
from copy import deepcopy
from difflib import get_close_matches
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision import models
from torchvision.models import VisionTransformer
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as pixels

from vit_finetune.kit.precision import fast_dtype

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
PUBLISHED = models.list_models(module=models)
# Functions that build a classifier or a feature extractor; some take an `image_size`.
BUILDERS: dict[str, Any] = {name: partial(models.get_model, name) for name in PUBLISHED}
for name in models.list_models(include="vit_*"):
    BUILDERS[name] = lambda image_size, name=name: models.get_model(name, image_size=image_size)
for name in ("googlenet", "inception_v3"):  # trained on pixels from -1 to 1
    BUILDERS[name] = partial(models.get_model, name, transform_input=True, init_weights=True)
BUILDERS["maxvit_t"] = lambda image_size: models.maxvit_t(input_size=(image_size, image_size))
# ViT-Ti/16 of Touvron et al. 2021, https://arxiv.org/abs/2012.12877
BUILDERS["vit_tiny"] = partial(
    VisionTransformer, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
)

# Names of the state dict in a checkpoint, and old names of DenseNet's layers.
CHECKPOINTS = ("model", "state_dict", "model_state_dict")
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")

# Files of this package that do not affect features; any other, even a new one, may.
NO_PART = ("client_app.py", "config.py", "extraction.py", "server_app.py", "task.py")


def device() -> torch.device:
    """Return the GPU if this process may use one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Backbone:
    """A frozen model without its head; weights are loaded at the first use.

    The head is the linear layer that makes the model's output, and the features are its input. If
    the output comes from another kind of layer, it is the features. `head` is the head's name,
    empty if there is none.

    Args:
        name: a key of BUILDERS.
        weights: a name of torchvision's, a state-dict file, or "none" for the builder's own.
        normalization: a key of NORMALIZATIONS.
        image_size: side of the square that the model sees, in pixels.
        precision: "float32", "bfloat16" or "auto".
        seed: of random weights.

    Raises:
        ValueError: a setting is wrong; the text names the key and what is allowed.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        normalization: str,
        image_size: int,
        precision: str = "auto",
        seed: int = 0,
    ) -> None:
        if name not in BUILDERS:
            near = ", ".join(get_close_matches(name, BUILDERS, 5, 0))
            raise ValueError(
                f"model.name = '{name}': not in BUILDERS of models.py; near it: {near}"
            )
        self.name, self.weights, self.seed = name, weights, seed
        self.image_size, self.resize = image_size, round(image_size * 256 / 224)
        self.interpolation = InterpolationMode.BILINEAR
        self.normalization = normalization
        self.mean, self.std = NORMALIZATIONS[normalization]
        self.precision = fast_dtype(device().type) if precision == "auto" else precision
        if self.published:
            self.adopt_transform()
        try:
            try:
                self.skeleton, self.head, self.width = self.build("meta")  # shapes only
            except Exception:  # some models compute with values while they are built or run
                self.skeleton, self.head, self.width = self.build("cpu")
                self.skeleton.to("meta")
        except Exception as error:  # builders and models raise all kinds
            raise ValueError(
                f"model.name = '{name}' cannot be built and run with image-size = {image_size}: "
                f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
            ) from error

    def __str__(self) -> str:
        features = f"{self.width} features{f' before {self.head}' if self.head else ''}"
        way = f"{self.precision}, normalization '{self.normalization}'"
        return f"{self.name}, {features}, weights {self.weights}, {way}"

    @property
    def names(self) -> dict[str, models.WeightsEnum]:
        """Return torchvision's published weights for this model, by name."""
        known = self.name in PUBLISHED
        return dict(models.get_model_weights(self.name).__members__) if known else {}

    @property
    def published(self) -> models.WeightsEnum | None:
        """Return torchvision's published weights; None for others."""
        return self.names.get(self.weights)

    def adopt_transform(self) -> None:
        """Take size, interpolation and normalisation from the published weights."""
        preset = self.published.transforms()
        [size], [self.resize] = preset.crop_size, preset.resize_size
        if size != self.image_size:
            raise ValueError(
                f"image-size = {self.image_size}: model.weights = '{self.weights}' needs {size}"
            )
        trained = (tuple(preset.mean), tuple(preset.std))
        if trained != (self.mean, self.std):
            fits = [name for name, values in NORMALIZATIONS.items() if values == trained]
            raise ValueError(
                f"model.normalization = '{self.normalization}': model.weights = '{self.weights}' "
                f"was trained with '{fits[0] if fits else trained}'"
            )
        self.interpolation = preset.interpolation

    def build(self, where: str) -> tuple[nn.Module, str, int]:
        """Return the model without its head, the head's name, and the number of features.

        The model runs once, on an empty image: this shows its head, and shapes lazy layers.
        """
        builder, last = BUILDERS[self.name], {}
        sized = "image_size" in inspect.signature(builder).parameters
        with torch.device(where), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # A copy: a builder may return the same model each time.
            model = deepcopy(builder(image_size=self.image_size) if sized else builder())
            hooks = [
                layer.register_forward_hook(lambda m, _, out, n=name: last.update(at=(n, m, out)))
                for name, layer in model.named_modules()
                if not list(layer.children())
            ]
            output = model.eval()(torch.zeros(1, 3, self.image_size, self.image_size))
        for hook in hooks:
            hook.remove()
        if not (isinstance(output, Tensor) and output.ndim == 2):
            given = getattr(output, "shape", type(output))
            raise TypeError(f"it gives {given} for an image, not (1, features)")
        name, layer, result = last.get("at", ("", None, None))
        if not (isinstance(layer, nn.Linear) and result is output):
            return model, "", output.shape[1]
        model.set_submodule(name, nn.Identity())
        return model, name, layer.in_features

    @cached_property
    def file(self) -> Path | None:
        """The state-dict file; published ones are downloaded once; None for "none"."""
        if self.weights == "none":
            return None
        if self.published:
            return download(self.published)
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise ValueError(
                f"model.weights = '{self.weights}': no such file; for {self.name} it may also be "
                f"one of {', '.join([*self.names, 'none'])}"
            )
        return path

    def check(self) -> None:
        """Raise ValueError if the weights do not fit; only their names are read."""
        if self.file is not None:
            load_weights(self.file, self.skeleton, self.head)

    @cached_property
    def key(self) -> str:
        """All that a feature depends on beside the image: code, weights, transform, precision."""
        if self.file is None:  # a builder's weights may come from anywhere
            sha = hashlib.sha256()
            for value in self.module.state_dict().values():
                sha.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
            weights = f"of the builder, {sha.hexdigest()}"
        else:
            with self.file.open("rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        return json.dumps(
            {
                "model": self.name,
                "weights": weights,
                "transform": [self.resize, self.image_size, self.interpolation.value],
                "normalization": [self.mean, self.std],
                "precision": self.precision,
                "code": self.code,
            }
        )

    @cached_property
    def code(self) -> str:
        """Digest of the code that features depend on: this package's, the layers', libraries'."""
        package = Path(__file__).parent
        left_out = {*package.glob("kit/**/*.py"), *(package / name for name in NO_PART)}
        kit = {package / "kit" / name for name in ("images.py", "pixels.py")}
        files = {*package.rglob("*.py")} - left_out | kit
        for layer in self.skeleton.modules():
            module = sys.modules.get(type(layer).__module__)
            files |= {Path(path) for path in [getattr(module, "__file__", None)] if path}
        sha = hashlib.sha256(" ".join(map(version, ("torch", "torchvision", "pillow"))).encode())
        for content in sorted(path.read_bytes() for path in files):
            sha.update(content)
        return sha.hexdigest()

    @cached_property
    def module(self) -> nn.Module:
        """The model itself, frozen, in its precision, on the device."""
        model, _, _ = self.build("cpu")
        if self.file is not None:
            load_weights(self.file, model, self.head)
        dtype = getattr(torch, self.precision)
        model.requires_grad_(False).to(device(), dtype)
        if dtype != torch.float32:
            empty = torch.zeros(1, 3, self.image_size, self.image_size, dtype=dtype)
            try:
                model(empty.to(device()))
            except RuntimeError as error:
                raise ValueError(
                    f"precision = '{self.precision}': {self.name} cannot compute in it here "
                    f"({textwrap.shorten(str(error), 300)}); set precision = 'float32'"
                ) from error
        return model

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, S, S) to features (N, width), in the backbone's precision."""
        batch = images.to(device(), torch.float32, non_blocking=True) / 255
        mean, std = (torch.tensor(v, device=device()).view(3, 1, 1) for v in (self.mean, self.std))
        return self.module(((batch - mean) / std).to(getattr(torch, self.precision)))

    def central_crop(self, image: Image.Image) -> Tensor:
        """Resize the shorter side and crop the middle: uint8 (3, S, S)."""
        image = pixels.resize(image, [self.resize], self.interpolation)
        return pixels.pil_to_tensor(pixels.center_crop(image, [self.image_size]))

    def random_crop(self, image: Image.Image, min_area: float) -> Tensor:
        """Crop and resize a random part, with `min_area` 1 the central one: uint8 (3, S, S)."""
        if min_area == 1:
            return self.central_crop(image)
        part = RandomResizedCrop.get_params(image, (min_area, 1.0), (3 / 4, 4 / 3))
        size = [self.image_size, self.image_size]
        return pixels.pil_to_tensor(pixels.resized_crop(image, *part, size, self.interpolation))


def download(weights: models.WeightsEnum) -> Path:
    """Return the published file in torch hub's folder; fetch it the first time."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not path.is_file():
        try:
            weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"model.weights = '{weights.name}': cannot download {weights.url} into "
                f"{path.parent} ({error}). Without a network use --run-config offline.toml, put "
                "the file there yourself, or set model.weights to a local state-dict file"
            ) from None
    return path


def load_weights(path: Path, model: nn.Module, head: str) -> None:
    """Load a file's weights into a model, without the head that the file may have.

    Raises:
        ValueError: the file is no state dict, or its names differ; the text lists them.
    """
    state = read_weights(path)
    parts = first_parts([*model.state_dict(), f"{head}."])
    # A prefix of all names comes from a wrapper: "module.", "_orig_mod.", "model.".
    while len(wrapper := first_parts(state)) == 1 and not wrapper & {*parts, *state}:
        consume_prefix_in_state_dict_if_present(state, wrapper.pop())
    for name in list(state):
        value = state.pop(name)
        if not (head and name.startswith(f"{head}.")):
            state[DENSENET.sub(r"\1", name)] = value
    try:
        model.load_state_dict(state, assign=True)
    except (RuntimeError, ValueError) as error:
        problems = str(error).split("\n\t")[1:] or [str(error)]
        shown = "; ".join(textwrap.shorten(problem, 200) for problem in problems[:5])
        raise ValueError(
            f"model.weights = '{path}' does not fit model.name: {shown}. Look at model.name and "
            "image-size; weights of another library's model need its builder in BUILDERS"
        ) from None


def first_parts(names: Iterable[str]) -> set[str]:
    """Return each name's part up to and including the first dot."""
    return {"".join(name.partition(".")[:2]) for name in names}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, PyTorch's or in safetensors format, alone or in a checkpoint."""
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:  # mapped: read once, while it is converted
            mapped = zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        for name in CHECKPOINTS:
            state = state[name] if isinstance(state.get(name), dict) else state
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError(f"it holds {textwrap.shorten(', '.join(map(str, state)), 200)}")
    except Exception as error:  # the kind of error depends on the file's first bytes
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(
            f"model.weights = '{path}': not a state dict that can be read safely, alone or as "
            f"{' or '.join(CHECKPOINTS)} of a checkpoint; save one with "
            f"torch.save(model.state_dict(), path) ({reason})"
        ) from None
    return state
