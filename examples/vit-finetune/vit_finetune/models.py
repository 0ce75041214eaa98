"""The frozen backbone: a Vision Transformer of torchvision, its weights and its transform."""

import hashlib
import json
import zipfile
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.models import VisionTransformer
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as pixels

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
BUILDERS = {name: partial(models.get_model, name) for name in models.list_models(include="vit_*")}
# ViT-Ti/16 of Touvron et al. 2021, https://arxiv.org/abs/2012.12877
BUILDERS["vit_tiny"] = partial(
    VisionTransformer, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
)


def device() -> torch.device:
    """Return the GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_precision() -> str:
    """Return "bfloat16" where the hardware computes in it faster than in float32."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older releases of PyTorch do not tell; float32 is right everywhere.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


class Backbone:
    """A frozen Vision Transformer without its head, loaded when first used.

    Args:
        name: a ViT of torchvision, or "vit_tiny".
        weights: a name of torchvision's, a state-dict file, or "none" for random ones.
        normalization: a key of NORMALIZATIONS.
        image_size: side of the square that the model sees, in pixels.
        precision: "float32", "bfloat16" or "auto".
        seed: of random weights.

    Raises:
        ValueError: names the run-config key that is wrong, and what is allowed.
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
            raise ValueError(f"model.name = '{name}': choose one of {', '.join(sorted(BUILDERS))}")
        self.name, self.weights, self.seed = name, weights, seed
        self.image_size, self.resize = image_size, round(image_size * 256 / 224)
        self.interpolation = InterpolationMode.BILINEAR
        self.mean, self.std = NORMALIZATIONS[normalization]
        self.precision = best_precision() if precision == "auto" else precision
        if self.published:
            self.adopt_transform(normalization)
        with torch.device("meta"):  # shapes only
            self.skeleton = self.build()
        self.width: int = self.skeleton.hidden_dim

    @property
    def published(self) -> models.WeightsEnum | None:
        """Return torchvision's published weights, None if they are not from there."""
        if self.name == "vit_tiny":
            return None
        return next(
            (w for w in models.get_model_weights(self.name) if w.name == self.weights), None
        )

    def adopt_transform(self, normalization: str) -> None:
        """Take size, interpolation and normalisation from the published weights."""
        preset = self.published.transforms()
        [size], [self.resize] = preset.crop_size, preset.resize_size
        if size != self.image_size:
            raise ValueError(
                f"image-size = {self.image_size}: model.weights = '{self.weights}' needs {size}"
            )
        if (tuple(preset.mean), tuple(preset.std)) != NORMALIZATIONS[normalization]:
            raise ValueError(
                f"model.normalization = '{normalization}': model.weights = '{self.weights}' was "
                "trained with 'imagenet'"
            )
        self.interpolation = preset.interpolation

    def build(self) -> VisionTransformer:
        try:
            model = BUILDERS[self.name](image_size=self.image_size)
        except AssertionError as error:
            raise ValueError(
                f"image-size = {self.image_size}: not a multiple of the patch size of "
                f"{self.name} ({error})"
            ) from None
        model.heads = nn.Identity()
        return model

    @cached_property
    def file(self) -> Path | None:
        """The state-dict file, downloaded into torch hub's folder if need be; None for "none"."""
        if self.weights == "none":
            return None
        if self.published:
            return download(self.published)
        path = Path(self.weights).expanduser()
        if not path.is_file():
            names = [] if self.name == "vit_tiny" else models.get_model_weights(self.name)
            allowed = ", ".join([*(weights.name for weights in names), "none"])
            raise ValueError(
                f"model.weights = '{self.weights}': no such file; for {self.name} it may also be "
                f"one of {allowed}"
            )
        return path

    def check(self) -> None:
        """Raise ValueError if the weights do not fit; nothing of them is read but their names."""
        if self.file is not None:
            read_weights(self.file, self.skeleton)

    @cached_property
    def key(self) -> str:
        """All that a feature depends on but the image: weights, transform, precision (JSON)."""
        if self.file is None:
            weights = f"random, seed {self.seed}"
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
            }
        )

    @cached_property
    def module(self) -> VisionTransformer:
        """The model itself, frozen, in its precision, on the device."""
        if self.file is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = self.build()
        else:
            model = self.skeleton
            model.load_state_dict(read_weights(self.file, model), assign=True)
        model.requires_grad_(False)
        return model.eval().to(device(), getattr(torch, self.precision))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, S, S) to class tokens (N, width), in the backbone's precision."""
        batch = images.to(device(), torch.float32, non_blocking=True) / 255
        mean, std = (torch.tensor(v, device=device()).view(3, 1, 1) for v in (self.mean, self.std))
        return self.module(((batch - mean) / std).to(getattr(torch, self.precision)))

    def central_crop(self, image: Image.Image) -> Tensor:
        """Resize the shorter side and crop the middle: uint8 (3, S, S)."""
        image = pixels.resize(image, [self.resize], self.interpolation)
        return pixels.pil_to_tensor(pixels.center_crop(image, [self.image_size]))

    def random_crop(self, image: Image.Image, min_area: float) -> Tensor:
        """Crop a random part and resize it: uint8 (3, S, S); `min_area` 1 is the central crop."""
        if min_area == 1:
            return self.central_crop(image)
        part = RandomResizedCrop.get_params(image, (min_area, 1.0), (3 / 4, 4 / 3))
        size = [self.image_size, self.image_size]
        return pixels.pil_to_tensor(pixels.resized_crop(image, *part, size, self.interpolation))


def download(weights: models.WeightsEnum) -> Path:
    """Return the published file in torch hub's folder, after fetching it the first time."""
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


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read a state dict that fits the model; the file's own head, if it has one, is left out.

    Raises:
        ValueError: the file is not a state dict, or names the keys that differ.
    """
    try:
        # A mapped file is read once, on its way into the precision wanted.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # what a damaged or foreign file raises depends on its first bytes
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model.weights = '{path}': not a state dict that can be read safely; save one with "
            f"torch.save(model.state_dict(), path) ({reason})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"model.weights = '{path}': not a state dict (names and tensors only)")
    state = {name: value for name, value in state.items() if not name.startswith("heads.")}
    wanted = model.state_dict()
    differences = [f"lacks {name}" for name in wanted.keys() - state.keys()]
    differences += [f"has unknown {name}" for name in state.keys() - wanted.keys()]
    differences += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:5])
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"model.weights = '{path}' does not fit model.name: {shown}{more}. Look at "
            "model.name and image-size"
        )
    return state
