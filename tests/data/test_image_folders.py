"""Folders of one's own images: made here pixel by pixel, read back, and what is wrong with them.

Evidence: pixels known from how the files were made.
"""

import os
import shutil
import struct
from collections import Counter
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

from metanb.data.image_sets import (
    DataError,
    ImageSet,
    check_images,
    content_of,
    keep_classes,
    load_images,
)
from metanb.data.tasks import draw_images, draw_tasks, sample_tasks
from metanb.runs.training import with_content
from metanb.settings import SettingsError, preset
from tests.support.bad_days import shown
from tests.support.command_line import call

SIZES = {"train": {"a": 3, "b": 5, "c": 4}, "valid": {"d": 3, "e": 3}, "test": {"f": 4, "g": 3}}


def level(split: str, name: str, number: int) -> int:
    """The grey of an image of one grey, different for each."""
    return 10 * "abcdefg".index(name) + number + 1


@pytest.fixture
def root(tmp_path):
    """A data root with the data set "greys": classes of unequal size, images of one grey each."""
    for split, classes in SIZES.items():
        for name, count in classes.items():
            folder = tmp_path / "greys" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                grey = level(split, name, number)
                Image.new("L", (12, 10), grey).save(folder / f"{number}.png")
    return tmp_path


def test_classes_of_unequal_size_are_read_back(root):
    for split, classes in SIZES.items():
        for images in (
            ImageSet.from_folder(root / "greys", split),
            load_images("greys", split, root=root),
            load_images("greys", split, root=root),  # from the cache
        ):
            assert (images.name, images.split) == ("greys", split)
            assert dict(zip(images.classes, images.counts, strict=True)) == classes
            assert images.images.shape == (len(classes), max(classes.values()), 1, 10, 10)
            for row, (name, count) in enumerate(classes.items()):
                expected = [level(split, name, number) for number in range(count)]
                assert images.images[row, :count, 0, 5, 5].tolist() == expected
                assert (images.images[row, count:] == 0).all()
    assert ImageSet.from_folder(root / "greys", "train").digest == (
        load_images("greys", "train", root=root).digest
    )


def test_tasks_never_draw_what_a_class_does_not_have(root):
    images = load_images("greys", "train", root=root)
    tasks = sample_tasks(images, 200, 3, 1, 2, np.random.default_rng(0))
    assert (tasks.support_x > 0).all() and (tasks.query_x > 0).all()
    for seed in range(3):
        draw = draw_tasks(images, 500, 2, 1, 2, np.random.default_rng(seed))
        by_class = Counter(divmod(int(n), 5) for n in draw.images.ravel())
        assert set(by_class) == {
            (row, place) for row, count in enumerate((3, 5, 4)) for place in range(count)
        }
        assert all(len(set(task)) == len(task) for task in draw.images.tolist())
    numbers = draw_images(images, 3_000, np.random.default_rng(0)).images.ravel()
    shares = np.bincount(numbers // 5) / 3_000  # classes are equally likely
    assert np.allclose(shares, 1 / 3, atol=0.03)
    with pytest.raises(DataError, match="which has 3 images of class a; ask for fewer"):
        draw_tasks(images, 1, 2, 2, 2, np.random.default_rng(0))
    kept = keep_classes(images, 2, seed=0)
    assert [SIZES["train"][name] for name in kept.classes] == list(kept.counts)


def test_equal_classes_are_drawn_as_ever():
    """The draws of records: an unequal size elsewhere changes nothing for them."""
    pixels = np.zeros((6, 4, 1, 1, 1), np.uint8)
    full = ImageSet("dots", "train", pixels, tuple("abcdef"), digest="")
    draws = [
        draw_tasks(images, 20, 3, 1, 2, np.random.default_rng(0)).images
        for images in (full, ImageSet("dots", "train", pixels, tuple("abcdef"), "", (4,) * 6))
    ]
    assert (draws[0] == draws[1]).all()


def test_content_follows_the_pixels_and_not_the_path(root, tmp_path_factory):
    content = content_of("greys", root)
    assert content.startswith("1x10x10-") and content_of("glyphs") == ""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(root / "greys", elsewhere / "moved")
    assert content_of("moved", elsewhere) == content
    path = root / "greys" / "test" / "f" / "0.png"
    Image.new("L", (12, 10), 99).save(path)
    assert content_of("greys", root) != content  # read anew: the cache is of the old file
    Image.new("L", (12, 10), level("test", "f", 0)).save(path)
    assert content_of("greys", root) == content


def test_check_says_what_there_is(root):
    line = check_images("greys", root)
    assert line.startswith("train 3 x 3-5 (") and line.endswith("each 1x10x10")


def put(root, image, split="train", name="a", file="0.png", **options):
    path = root / "greys" / split / name / file
    image.save(path, **options)
    return path


def first_image(root):
    return ImageSet.from_folder(root / "greys", "train").images[0, 0]


def test_sixteen_bits_become_eight(root):
    ramp = np.linspace(0, 65535, 120).reshape(10, 12).astype(np.uint16)
    put(root, Image.fromarray(ramp))
    expected = np.round(ramp / 257)[:, 1:11]  # the square in the middle
    assert (first_image(root)[0] == expected).all()


def test_what_is_transparent_becomes_white(root):
    ink = np.zeros((10, 12, 4), np.uint8)
    ink[2:4, 2:4, 3] = 255  # black and opaque; the rest is black, too, and transparent
    put(root, Image.fromarray(ink, "RGBA"))
    image = first_image(root)
    assert image.shape[0] == 3  # one image of colour: all become RGB
    assert (image[:, 2:4, 1:3] == 0).all() and (image == 255).mean() > 0.9


def png(path, bits, rows, transparent):
    """A grey PNG file in which one grey stands for transparent, by the standard library."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    size = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, 0, 0, 0, 0)
    pixels = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in rows)
    chunks = (b"IHDR", size), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", compress(pixels))
    content = b"".join(chunk(kind, data) for kind, data in (*chunks, (b"IEND", b"")))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(("bits", "unit"), [(8, 1), (16, 257)])
def test_a_transparent_grey_becomes_white(root, bits, unit):
    rows = np.full((10, 12), 100 * unit)
    rows[3:5] = 0
    png(root / "greys" / "train" / "a" / "0.png", bits, rows, transparent=0)
    assert first_image(root)[0, :, 1].tolist() == [100] * 3 + [255] * 2 + [100] * 5


def tiff(path, bits, photometric, sample_format, pixels):
    """A grey TIFF file of 12 times 10 pixels in one strip, by the standard library."""
    tags = {256: 12, 257: 10, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 10}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels)


@pytest.mark.parametrize(
    ("bits", "photometric", "sample_format", "words"),
    [
        (16, 1, 1, None),
        (8, 0, 1, None),
        (12, 1, 1, "12 bits per sample"),
        (16, 0, 1, "0 is white"),
        (8, 1, 2, "signed samples"),
    ],
)
def test_numbers_that_would_be_misread_are_refused(root, bits, photometric, sample_format, words):
    """Pillow reads 12 bits as if they were 16, and takes no account of the others."""
    path = root / "greys" / "train" / "a" / "0.png"  # what a file is called does not matter
    tiff(path, bits, photometric, sample_format, bytes([0, 128]) * (120 * bits // 16))
    if words:
        with pytest.raises(DataError, match=f"0.png .*{words}"):
            first_image(root)
    else:
        assert 120 < first_image(root).mean() < 200


def test_palettes_and_directions_are_read_rightly(root):
    picture = Image.new("RGB", (12, 10), (200, 0, 0))
    picture.paste((0, 0, 200), (6, 0, 12, 10))  # the right half is blue
    put(root, picture.quantize(4))
    image = first_image(root)
    assert image[:, 5, 1].tolist() == [200, 0, 0] and image[:, 5, 8].tolist() == [0, 0, 200]
    exif = Image.Exif()
    exif[0x0112] = 6  # held so that the top is on the right
    put(root, picture, file="1.jpg", quality=100, subsampling=0, exif=exif)
    image = ImageSet.from_folder(root / "greys", "train").images[0, 1]
    assert image[0, 1, 5] > 150 > image[2, 1, 5]  # red is above
    assert image[2, 8, 5] > 150 > image[0, 8, 5]  # and blue below


def test_large_images_shrink_to_the_largest_side(root):
    """A red square between white margins: the margins are cropped away, up to ringing."""
    shutil.rmtree(root / "greys")
    for number, (split, name) in enumerate((("train", "a"), ("val", "b"), ("test", "c"))):
        (root / "greys" / split / name).mkdir(parents=True)
        picture = Image.new("RGB", (300 + 2 * number, 200), "white")
        picture.paste("red", (50 + number, 0, 250 + number, 200))
        put(root, picture, split, name)
    images = ImageSet.from_folder(root / "greys", "valid").images
    assert images.shape == (1, 1, 3, 84, 84)
    assert (images[..., 4:-4] == np.array([255, 0, 0]).reshape(3, 1, 1)).all()


def latin(folder):
    """The path of "café.png" in a folder, as a disk has it that was written in Latin-1."""
    return folder / os.fsdecode("café.png".encode("latin-1"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "test"), "no .*test: put the classes of this split"),
        (lambda folder: (folder / "train" / "empty").mkdir(), "empty has no images"),
        (
            lambda folder: shutil.copytree(folder / "train" / "a", folder / "test" / "a"),
            "class a is in train and in test",
        ),
        (
            lambda folder: shutil.copy(folder / "train/b/1.png", folder / "test/g/0.png"),
            "g/0.png is a copy of .*b/1.png",
        ),
        (
            lambda folder: (folder / "train/a/0.png").write_bytes(b"no image"),
            "unreadable image .*a/0.png",
        ),
        (
            lambda folder: Image.fromarray(np.ones((10, 12), np.float32)).save(
                folder / "train/a/3.tif"
            ),
            "3.tif .*32 bits per sample",
        ),
        (
            lambda folder: Image.new("L", (12, 10), 7).save(
                folder / "train/a/0.gif", save_all=True, append_images=[Image.new("L", (12, 10), 9)]
            ),
            "0.gif .*animated",
        ),
        (
            lambda folder: (folder / "train/a/z.png").symlink_to("nowhere"),
            r"cannot read .*a/z.png \(No such file .*remove it",
        ),
        (
            lambda folder: shutil.copy(folder / "train/a/0.png", latin(folder / "train/a")),
            r"a/caf\\xe9.png has a name that is not UTF-8: rename it",
        ),
        (
            lambda folder: shutil.copytree(folder / "train/a", latin(folder / "valid")),
            r"valid/caf\\xe9.png has a name that is not UTF-8: rename it",
        ),
    ],
)
def test_what_is_wrong_is_named(root, spoil, words):
    spoil(root / "greys")
    with pytest.raises(DataError, match=words) as error:
        load_images("greys", "train", root=root)
    assert "\n" not in str(error.value)
    if "in train and in test" in words:
        shown("A class of your own images is in two splits", f"Error: {error.value}")
    if "animated" in words:
        shown("An image of your own cannot be read", f"Error: {error.value}")


def test_an_image_too_large_to_be_true_is_named(root, monkeypatch):
    for limit in (100, 50):  # 120 pixels: a warning of Pillow's, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=r"unreadable image .*exceeds limit"):
            load_images("greys", "train", root=root)


@pytest.mark.parametrize("name", ["bird.s", "-birds", "b" * 41, "greys/", ""])
def test_a_name_that_no_run_may_have_is_refused(root, name):
    if name not in ("greys/", ""):
        shutil.copytree(root / "greys", root / name)
    for read in (check_images, content_of):
        with pytest.raises(DataError, match=f"data set '{name}' does not match .* such a name"):
            read(name, root)
    with pytest.raises(SettingsError, match="does not match"):
        preset("smoke", name)


@pytest.mark.parametrize("fault", ["link", "bytes", "name"])
def test_check_goes_on_after_a_set_with_a_fault(root, fault, capsys, monkeypatch):
    monkeypatch.setenv("METANB_DATA", str(root))
    first = "bird.s" if fault == "name" else "birds"
    shutil.copytree(root / "greys", root / first)
    if fault == "link":
        (root / first / "train/a/z.png").symlink_to("nowhere")
    if fault == "bytes":
        shutil.copy(root / first / "train/a/0.png", latin(root / first / "train/a"))
    code, out, err = call(capsys, monkeypatch, "data", "check", first, "greys")
    assert code == 1 and err.startswith(f"{first}: ") and err.count("\n") == 1
    assert out.splitlines()[1].startswith("greys: train 3 x 3-5 (")


def test_no_such_data_set(root):
    with pytest.raises(DataError, match="no data set 'birds'") as error:
        load_images("birds", "train", root=root)
    shown("A data set's name is not known", f"Error: {error.value}")


def test_a_run_is_of_the_images_of_then(root, monkeypatch):
    monkeypatch.setenv("METANB_DATA", str(root))
    settings = with_content(preset("smoke", "greys", ways=2))
    assert settings.content == content_of("greys") and with_content(settings) == settings
    Image.new("L", (12, 10), 99).save(root / "greys" / "test" / "f" / "0.png")
    with pytest.raises(DataError, match="greys") as error:
        with_content(settings)
    shown("Your own images have changed since a run", f"Error: {error.value}")
    assert with_content(preset("smoke", "greys", ways=2)).id != settings.id
