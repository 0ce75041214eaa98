# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Pixels of image files, in 8-bit grey or RGB; modes that cannot be converted are refused."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

MODES = {1: "L", 3: "RGB"}  # Pillow's, by number of channels
READER = datasets.Image()  # reads a file, and applies its EXIF orientation
Cell = dict[str, Any] | None  # a cell of a column of images: "bytes" of a file, or its "path"


class UnreadableImage(ValueError):
    """An image that is missing, cut short, or in a mode without a known white."""


def open_image(cell: Cell, row: int, mode: str) -> Image.Image:
    """Return the image of a row, upright, in mode "L" or "RGB".

    Raises:
        UnreadableImage: names the row, the file if there is one, and the reason.
    """
    try:
        if cell is None:
            raise ValueError("no image (None)")
        return to_mode(READER.decode_example(cell), mode)
    except Exception as error:  # Pillow's decoders raise all kinds
        raise UnreadableImage(f"{name_of(cell, row)}: {reason(error)}") from None


def name_of(cell: Cell, row: int) -> str:
    """Return an image's name for the user: its row, and its file if there is one."""
    path = cell["path"] if cell else None
    return f"row {row} ({Path(path).name})" if path else f"row {row}"


def reason(error: Exception) -> str:
    text = " ".join(str(error).split()).split(" <_io")[0]  # without the address of a buffer
    return text or type(error).__name__


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in mode "L" or "RGB".

    Transparent pixels become white if the visible ones are dark, else black: a shape may be in the
    alpha channel only. With 16 bits, white is always 65535, so an image that uses only 12 of them
    is 16 times as dark.

    Raises:
        ValueError: pixels have 32 bits, and which value is white is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image, np.uint32)
        eight = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        if "transparency" in image.info:
            visible = Image.fromarray((values != image.info["transparency"]).astype(np.uint8) * 255)
            eight.putalpha(visible)
        image = eight
    if image.mode in ("I", "F"):
        raise ValueError(
            f"mode {image.mode}, 32 bits a pixel: which value is white is not known; save it with "
            "8 bits: Image.fromarray((array / white * 255).astype('uint8'))"
        )
    if image.has_transparency_data:
        image = on_background(image)
    if image.mode == "LAB":  # Pillow converts it to RGB only
        image = image.convert("RGB")
    return image.convert(mode)


def on_background(image: Image.Image) -> Image.Image:
    """Return an image with transparency as RGB, on a background that its visible part contrasts."""
    if image.mode == "La":  # premultiplied alpha; Pillow has no direct way to RGBA
        image = image.convert("LA")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), np.float64)
    if alpha.min() < 255:
        grey = np.asarray(image.convert("RGB").convert("L"), np.float64)
        shade = 255 if (grey * alpha).sum() < 127.5 * alpha.sum() else 0
        background = Image.new("RGBA", image.size, (shade, shade, shade, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def to_pixels(image: Image.Image, dataset: str, name: str, size: int) -> np.ndarray:
    """Return an image of mode "L" or "RGB" as uint8 (channels * size * size,).

    Raises:
        RuntimeError: it has another size.
    """
    if image.size != (size, size):
        raise RuntimeError(
            f"dataset = '{dataset}': an image is {image.width}x{image.height}, the network takes "
            f"{size}x{size} ({name}); resize the images, or change IMAGE_SIZE and the network"
        )
    pixels = np.asarray(image)
    return (pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).reshape(-1)
