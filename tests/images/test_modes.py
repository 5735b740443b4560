"""Pictures of every mode: each is what a viewer shows, none is white or cut off by its range."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from spad.images.modes import as_rgba, rgba_pixels
from spad.images.pixels import fitted_image_tensor
from spad.images.reading import on_white

# Gray levels of a picture 4 wide, 1 high, and what they are of 255.
LEVELS = np.array([[0, 51, 102, 255]])


def gray(dtype, top) -> Image.Image:
    return Image.fromarray((LEVELS / 255 * top).round(9).astype(dtype))


def raw(mode: str, dtype: str) -> Image.Image:
    data = np.rint(LEVELS / 255 * 65535).astype(dtype).tobytes()
    return Image.frombytes(mode, (4, 1), data)


def saved(picture: Image.Image, kind: str, **options) -> Image.Image:
    file = BytesIO()
    picture.save(file, kind, **options)
    return Image.open(BytesIO(file.getvalue()))


def unsigned_tiff(picture: Image.Image) -> Image.Image:
    """Pillow writes 32-bit integers as signed ones; others write field 339 as 1."""
    file = BytesIO()
    picture.save(file, "TIFF")
    signed = struct.pack("<HHIH", 339, 3, 1, 2)
    assert file.getvalue().count(signed) == 1
    return Image.open(BytesIO(file.getvalue().replace(signed, struct.pack("<HHIH", 339, 3, 1, 1))))


GRAYS = {
    "L": lambda: gray("u1", 255),
    "P": lambda: gray("u1", 255).convert("P"),
    "LA": lambda: gray("u1", 255).convert("LA"),
    "La": lambda: gray("u1", 255).convert("LA").convert("La"),
    "PA": lambda: gray("u1", 255).convert("P").convert("PA"),
    "RGB": lambda: gray("u1", 255).convert("RGB"),
    "RGBX": lambda: gray("u1", 255).convert("RGB").convert("RGBX"),
    "RGBA": lambda: gray("u1", 255).convert("RGBA"),
    "RGBa": lambda: gray("u1", 255).convert("RGBA").convert("RGBa"),
    "CMYK": lambda: gray("u1", 255).convert("RGB").convert("CMYK"),
    "YCbCr": lambda: gray("u1", 255).convert("RGB").convert("YCbCr"),
    "HSV": lambda: gray("u1", 255).convert("RGB").convert("HSV"),
    "I;16": lambda: raw("I;16", "<u2"),
    "I;16L": lambda: raw("I;16L", "<u2"),
    "I;16B": lambda: raw("I;16B", ">u2"),
    "I;16N": lambda: raw("I;16N", "=u2"),
    "I of 8 bits": lambda: gray("i4", 255),
    "I of 16 bits": lambda: gray("i4", 65535),
    "I of 32 bits": lambda: unsigned_tiff(gray("u4", 2**32 - 1)),
    "F to 1": lambda: gray("f4", 1.0),
    "F to 1.5": lambda: gray("f4", 1.5),
    "F to 255": lambda: gray("f4", 255.0),
    "F to 65535": lambda: gray("f4", 65535.0),
    "F to a million": lambda: gray("f4", 1e6),
    "16-bit PNG": lambda: saved(raw("I;16", "<u2"), "PNG"),
    "16-bit TIFF": lambda: saved(raw("I;16", "<u2"), "TIFF"),
    "float TIFF": lambda: saved(gray("f4", 1.0), "TIFF"),
    "CMYK TIFF": lambda: saved(gray("u1", 255).convert("RGB").convert("CMYK"), "TIFF"),
    "palette PNG": lambda: saved(gray("u1", 255).convert("P"), "PNG"),
}


@pytest.mark.parametrize("name", GRAYS)
def test_gray_of_every_mode_is_the_same_gray(name):
    picture = GRAYS[name]()
    before = picture.tobytes()
    pixels = rgba_pixels(picture)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 4, 4)
    assert np.abs(pixels[..., :3].astype(int) - LEVELS[..., None]).max() <= 1
    assert (pixels[..., 3] == 255).all() and picture.tobytes() == before
    assert np.array_equal(on_white(picture), pixels[..., :3])
    tensor = fitted_image_tensor(picture, 1, 4)
    assert np.abs(tensor.numpy()[:, 0] * 127.5 + 127.5 - LEVELS).max() <= 1


def test_every_mode_of_pillow_is_in_the_table():
    known = {getter().mode for getter in GRAYS.values()} | {"1", "LAB"}
    known |= {"I;16", "I;16L", "I;16B", "I;16N"}
    assert set(Image.MODES) <= known


def test_bilevel_is_black_and_white():
    picture = Image.fromarray(np.array([[False, True]])).convert("1")
    assert rgba_pixels(picture).tolist() == [[[0, 0, 0, 255], [255, 255, 255, 255]]]


def test_colors_in_lab_are_those_of_srgb():
    # L* of 53.2, a* of 80, b* of 67 is red; Pillow keeps a* and b* as signed bytes.
    lab = Image.frombytes("LAB", (1, 1), bytes([136, 80, 67]))
    (pixel,) = rgba_pixels(lab)[0]
    assert pixel[0] > 240 and pixel[1] < 60 and pixel[2] < 60 and pixel[3] == 255


@pytest.mark.parametrize(
    ("mode", "clear"), [("L", 51), ("RGB", (51, 51, 51)), ("P", 1), ("I;16", 13107)]
)
def test_the_transparent_color_of_a_png_is_clear(mode, clear):
    picture = raw("I;16", "<u2") if mode == "I;16" else gray("u1", 255).convert(mode)
    if mode == "P":
        picture = Image.fromarray(np.arange(4, dtype="u1")[None]).convert("P")
    pixels = rgba_pixels(saved(picture, "PNG", transparency=clear))
    assert (pixels[0, :, 3] == [255, 0, 255, 255]).all()
    assert (on_white(saved(picture, "PNG", transparency=clear))[0, 1] == 255).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_values_that_are_no_gray_are_refused(value):
    picture = Image.fromarray(np.array([[0.5, value]], dtype="f4"))
    with pytest.raises(ValueError, match="expected gray values"):
        as_rgba(picture)
