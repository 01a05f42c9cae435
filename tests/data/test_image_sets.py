"""Image sets: small trees, written and counted by hand, and independent re-implementations.

Resizing is compared with Lanczos resampling written out in numpy, rotations with np.rot90 image by
image, glyphs with Pillow's rendering and fontTools' character maps. Tests of the real Omniglot are
skipped where the data root has none.
"""

import hashlib
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import URLError

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from metanb.data import cache, glyphs, image_sets, mini_imagenet, omniglot
from metanb.data.image_sets import (
    DataError,
    ImageSet,
    check_images,
    data_root,
    fetch_images,
    load_images,
)
from metanb.files import DiskError
from tests.support.bad_days import shown

# Half, split of Vinyals et al., character: 3 + 2 of the background, 1 + 1 of the evaluation half.
ROSTER = [
    ("background", "train", "Alpha/character01"),
    ("background", "train", "Alpha/character02"),
    ("background", "train", "Alpha/character03"),
    ("background", "valid", "Beta/character01"),
    ("background", "valid", "Beta/character02"),
    ("evaluation", "train", "Gamma/character01"),
    ("evaluation", "test", "Gamma/character02"),
]
REAL = data_root() / "omniglot-py" / "images_evaluation"
needs_omniglot = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no Omniglot in the data root: no {REAL}"
)


def drawing(character: int, drawer: int) -> Image.Image:
    """105x105, black on white, mode "1", no two the same and none symmetric."""
    paper = Image.new("1", (105, 105), 1)
    pen = ImageDraw.Draw(paper)
    pen.line([(20, 15 + 3 * drawer), (40 + 7 * character, 80)], fill=0, width=3)
    pen.rectangle([10, 10, 20, 14 + character], fill=0)
    return paper


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An omniglot-py folder of seven characters; copy it."""
    top = tmp_path_factory.mktemp("drawings") / "omniglot-py"
    for number, (half, _, name) in enumerate(ROSTER):
        folder = top / f"images_{half}" / name
        folder.mkdir(parents=True)
        for drawer in range(20):
            drawing(number, drawer).save(folder / f"{number + 1:04d}_{drawer + 1:02d}.png")
    return top


@pytest.fixture
def tree(tmp_path: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a tree of seven characters, which the roster is made to expect."""
    monkeypatch.setattr(omniglot, "roster", lambda: ROSTER)
    shutil.copytree(drawings, tmp_path / "omniglot-py")
    return tmp_path


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a mini-ImageNet of 3 / 2 / 2 classes of two images, each of one colour.

    One of the images is 168x168, the others are 84x84.
    """
    monkeypatch.setattr(mini_imagenet, "CLASSES", {"train": 3, "valid": 2, "test": 2})
    folder = tmp_path / "mini-imagenet"
    (folder / "images").mkdir(parents=True)
    label = 0
    for stem, classes in (("train", 3), ("val", 2), ("test", 2)):
        lines = ["filename,label"]
        for _ in range(classes):
            label += 1
            for i in range(2):
                name = f"n{label:02d}{i}.png"
                side = 168 if (label, i) == (2, 1) else 84
                Image.new("RGB", (side, side), (10 * label, 100 + i, 250 - label)).save(
                    folder / "images" / name
                )
                # labels in descending order: the set sorts them
                lines.append(f"{name},n{9 - label:02d}")
        (folder / f"{stem}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def lanczos(image: np.ndarray, side: int) -> np.ndarray:
    """Lanczos-3 resampling, antialiased: first rows, then columns, each rounded to 8 bits."""
    for _ in range(2):
        scale = image.shape[1] / side
        centres = (np.arange(side) + 0.5) * scale
        x = (np.arange(image.shape[1])[None, :] + 0.5 - centres[:, None]) / scale
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        image = np.clip(np.round(image @ weights.T), 0, 255).T
    return image


def sha(images: ImageSet) -> str:
    return hashlib.sha256(images.images.tobytes()).hexdigest()


# Omniglot


def test_omniglot_splits_by_hand(tree: Path) -> None:
    alpha = ["Alpha/character01", "Alpha/character02", "Alpha/character03"]
    beta = ["Beta/character01", "Beta/character02"]
    for split, names in (
        ("train", [*alpha, "Gamma/character01"]),
        ("valid", beta),
        ("test", ["Gamma/character02"]),
    ):
        loaded = load_images("omniglot", split, root=tree)
        assert (loaded.name, loaded.split, list(loaded.classes)) == ("omniglot", split, names)
        assert loaded.images.shape == (len(names), 20, 1, 28, 28)
        assert loaded.images.dtype == np.uint8


def test_omniglot_pixels_against_lanczos_in_numpy(tree: Path) -> None:
    """Antialiased: Pillow resizes mode "1", which the files have, by nearest neighbour."""
    train = load_images("omniglot", "train", root=tree)
    for row, number in ((0, 0), (2, 2), (3, 5)):  # the split's fourth class is the roster's sixth
        for drawer in (0, 7, 19):
            ink = 255.0 * ~np.asarray(drawing(number, drawer))
            expected = 255 - lanczos(255 - ink, 28)
            assert np.abs(train.images[row, drawer, 0] - expected).max() <= 1


def test_rotations_against_rot90(tree: Path) -> None:
    plain = load_images("omniglot", "train", root=tree)
    turned = load_images("omniglot", "train", rotations=True, root=tree)
    assert turned.images.shape == (16, 20, 1, 28, 28)
    for quarter in range(4):
        for row in range(4):
            assert turned.classes[4 * quarter + row] == f"{plain.classes[row]}@{90 * quarter}"
            for drawer in range(20):
                expected = np.rot90(plain.images[row, drawer, 0], quarter)
                assert (turned.images[4 * quarter + row, drawer, 0] == expected).all()
    assert turned.digest != plain.digest
    for split in ("valid", "test"):
        with pytest.raises(ValueError, match="only train classes are rotated"):
            load_images("omniglot", split, rotations=True, root=tree)


def test_the_cache_is_read_and_does_not_need_the_tree(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_images("omniglot", "train", root=tree)
    monkeypatch.setattr(omniglot, "read_pixels", None)  # decoding again would fail
    again = load_images("omniglot", "train", root=tree)
    assert (again.images == first.images).all()
    assert again.digest == first.digest and again.classes == first.classes
    assert not again.images.flags.writeable


def flip(npy: Path) -> None:
    """One byte of the last image."""
    content = bytearray(npy.read_bytes())
    content[-5] ^= 255
    npy.write_bytes(content)


def amend(npy: Path, **changes: object) -> None:
    """Other values in the record."""
    record = npy.with_suffix(".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


DAMAGE = {
    "truncated": lambda npy: npy.write_bytes(npy.read_bytes()[:-1000]),
    "empty": lambda npy: npy.write_bytes(b""),
    "flipped": flip,
    "header": lambda npy: npy.write_bytes(b"x" * 100 + npy.read_bytes()[100:]),
    "no images": lambda npy: npy.unlink(),
    "no record": lambda npy: npy.with_suffix(".json").unlink(),
    "half a record": lambda npy: npy.with_suffix(".json").write_text(
        npy.with_suffix(".json").read_text()[:40]
    ),
    "nested record": lambda npy: npy.with_suffix(".json").write_text("[" * 100_000),
    "old decoder": lambda npy: amend(npy, decoder=cache.DECODER - 1),
    "other stamp": lambda npy: amend(npy, stamp="of other sources"),
    "other classes": lambda npy: amend(npy, classes=["Beta/character01", "Omega/character02"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(
    tree: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load_images("omniglot", "valid", root=tree)
    npy = tree / "cache" / "omniglot-vinyals-valid.npy"
    whole = npy.read_bytes(), npy.with_suffix(".json").read_bytes()
    DAMAGE[damage](npy)
    again = load_images("omniglot", "valid", root=tree)
    assert (again.images == first.images).all()
    assert again.digest == first.digest and again.classes == first.classes
    assert (npy.read_bytes(), npy.with_suffix(".json").read_bytes()) == whole
    shown("The cache of images is damaged", "".join(capsys.readouterr()))
    assert not list(npy.parent.glob("*.metanb-*"))


def test_a_damaged_cache_without_its_tree_is_an_error(tree: Path) -> None:
    load_images("omniglot", "valid", root=tree)
    flip(tree / "cache" / "omniglot-vinyals-valid.npy")
    (tree / "omniglot-py" / "images_background" / "Beta").rename(tree / "gone")
    with pytest.raises(DataError, match="missing Beta/character01"):
        load_images("omniglot", "valid", root=tree)


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_counts_and_bad_images(tree: Path) -> None:
    top = tree / "omniglot-py" / "images_background"
    lost = top / "Alpha" / "character02" / "0002_07.png"
    whole = lost.read_bytes()

    lost.unlink()
    with pytest.raises(DataError) as error:
        load_images("omniglot", "train", root=tree)
    assert f"{lost.parent} has 19 drawings, not 20; delete {top} and run" in one_line(error)
    shown("A part of the data is missing", f"Error: {error.value}")

    lost.write_bytes(whole[:60])
    with pytest.raises(DataError) as error:
        load_images("omniglot", "train", root=tree)
    assert f"unreadable image {lost}" in one_line(error)

    lost.write_bytes(b"not an image")
    with pytest.raises(DataError, match="unreadable image .*0002_07.png") as error:
        load_images("omniglot", "train", root=tree)
    shown("An image is corrupt", f"Error: {error.value}")

    Image.new("1", (28, 28)).save(lost)
    with pytest.raises(DataError, match="0002_07.png is 28x28, not 105x105"):
        load_images("omniglot", "train", root=tree)

    lost.write_bytes(whole)
    extra = top / "Delta" / "character01"
    extra.mkdir(parents=True)
    with pytest.raises(DataError) as error:
        load_images("omniglot", "train", root=tree)
    assert "has 6 characters, not 5: unknown Delta/character01 (1 in all)" in one_line(error)

    extra.rmdir()
    for pattern in ("*.npy", "*.metanb-*"):
        assert not list((tree / "cache").glob(pattern))
    load_images("omniglot", "train", root=tree)


def test_of_two_at_once_one_builds(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    loaded = []
    decode = omniglot.read_pixels

    def slowly(path: Path, *args, **kwargs) -> np.ndarray:
        decoded.append(path)
        time.sleep(0.005)
        return decode(path, *args, **kwargs)

    monkeypatch.setattr(omniglot, "read_pixels", slowly)
    threads = [
        threading.Thread(target=lambda: loaded.append(load_images("omniglot", "valid", root=tree)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 40 and len(loaded) == 3 and len({sha(each) for each in loaded}) == 1


# Downloading


class Offline:
    """Stands in for torchvision's class where there is no network."""

    zips_md5 = {"images_background": "0" * 32, "images_evaluation": "0" * 32}

    def __init__(self, root: str, **kwargs: bool) -> None:
        raise URLError("no network")


def test_download_by_torchvision(
    tmp_path: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "roster", lambda: ROSTER)
    calls = []

    class Fetches(Offline):
        def __init__(self, root: str, background: bool, download: bool) -> None:
            calls.append((root, background, download))
            half = f"images_{'background' if background else 'evaluation'}"
            shutil.copytree(drawings / half, tmp_path / "omniglot-py" / half)

    monkeypatch.setattr("torchvision.datasets.Omniglot", Fetches)
    assert load_images("omniglot", "test", root=tmp_path).images.shape == (1, 20, 1, 28, 28)
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    summary = fetch_images("omniglot", root=tmp_path)  # what is there is not fetched again
    assert "train 4 x 20" in summary and "background 5 + evaluation 2 characters" in summary
    assert len(calls) == 2


def test_offline_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.Omniglot", Offline)
    for act in (
        lambda: load_images("omniglot", "train", root=tmp_path),
        lambda: fetch_images("omniglot", root=tmp_path),
    ):
        with pytest.raises(DataError) as error:
            act()
        text = one_line(error)
        assert "no network" in text
        assert "put images_background.zip of github.com/brendenlake/omniglot" in text
        assert str(tmp_path / "omniglot-py") in text
        shown("A download fails", f"Error: {text}")
    # checking downloads nothing
    with pytest.raises(DataError, match="run `metanb data fetch omniglot`"):
        check_images("omniglot", root=tmp_path)


def test_zip_files_put_there_by_hand_are_extracted(
    tmp_path: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the remedy for a damaged tree, to delete it, works offline.

    torchvision itself extracts no zip file that it finds.
    """
    monkeypatch.setattr(omniglot, "roster", lambda: ROSTER)
    md5 = {}
    for half in ("images_background", "images_evaluation"):
        archive = shutil.make_archive(str(tmp_path / "omniglot-py" / half), "zip", drawings, half)
        md5[half] = hashlib.md5(Path(archive).read_bytes()).hexdigest()
    monkeypatch.setattr(
        "torchvision.datasets.Omniglot", type("Offline", (Offline,), {"zips_md5": md5})
    )
    assert load_images("omniglot", "train", root=tmp_path).images.shape == (4, 20, 1, 28, 28)


# mini-ImageNet


def test_mini_imagenet_by_hand(mini: Path) -> None:
    train = load_images("mini-imagenet", "train", root=mini)
    assert train.images.shape == (3, 2, 3, 84, 84) and train.classes == ("n06", "n07", "n08")
    # label n08 is the first of the csv file, and sorts last
    for row, label in enumerate((3, 2, 1)):
        for i in range(2):
            for channel, value in enumerate((10 * label, 100 + i, 250 - label)):
                assert (train.images[row, i, channel] == value).all()
    assert load_images("mini-imagenet", "valid", root=mini).images.shape == (2, 2, 3, 84, 84)
    assert load_images("mini-imagenet", "test", root=mini).classes == ("n02", "n03")


def test_large_caches_are_mapped_and_check_reads_them_through(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_images("mini-imagenet", "train", root=mini)
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    mapped = load_images("mini-imagenet", "train", root=mini)
    assert isinstance(mapped.images, np.memmap) and not mapped.images.flags.writeable
    assert sha(mapped) == sha(plain)
    npy = mini / "cache" / "mini-imagenet-train.npy"
    DAMAGE["truncated"](npy)  # a wrong size is noticed even so
    assert sha(load_images("mini-imagenet", "train", root=mini)) == sha(plain)
    flip(npy)  # a wrong byte only when all is read
    summary = check_images("mini-imagenet", root=mini)
    assert f"train 3 x 2 ({plain.digest}) / valid 2 x 2" in summary and "3x84x84" in summary
    assert sha(load_images("mini-imagenet", "train", root=mini)) == sha(plain)


def test_another_csv_file_rebuilds_the_cache(mini: Path) -> None:
    before = load_images("mini-imagenet", "test", root=mini)
    table = mini / "mini-imagenet" / "test.csv"
    header, *rows = table.read_text().splitlines()
    # two images of a class change places
    table.write_text("\n".join([header, rows[1], rows[0], *rows[2:]]) + "\n")
    after = load_images("mini-imagenet", "test", root=mini)
    assert (after.images[1] == before.images[1, ::-1]).all()
    assert (after.images[0] == before.images[0]).all()
    assert after.digest != before.digest


def test_mini_imagenet_absent(tmp_path: Path) -> None:
    for act in (
        load_images,
        lambda dataset, _, root: fetch_images(dataset, root),
        lambda dataset, _, root: check_images(dataset, root),
    ):
        with pytest.raises(DataError) as error:
            act("mini-imagenet", "train", root=tmp_path)
        text = one_line(error)
        folder = tmp_path / "mini-imagenet"
        assert f"no {folder / 'train.csv'}" in text and "never downloaded" in text
        shown("A data set is not there", f"Error: {text}")
        assert "columns filename,label" in text and str(folder / "images") in text


def test_mini_imagenet_errors(mini: Path) -> None:
    table = mini / "mini-imagenet" / "train.csv"
    good = table.read_text()
    rows = good.splitlines()
    for content, text in (
        ("\n".join(rows[:-1]), "class n06 has 1 images, class n08 has 2"),
        ("\n".join(rows[:-2]), "has 2 classes, not 3"),
        (good.replace("filename,label", "file,class"), "has no columns filename,label"),
        (good.replace("n010.png", "n011.png"), "names 1 files more than once"),
        (good.replace("n08", "n02"), "class n02 in both train and test"),
        (good.replace("n010.png", "n990.png"), "n990.png, one of 1 images that train lacks"),
    ):
        table.write_text(content)
        with pytest.raises(DataError) as error:
            load_images("mini-imagenet", "train", root=mini)
        assert text in one_line(error)
    table.write_text(good)
    (mini / "mini-imagenet" / "images" / "n010.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="unreadable image .*n010.png"):
        load_images("mini-imagenet", "train", root=mini)


def test_check_reads_the_images_and_not_the_cache_alone(mini: Path) -> None:
    """An image replaced under its name: the cache was of the old one."""
    before = check_images("mini-imagenet", root=mini)
    assert check_images("mini-imagenet", root=mini) == before
    Image.new("RGB", (84, 84), (1, 2, 3)).save(mini / "mini-imagenet" / "images" / "n010.png")
    assert check_images("mini-imagenet", root=mini) != before
    assert (load_images("mini-imagenet", "train", root=mini).images[:, 0, 0] == 1).any()


def test_an_image_in_two_splits_is_named(mini: Path) -> None:
    path = mini / "mini-imagenet" / "test.csv"
    table = path.read_text()
    for name in ("n010.png", "./n010.png"):
        path.write_text(table.replace("n060.png", name))
        with pytest.raises(DataError, match="image n010.png in both train and test"):
            load_images("mini-imagenet", "train", root=mini)


# Glyphs


@pytest.fixture(scope="module")
def glyph_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def faces() -> glyphs.Faces:
    return glyphs.Faces()


def by_pillow(face: str, code: int) -> np.ndarray:
    """The character by Pillow's FreeType, shrunk so that its longer side is 20 of 28 pixels."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    font = ImageFont.truetype(str(path), 160, layout_engine=ImageFont.Layout.BASIC)
    page = Image.new("L", (600, 600))
    ImageDraw.Draw(page).text((200, 200), chr(code), fill=255, font=font)
    left, upper, right, lower = page.getbbox()
    half = max(right - left, lower - upper) * 28 / 20 / 2
    x = (left + right) / 2
    y = (upper + lower) / 2
    box = (x - half, y - half, x + half, y + half)
    return np.asarray(page.resize((28, 28), Image.Resampling.BOX, box=box), dtype=np.float64)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_glyph_splits(glyph_root: Path) -> None:
    sets = {split: load_images("glyphs", split, root=glyph_root) for split in image_sets.SPLITS}
    counts = {split: len(images.classes) for split, images in sets.items()}
    assert 280 <= sum(counts.values()) <= 340
    assert counts["train"] > counts["test"] > counts["valid"] >= 20
    names = [name for images in sets.values() for name in images.classes]
    assert len(set(names)) == len(names)
    spans = {name: (first, last) for name, first, last, _ in glyphs.BLOCKS}
    for name in sets["test"].classes:
        code = int(name.split(" ")[0].removeprefix("U+"), 16)
        # a script that has no training class
        assert spans["Georgian"][0] <= code <= spans["Georgian"][1]
    for images in sets.values():
        assert images.images.shape == (len(images.classes), 20, 1, 28, 28)
        ink = images.images.reshape(-1, 784)
        # bright ink on 0
        assert (ink.max(axis=1) > 150).all() and ((ink == 0).mean(axis=1) > 0.4).all()
        assert len({image.tobytes() for image in ink}) == len(ink)  # no image twice


def test_glyphs_depend_on_the_seed_only(glyph_root: Path, tmp_path: Path) -> None:
    # Another process has other hash seeds, so another order of any set.
    script = (
        "import sys; from metanb.data.image_sets import load_images; "
        "print(load_images('glyphs', 'valid', root=sys.argv[1]).digest)"
    )
    command = [sys.executable, "-c", script, tmp_path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second = (load_images("glyphs", "valid", root=glyph_root, seed=seed) for seed in (0, 1))
    assert printed.strip() == first.digest
    assert second.classes == first.classes and second.digest != first.digest


def test_another_design_is_rendered_anew(
    glyph_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = load_images("glyphs", "valid", root=glyph_root)
    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "PER_CLASS", 16)
        patch.setattr(glyphs, "DESIGN", 1)
        old = load_images("glyphs", "valid", root=tmp_path)
    assert old.images.shape[1] == 16
    assert load_images("glyphs", "valid", root=tmp_path).digest == new.digest
    assert (old.images == new.images[:, :16]).all()


def test_every_face_comes_once_before_any_comes_again(
    faces: glyphs.Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = faces.draw

    def draw_and_note(face: str, *args, **kwargs) -> np.ndarray:
        drawn.append(face)
        return draw(face, *args, **kwargs)

    monkeypatch.setattr(faces, "draw", draw_and_note)
    # Georgian is in some faces only
    for code, count in ((ord("A"), 16), (0x10D0, len(faces.faces_with(0x10D0)))):
        drawn.clear()
        pictures = glyphs.glyph_images(faces, code, 0)
        assert len(drawn) == len({picture.tobytes() for picture in pictures}) == 20
        assert set(drawn[:count]) == set(faces.faces_with(code))
        assert drawn[count:] == drawn[: 20 - count]


def test_every_face_drawn_has_the_character(faces: glyphs.Faces) -> None:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    cmaps = {face: TTFont(folder / f"{face}.ttf", lazy=True).getBestCmap() for face in glyphs.FACES}
    for code in glyphs.choose_characters():
        having = faces.faces_with(code)
        assert len(having) >= 2
        for face in having:
            assert cmaps[face].get(code, ".notdef") != ".notdef"
    # Georgian; Chinese; a blank
    assert (
        faces.faces_with(0x10A0) and not faces.faces_with(0x4E00) and not faces.faces_with(0x0020)
    )


def test_glyphs_look_as_pillow_draws_them(faces: glyphs.Faces) -> None:
    """Upright, not mirrored, holes kept."""
    for face in ("DejaVuSans", "DejaVuSerif-BoldItalic", "STIXGeneral"):
        likeness = [
            cosine(faces.draw_plain(face, code).astype(float), by_pillow(face, code))
            for code in glyphs.choose_characters()
            if face in faces.faces_with(code)
        ]
        assert len(likeness) > 50 and min(likeness) > 0.95


def test_no_two_glyph_classes_look_alike() -> None:
    """By Pillow's rendering, for classes of one split and of two."""
    codes = list(glyphs.choose_characters())
    stamps = np.stack([by_pillow("DejaVuSans", code).ravel() for code in codes])
    stamps /= np.linalg.norm(stamps, axis=1, keepdims=True)
    likeness = stamps @ stamps.T - 2 * np.eye(len(codes))
    i, j = np.unravel_index(likeness.argmax(), likeness.shape)
    assert likeness[i, j] < 0.975, f"{chr(codes[i])} {chr(codes[j])}"


def test_look_alikes_are_one_class_across_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [
        ("Basic Latin", 0x41, 0x5A, "train"),
        ("Greek and Coptic", 0x391, 0x3BF, "valid"),
        ("Cyrillic", 0x410, 0x445, "test"),
    ]
    monkeypatch.setattr(glyphs, "BLOCKS", blocks)
    classes = glyphs.choose_characters.__wrapped__()
    for family in ("AΑА", "BΒВ", "EΕЕ", "HΗН", "KΚК", "MΜМ", "OΟОοо", "PΡР", "TΤТ", "XΧХх", "CСс"):
        assert len({char for char in family if ord(char) in classes}) == 1, family
    splits = [classes[ord(character)] for character in "AΣЖ"]
    assert splits == ["train", "valid", "test"]


def test_a_missing_font_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "FACES", ("NoSuchFace",))
    glyphs.choose_characters.cache_clear()
    with pytest.raises(DataError, match="matplotlib lacks a font .*NoSuchFace"):
        load_images("glyphs", "train", root=tmp_path)


# All sets


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    for kwargs, text in (
        ({"split": "val"}, "split 'val': one of train, valid, test"),
        ({"dataset": "glyphs", "rotations": True}, "omniglot's, not glyphs's"),
        ({"seed": 3}, "seed=3: glyphs only, not omniglot"),
    ):
        with pytest.raises(ValueError, match=text):
            load_images(**({"dataset": "omniglot", "split": "train", "root": tmp_path} | kwargs))
    with pytest.raises(DataError, match="no data set 'omniglott': it is none of glyphs, omniglot"):
        check_images("omniglott", root=tmp_path)


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        DiskError, match="cannot write .*cache.*: make room, or name another folder .*METANB_DATA"
    ) as error:
        load_images("glyphs", "train", root=tmp_path)
    shown("The data folder may not be written", f"Error: {error.value}")


def test_a_full_disk_is_named_and_leaves_no_scrap(tree: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DiskError) as error:
            load_images("omniglot", "valid", root=tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown("The disk fills while images are cached", f"Error: {one_line(error)}")
    assert not [path for path in (tree / "cache").iterdir() if path.suffix != ".lock"]
    assert load_images("omniglot", "valid", root=tree).images.shape == (2, 20, 1, 28, 28)


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METANB_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("METANB_DATA")
    assert data_root().name == "data" and "metanb" in data_root().parts


def test_an_image_set_checks_itself() -> None:
    with pytest.raises(DataError, match=r"images are float64 \[2, 3, 1, 4, 4\]; give uint8"):
        ImageSet("mine", "train", np.zeros((2, 3, 1, 4, 4)), ("a", "b"), "0")
    with pytest.raises(DataError, match="1 different names for 2 classes"):
        ImageSet("mine", "train", np.zeros((2, 3, 1, 4, 4), np.uint8), ("a", "a"), "0")


# The real Omniglot: its names are known without it


def test_the_shipped_split() -> None:
    """Digests of the sorted names, one per line, from the split file as it is passed around."""
    published = {
        "train": (1028, "c350ea5778649d32"),
        "valid": (172, "d3f56052fbd17195"),
        "test": (423, "bbbdc01c73fd2d34"),
    }
    for split, (count, digest) in published.items():
        names = sorted(name for _, name in omniglot.members(split))
        assert len(names) == count
        assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == digest
    parts = [{name for _, name in omniglot.members(split)} for split in image_sets.SPLITS]
    assert len(set.union(*parts)) == 1623


@needs_omniglot
def test_the_real_omniglot() -> None:
    for split, count in (("train", 1028), ("valid", 172), ("test", 423)):
        loaded = load_images("omniglot", split)
        assert loaded.images.shape == (count, 20, 1, 28, 28)
        for row in range(0, count, 100):
            name = loaded.classes[row]
            half = "evaluation" if (REAL / name).is_dir() else "background"
            paths = sorted((REAL.parent / f"images_{half}" / name).glob("*.png"))
            for drawer in (0, 11):
                with Image.open(paths[drawer]) as image:
                    assert image.mode == "1"
                    paper = 255.0 * np.asarray(image)
                expected = 255 - lanczos(paper, 28)
                assert np.abs(loaded.images[row, drawer, 0] - expected).max() <= 1


@needs_omniglot
def test_the_real_omniglot_loads_in_under_a_second() -> None:
    load_images("omniglot", "train")
    start = time.process_time()  # other work on the machine does not count
    assert len(load_images("omniglot", "train", rotations=True).classes) == 4112
    assert time.process_time() - start < 1


def test_kept_classes_are_nested_and_seeded():
    everything = load_images("glyphs", "train")
    few, more, second = (
        image_sets.keep_classes(everything, n, seed) for n, seed in ((6, 1), (9, 1), (6, 2))
    )
    assert set(few.classes) < set(more.classes) and set(few.classes) != set(second.classes)
    for name, drawings in zip(few.classes, few.images, strict=True):
        assert (drawings == everything.images[everything.classes.index(name)]).all()
    assert len({few.digest, more.digest, second.digest, everything.digest}) == 4
    assert image_sets.keep_classes(everything, 6, 1).digest == few.digest
    assert not few.images.flags.writeable
    with pytest.raises(DataError, match=f"has {len(everything.classes)} classes, not 100000"):
        image_sets.keep_classes(everything, 100_000, 0)
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"n is {n}"):
            image_sets.keep_classes(everything, n, 0)
