"""The feature cache: computed once, shared, whole or rebuilt; bad images and folders are named."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from vit_finetune import dataset, task
from vit_finetune.features import CachedFeatures, FeatureCache, LiveFeatures, Reading
from vit_finetune.kit import testing
from vit_finetune.models import BUILDERS, Backbone

BACKBONE = Backbone("vit_tiny", "none", "half", 32, "float32", seed=0)


def images(partition_id: int = 0, seed: int = 42, partitioning: str = "iid") -> dataset.Images:
    return dataset.load_partition("digits", partition_id, 20, partitioning, 0.3, 8, seed)


def cache(folder: Path) -> FeatureCache:
    return FeatureCache(str(folder), BACKBONE, 32)


def test_features_are_computed_once(tmp_path):
    first, reading = cache(tmp_path).load(images())
    assert reading.computed == len(images())
    again, reading = cache(tmp_path).load(images())
    assert reading.computed == 0
    assert torch.equal(first.features, again.features)
    assert torch.equal(again.labels, images().labels)
    crops = torch.stack([BACKBONE.central_crop(images().decode(row)) for row in range(5)])
    torch.testing.assert_close(again.features[:5], BACKBONE.features(crops))


def test_another_partitioning_computes_nothing_twice(tmp_path):
    for i in range(20):
        cache(tmp_path).load(images(i))
    for i, partitioning in ((0, "iid"), (3, "dirichlet")):
        other = images(i, seed=7, partitioning=partitioning)
        source, reading = cache(tmp_path).load(other)
        assert reading.computed == 0
        crop = BACKBONE.central_crop(other.decode(0))
        torch.testing.assert_close(source.features[:1], BACKBONE.features(crop[None]))


def test_another_backbone_has_other_features(tmp_path):
    cache(tmp_path).load(images())
    other = Backbone("vit_tiny", "none", "half", 32, "float32", seed=1)
    _, reading = FeatureCache(str(tmp_path), other, 32).load(images())
    assert reading.computed == len(images())


def edited(folder: Path, files: dict[str, str]) -> Path:
    """Return a copy of the app in which each of these files ends with more lines."""
    app = testing.copy(folder)
    for name, lines in files.items():
        with (app / "vit_finetune" / name).open("a") as file:
            file.write(f"\n{lines}\n")
    return app


@pytest.fixture
def load_in(tmp_path, monkeypatch) -> Iterator[Callable[[Path], tuple[CachedFeatures, Reading]]]:
    """Load the same images' features from the same cache, as an app in a given folder does."""

    def load(app: Path) -> tuple[CachedFeatures, Reading]:
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.split(".")[0] == "vit_finetune"]:
                patch.delitem(sys.modules, name)
            patch.syspath_prepend(app)
            from vit_finetune import dataset, features, models

            assert Path(models.__file__).is_relative_to(app)
            partition = dataset.load_partition("digits", 0, 20, "iid", 0.3, 8, 42)
            backbone = models.Backbone("vit_tiny", "none", "half", 32, "float32", seed=0)
            return features.FeatureCache(str(tmp_path / "cache"), backbone, 32).load(partition)

    yield load
    sys.modules.pop("vit_finetune.mine", None)


FLIP = "lambda self, *image: before(self, *image).flip(2)"
EDITS = {
    "another builder": {
        "models.py": "BUILDERS['vit_tiny'] = partial(BUILDERS['vit_tiny'], num_layers=2)"
    },
    "another crop": {"models.py": f"before, Backbone.central_crop = Backbone.central_crop, {FLIP}"},
    "another normalization": {"models.py": "NORMALIZATIONS['half'] = ((0.4,) * 3, (0.3,) * 3)"},
    "other pixels": {
        "dataset.py": "from PIL import ImageOps\nbefore = Images.decode\n"
        "Images.decode = lambda self, row: ImageOps.invert(before(self, row))"
    },
    "a new file": {
        "mine.py": "def mirrored(crop):\n    return crop.flip(2)",
        "models.py": "from vit_finetune.mine import mirrored\nbefore = Backbone.central_crop\n"
        "Backbone.central_crop = lambda self, image: mirrored(before(self, image))",
    },
}


@pytest.mark.parametrize("edit", EDITS)
def test_features_of_other_code_are_never_used(load_in, tmp_path, edit):
    first, _ = load_in(testing.APP)
    app = edited(tmp_path, EDITS[edit])
    other, reading = load_in(app)
    assert reading.computed == len(other.labels) == len(first.labels)
    assert (other.features - first.features).abs().mean() > 0.01
    again, reading = load_in(app)
    assert reading.computed == 0
    assert torch.equal(again.features, other.features)
    assert load_in(testing.APP)[1].computed == 0  # it still has its own


@pytest.mark.parametrize("file", ["models.py", "dataset.py", "features.py", "kit/images.py"])
def test_each_file_that_decides_features_counts(load_in, tmp_path, file):
    load_in(testing.APP)
    _, reading = load_in(edited(tmp_path, {file: "# something else"}))
    assert reading.computed == 72


def test_an_edited_head_or_server_computes_nothing_anew(load_in, tmp_path):
    load_in(testing.APP)
    files = ("task.py", "server_app.py", "client_app.py", "kit/loop.py")
    _, reading = load_in(edited(tmp_path, dict.fromkeys(files, "# something else")))
    assert reading.computed == 0


def test_code_of_layers_from_elsewhere_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    codes = set()
    for size in (1, 3):
        text = f"from torch import nn\nclass Own(nn.Flatten):\n    size = {size}\n"
        (tmp_path / "layers_of_mine.py").write_text(text)
        from layers_of_mine import Own

        monkeypatch.setitem(BUILDERS, "mine", Own)
        codes.add(Backbone("mine", "none", "half", 32).code)
    assert len(codes) == 2


@pytest.mark.parametrize("damage", ["cut short", "empty", "one bit"])
def test_damaged_file_is_rebuilt_and_never_used(tmp_path, damage):
    whole, _ = cache(tmp_path).load(images())
    expected = whole.features.clone()
    [path] = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-1000] ^= 1
    path.unlink()  # not overwritten: `whole` is mapped from the file
    path.write_bytes({"cut short": content[:-1000], "empty": b""}.get(damage, content))
    rebuilt, reading = cache(tmp_path).load(images())
    assert reading.computed == len(images())
    assert f"cache file {path} is damaged and was rebuilt" in reading.notes[0]
    assert torch.equal(rebuilt.features, expected)
    assert cache(tmp_path).load(images())[1].notes == []


PROCESS = """
import sys
from vit_finetune import dataset
from vit_finetune.features import FeatureCache
from vit_finetune.models import Backbone

folder, size = sys.argv[1], int(sys.argv[2])
images = dataset.to_images(dataset.load_split("digits", "test"))
backbone = Backbone("vit_tiny", "none", "half", size, "float32", seed=0)
print("ready", flush=True)
print(FeatureCache(folder, backbone, 8).load(images)[1].computed)
"""


def start(folder: Path, size: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(folder), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_one_computation(tmp_path):
    processes = [start(tmp_path, 32) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda process: process.communicate(timeout=600)[0], processes))
    assert sorted(int(text.split()[1]) for text in outputs) == [0, 360]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_killed_in_the_middle_leaves_no_file(tmp_path):
    process = start(tmp_path, 224)  # slow enough to be caught
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.lock")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[0] == ""  # it was still at work
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture
def folder_with_bad_image(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        for name in ("lily", "rose"):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                colour = (40 * i, 200 if name == "rose" else 20, 10)
                Image.new("RGB", (40, 50), colour).save(folder / split / name / f"{name}-{i}.png")
    (folder / "train" / "lily" / "lily-3.png").write_bytes(b"this is no picture")
    whole = (folder / "train" / "rose" / "rose-5.png").read_bytes()
    (folder / "train" / "rose" / "rose-5.png").write_bytes(whole[:60])
    return folder


def test_missing_files_and_empty_cells_are_skipped_too(folder_with_bad_image, tmp_path):
    data = dataset.load_split(str(folder_with_bad_image), "train")
    (folder_with_bad_image / "train" / "lily" / "lily-0.png").unlink()
    rows = [{"image": row["image"], "label": row["label"]} for row in data]
    rows[-2]["image"] = None  # the last is cut short anyway
    data = data.from_list(rows, features=data.features)
    source, reading = cache(tmp_path).load(dataset.to_images(data))
    assert (reading.skipped, len(source.labels)) == (4, 8)
    assert "(lily-0.png): [Errno 2] No such file" in reading.notes[0]
    assert "row 10: " in reading.notes[-2]


@pytest.mark.parametrize("feature_cache", [True, False])
def test_unreadable_images_are_skipped_counted_and_named(
    folder_with_bad_image, offline, feature_cache
):
    config = offline(dataset=str(folder_with_bad_image), feature_cache=feature_cache, image_size=32)
    for _ in range(2):  # computed, then from the cache
        task.load_partition.cache_clear()
        data = task.load_partition(config, 0, 1)
        assert data.reading.skipped == 2
        assert len(data.training.labels) + len(data.held_out.labels) == 10
        assert data.num_classes == 2
        notes = " ".join(data.reading.notes)
        assert "(lily-3.png): cannot identify image file" in notes
        assert "(rose-5.png): " in notes


def test_folder_without_permission_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"cache-dir = '.*file/cache'.*feature-cache=false"):
        cache(tmp_path / "file" / "cache").load(images())


def test_home_that_is_not_there_is_named():
    with pytest.raises(RuntimeError, match=r"cache-dir = '~nobody-here/cache'.*home directory.*"):
        cache(Path("~nobody-here/cache"))


@pytest.mark.parametrize("variable", ["xdg", ""])
def test_folder_of_the_users_cache_is_made(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / variable) if variable else "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert FeatureCache("", BACKBONE, 32).load(images())[1].computed == len(images())
    [path] = tmp_path.rglob("*.safetensors")
    assert path.is_relative_to(tmp_path / (variable or "home/.cache"))


def test_folder_without_room_is_named_and_left_clean(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # files of 10 kB at most
    try:
        with pytest.raises(
            RuntimeError, match=f"cache-dir = '{tmp_path}': features cannot be kept"
        ):
            cache(tmp_path).load(images())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}
    assert cache(tmp_path).load(images())[1].computed == len(images())


def test_more_room_than_there_is_is_refused_before_any_work(tmp_path):
    backbone = Backbone("vit_tiny", "none", "half", 32, "float32")
    backbone.width = 2**50
    with pytest.raises(RuntimeError, match=r"MiB needed, \d+ MiB free"):
        FeatureCache(str(tmp_path), backbone, 32).load(images())
    assert not list(tmp_path.rglob("*.lock"))


def test_cached_and_uncached_training_agree(tmp_path):
    """With the central crop both have the same inputs, and make the same head."""
    cached, _ = cache(tmp_path).load(images())
    live = LiveFeatures(images(), torch.arange(len(images())), BACKBONE, 1.0, 32)
    heads, losses = [], []
    for source in (cached, live):
        heads.append(task.Head(192, 10, task.statistics(task.moments(source))))
        losses.append(
            task.train(
                heads[-1],
                source,
                epochs=3,
                batch_size=16,
                learning_rate=20.0,
                momentum=0.9,
                label_smoothing=0.1,
                seed=5,
            )
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = (head.linear.weight for head in heads)
    assert one.abs().max() > 0.1
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert task.evaluate(heads[0], cached) == pytest.approx(task.evaluate(heads[1], live), rel=1e-3)


def test_random_crops_differ_from_epoch_to_epoch():
    live = LiveFeatures(images(), torch.arange(4), BACKBONE, 0.08, 32)
    rows = torch.arange(4)
    torch.manual_seed(0)
    one, other = (live.batch(rows, augment=True) for _ in range(2))
    assert not torch.allclose(one, other)
    assert torch.equal(live.batch(rows), live.batch(rows))
