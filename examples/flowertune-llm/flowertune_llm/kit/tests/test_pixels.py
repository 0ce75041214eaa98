# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Images of every mode keep their shape, or are refused by name."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from ..pixels import UnreadableImage, open_image, to_mode

GREY = np.array([[0, 30, 60], [90, 120, 255]], np.uint8)
SQUARE = np.zeros((6, 6), np.uint8)
SQUARE[1:4, 2:5] = 255
SIXTEEN = GREY.astype(np.uint16) * 257


def saved(image: Image.Image, kind: str = "PNG", **how: object) -> dict[str, object]:
    """Return an image as a cell of a dataset."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return {"bytes": buffer.getvalue(), "path": None}


def grey(image: Image.Image, mode: str = "L") -> np.ndarray:
    return np.asarray(to_mode(image, mode)).reshape(*image.size[::-1], -1)[..., 0].astype(int)


def lab(image: Image.Image) -> Image.Image:
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    return ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(image.convert("RGB"))


OPAQUE = {
    "L": Image.fromarray(GREY),
    "LA": Image.fromarray(GREY).convert("LA"),
    "La": Image.fromarray(GREY).convert("LA").convert("La"),
    "P": Image.fromarray(GREY).convert("P"),
    "PA": Image.fromarray(GREY).convert("P").convert("PA"),
    "RGB": Image.fromarray(GREY).convert("RGB"),
    "RGBX": Image.fromarray(GREY).convert("RGBX"),
    "RGBA": Image.fromarray(GREY).convert("RGBA"),
    "RGBa": Image.fromarray(GREY).convert("RGBA").convert("RGBa"),
    "CMYK": Image.fromarray(GREY).convert("CMYK"),
    "YCbCr": Image.fromarray(GREY).convert("YCbCr"),
    "HSV": Image.fromarray(GREY).convert("RGB").convert("HSV"),
    "LAB": lab(Image.fromarray(GREY)),
    "I;16": Image.fromarray(SIXTEEN),
    "I;16L": Image.frombytes("I;16L", (3, 2), SIXTEEN.astype("<u2").tobytes()),
    "I;16B": Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes()),
    "I;16N": Image.frombytes("I;16N", (3, 2), SIXTEEN.astype("=u2").tobytes()),
}


@pytest.mark.parametrize("to", ["L", "RGB"])
@pytest.mark.parametrize("mode", OPAQUE)
def test_a_mode_without_transparency_keeps_its_values(mode, to):
    assert OPAQUE[mode].mode == mode
    assert np.abs(grey(OPAQUE[mode], to) - GREY).max() <= (3 if mode in ("LAB", "P", "PA") else 1)


def test_two_levels_are_black_and_white():
    assert (grey(Image.fromarray(SQUARE).convert("1")) == SQUARE).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 257, 4095, 32768, 65535]], np.uint16)
    assert grey(Image.fromarray(values)).tolist() == [[0, 1, 16, 128, 255]]
    file = b"P5 2 1 65535\n" + values[:, 3:].astype(">u2").tobytes()  # Pillow's mode is I
    assert np.asarray(open_image({"bytes": file, "path": None}, 0, "L")).tolist() == [[128, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_32_bits_are_refused_with_the_way_out(kind):
    image = Image.fromarray(GREY.astype(kind))
    with pytest.raises(UnreadableImage, match=rf"row 7: mode {image.mode}, 32 bits .*astype"):
        open_image(saved(image, "TIFF"), 7, "RGB")


def transparent(mode: str, ink: int) -> Image.Image:
    """Return a square on a transparent background, read from a PNG file."""
    image = Image.new("L", (6, 6), ink).convert("RGBA")
    image.putalpha(Image.fromarray(SQUARE))
    flat = np.where(SQUARE > 0, ink, 255 - ink).astype(np.uint8)
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    if mode in ("RGBa", "La"):
        return image.convert(mode.replace("a", "A")).convert(mode)
    if mode == "PA":
        made = Image.fromarray(np.full((6, 6), ink, np.uint8)).convert("PA")
        made.putalpha(Image.fromarray(SQUARE))
        return made
    if mode == "P":  # one colour of the palette is transparent
        made = Image.fromarray((SQUARE > 0).astype(np.uint8), "L")
        made.putpalette([ink, ink, ink] * 2)
        cell = saved(made, transparency=0)
    elif mode == "1":
        cell = saved(Image.fromarray(flat).convert("1"), transparency=1 if ink == 0 else 0)
    elif mode == "I;16":
        cell = saved(Image.fromarray(flat.astype(np.uint16) * 257), transparency=(255 - ink) * 257)
    else:
        hidden = 255 - ink
        cell = saved(
            Image.fromarray(flat).convert(mode),
            transparency=hidden if mode == "L" else (hidden,) * 3,
        )
    return Image.open(io.BytesIO(cell["bytes"]))


@pytest.mark.parametrize("to", ["L", "RGB"])
@pytest.mark.parametrize("ink", [0, 255])
@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "P", "PA", "1", "L", "RGB", "I;16"])
def test_a_shape_in_what_is_transparent_can_be_seen(mode, ink, to):
    image = transparent(mode, ink)
    assert image.mode == mode
    found = grey(image, to)
    assert (found == np.where(SQUARE > 0, ink, 255 - ink)).all()


def test_half_transparent_ink_is_half_way_to_the_background():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    assert grey(image).tolist() == [[0, 127]]


def test_files_are_turned_as_their_exif_orientation_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = open_image(saved(Image.fromarray(GREY), exif=exif), 0, "L")
    assert np.asarray(turned).tolist() == np.rot90(GREY, -1).tolist()


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (None, r"row 3: no image \(None\)"),
        ({"bytes": None, "path": None}, r"row 3: An image should have"),
        ({"bytes": None, "path": "/nowhere/a.png"}, r"row 3 \(a.png\): .*No such file"),
        ({"bytes": b"", "path": "/x/a.png"}, r"row 3 \(a.png\): cannot identify image file$"),
        ({"bytes": saved(OPAQUE["RGB"])["bytes"][:50], "path": None}, "row 3: .*truncated"),
    ],
)
def test_what_cannot_be_read_is_named(cell, problem):
    with pytest.raises(UnreadableImage, match=problem):
        open_image(cell, 3, "RGB")
