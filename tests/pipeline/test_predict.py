"""Own images and videos: what is written, of which sizes, and what is refused."""

import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import ssda
from pipeline import predict as command_line
from pipeline.predict import find_inputs, label_all, predict
from pipeline.video import read_frames
from ssda.engine.checkpoints import load_network
from ssda.engine.evaluation import predict_labels, predict_uncertainty
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from ssda.params import Windows
from tests.conftest import write_varied_network

MODEL = Path("model.safetensors")
KINDS = ("colours", "ids", "overlay", "uncertainty")
BESIDE = {"classes.json", "index.html", "legend.png"}
load = partial(ssda.load, MODEL, device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / MODEL
    write_varied_network(path)
    return path


@pytest.fixture(autouse=True)
def workspace(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    MODEL.symlink_to(model)


@pytest.fixture
def network(model: Path) -> Segmenter:
    return load_network(model)[0]


def picture(width: int, height: int, state: int = 0) -> np.ndarray:
    """Coarse noise, BGR."""
    rng = np.random.default_rng(state)
    coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def write(path: str, width: int = 40, height: int = 24, state: int = 0) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, picture(width, height, state))
    return Path(path)


def write_video(path: str, code: str, size: tuple[int, int] = (48, 32), frames: int = 7) -> Path:
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*code), 12.5, size)
    for state in range(frames):
        writer.write(picture(*size, state))
    writer.release()
    return Path(path)


def read(path: str) -> np.ndarray:
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert stored is not None, path
    return stored


def tensor(path: Path) -> torch.Tensor:
    image = cv2.cvtColor(read(str(path)), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(image).permute(2, 0, 1)


def test_a_folder_at_any_depth_in_any_size() -> None:
    sizes = {"straße 1": (77, 50), "a/b/large": (150, 90), "a/grey": (33, 8), "dot": (1, 1)}
    for name, size in sizes.items():
        write(f"in/{name}.png", *size)
    cv2.imwrite("in/a/grey.png", picture(33, 8)[..., 0])
    predict(load(), [Path("in")], Path("out"))
    found = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.*")}
    assert found == {f"{name}_{kind}.png" for name in sizes for kind in KINDS} | BESIDE
    for name, (width, height) in sizes.items():
        ids, shown = read(f"out/{name}_ids.png"), read(f"out/{name}_colours.png")
        assert ids.dtype == np.uint8 and ids.shape == (height, width) and ids.max() < 19
        assert np.array_equal(shown[..., ::-1], CITYSCAPES.palette()[ids])
        image = cv2.imread(f"in/{name}.png")
        assert image is not None
        half = (image.astype(float) + shown) / 2
        assert np.abs(read(f"out/{name}_overlay.png") - half).max() <= 0.5
    assert len(np.unique(read("out/a/b/large_ids.png"))) > 1


def test_the_uncertainty_is_the_entropy_of_the_passes_in_255_steps(network: Segmenter) -> None:
    path = write("one.jpg", 96, 64)
    predict(load(passes=3), [path], Path("out"))
    stored = read("out/one_uncertainty.png")
    labels, entropy = predict_uncertainty(network, tensor(path)[None], torch.Size((64, 96)), 3, 0)
    assert np.abs(stored - 255 * entropy[0].numpy()).max() <= 0.5
    assert stored.dtype == np.uint8 and 0 < stored.mean() < 255
    assert np.array_equal(read("out/one_ids.png"), labels[0].numpy())


def test_windows_and_mirror_images_are_those_of_the_evaluation(network: Segmenter) -> None:
    path = write("one.png", 100, 70)
    windows = Windows(extent=(48, 48), step=(32, 32))
    predict(load(batch=3, windows=(48, 32), flip=True), [path], Path("out"))
    size = torch.Size((70, 100))
    labels = predict_labels(network, tensor(path), size, windows=windows, flip=True)
    assert np.array_equal(read("out/one_ids.png"), labels.numpy())
    assert not np.array_equal(labels, predict_labels(network, tensor(path), size))


def test_a_scaled_image_is_seen_small_and_labelled_at_its_size(network: Segmenter) -> None:
    path = write("one.png", 100, 70)
    predict(load(scale=0.5), [path], Path("out"))
    small = cv2.resize(picture(100, 70), (50, 35), interpolation=cv2.INTER_AREA)
    seen = torch.from_numpy(cv2.cvtColor(small, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
    labels = predict_labels(network, seen, torch.Size((70, 100)))
    assert np.array_equal(read("out/one_ids.png"), labels.numpy())


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    for state in range(5):
        write(f"in/{state}.png", 40 if state != 3 else 64, 24, state)
    predict(load(), [Path("in")], Path("alone"))
    predict(load(batch=2), [Path("in")], Path("together"))
    for state in range(5):
        ids, other = (read(f"{out}/{state}_ids.png") for out in ("alone", "together"))
        assert (ids != other).mean() < 0.01  # sums of another order, at borders
        a, b = (read(f"{out}/{state}_uncertainty.png") for out in ("alone", "together"))
        assert np.abs(a.astype(int) - b).max() <= 1


def test_no_more_than_a_batch_is_read_ahead() -> None:
    """However long a video is."""
    taken = 0

    def frames() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal taken
        while True:
            taken += 1
            yield str(taken), picture(32, 32)

    seen = label_all(load(batch=2), frames())
    assert [next(seen).name for _ in range(4)] == ["1", "2", "3", "4"]
    assert taken <= 5


def test_what_was_predicted_before_is_no_input() -> None:
    write("in/a.png")
    for _ in range(2):
        predict(load(), [Path("in")], Path("in/out"))
    assert len(list(Path("in").rglob("*_*.png"))) == len(KINDS)


@pytest.mark.parametrize(("name", "code"), [("drive.mp4", "mp4v"), ("drive.avi", "MJPG")])
def test_a_video_becomes_a_video_of_overlays(
    name: str, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video(name, code)
    capfd.readouterr()
    predict(load(batch=3), [path], Path("out"), frames=True)
    assert capfd.readouterr().err == ""
    video = cv2.VideoCapture("out/drive_overlay.webm")
    assert video.get(cv2.CAP_PROP_FPS) == 12.5
    for i in range(7):
        good, frame = video.read()
        assert good and frame.shape == (32, 48, 3)
        overlay = read(f"out/drive/{i:06}_overlay.png")
        assert np.abs(frame.astype(int) - overlay).mean() < 20, i  # compressed, but of that frame
    assert not video.read()[0]
    assert len(list(Path("out/drive").iterdir())) == 7 * len(KINDS)


def test_frames_are_not_written_unasked_and_odd_sides_lose_a_pixel() -> None:
    write_video("odd.avi", "MJPG", (47, 33))
    predict(load(), [Path("odd.avi")], Path("out"))
    assert {path.name for path in Path("out").iterdir()} == {"odd_overlay.webm"} | BESIDE
    frame = cv2.VideoCapture("out/odd_overlay.webm").read()[1]
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_of_a_turned_phone_is_upright(degrees: int) -> None:
    """Its frames lie as the sensor saw them; the track's header says how to turn them."""
    path = write_video("drive.mp4", "mp4v")
    plain = next(read_frames(path))
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    turned = next(read_frames(path)).astype(int)
    assert np.abs(turned - np.rot90(plain, -degrees // 90)).mean() < 3
    predict(load(), [path], Path("out"))
    assert next(read_frames(Path("out/drive_overlay.webm"))).shape == turned.shape


def test_a_video_that_ends_early_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    whole = write_video("drive.avi", "MJPG", frames=40).read_bytes()
    Path("half.avi").write_bytes(whole[: len(whole) // 2])
    predict(load(), [Path("half.avi")], Path("out"))
    lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1 and "half.avi: ends after" in lines[0] and "of 40 frames" in lines[0]


def test_a_video_that_is_stopped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> Iterator[object]:
        for seen in label_all(*arguments):  # pyright: ignore[reportArgumentType]
            if seen.name.endswith("2"):
                raise KeyboardInterrupt
            yield seen

    monkeypatch.setattr(command_line, "label_all", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict(load(), [write_video("drive.avi", "MJPG")], Path("out"))
    assert list(Path("out").iterdir()) == []


def test_broken_files_are_listed_when_the_others_are_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = write("in/a.jpg").read_bytes()
    Path("in/b.jpg").write_bytes(whole[: len(whole) // 2])
    Path("in/c.png").write_text("no image")
    write_video("in/d.avi", "MJPG", frames=2)
    Path("in/e.mp4").write_text("no video")
    write("in/f.png")
    with pytest.raises(ValueError) as caught:
        predict(load(), [Path("in")], Path("out"))
    assert str(caught.value).splitlines() == [
        "3 problems",
        "  in/e.mp4: not a readable video",
        "  in/b.jpg: truncated: the image's end marker is missing",
        "  in/c.png: not a readable image",
    ]
    written = {path.name for path in Path("out").iterdir()}
    pictures = {f"{name}_{kind}.png" for name in "af" for kind in KINDS}
    assert written == pictures | {"d_overlay.webm"} | BESIDE
    assert (
        capsys.readouterr().out
        == "2 images and 1 videos are labelled in out (index.html shows them)\n"
    )


def test_a_page_shows_what_was_written_and_names_the_classes() -> None:
    write("in/50% #1?/ä.png")
    write_video("in/drive.avi", "MJPG", frames=2)
    predict(load(), [Path("in")], Path("out"))
    page = Path("out/index.html").read_text(encoding="utf-8")
    shown = {unquote(address) for address in re.findall(r'(?:src|href)="([^"]+)"', page)}
    kinds = ("overlay", "colours", "uncertainty")
    assert shown == {f"50% #1?/ä_{kind}.png" for kind in kinds} | {"drive_overlay.webm"}
    assert all(Path("out", name).is_file() for name in shown)
    classes = json.loads(Path("out/classes.json").read_text())
    assert classes[13] == {"id": 13, "name": "car", "colour": [0, 0, 142]}
    assert len(classes) == 19 and all(each["name"] in page for each in classes)
    assert (read("out/legend.png")[..., :3] == (142, 0, 0)).all(-1).any()  # BGR


def test_what_systems_leave_is_skipped_and_what_cannot_be_read_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("in/IMG_0.JPG.d/a.png").rename("in/IMG_0.JPG.d/a.PNG")
    Path("in/IMG_1.jpg").mkdir()
    for name in ("._IMG_0.jpg", ".DS_Store", "Thumbs.db", "b.heic", "c.HEIC", "notes.txt", "raw"):
        Path("in", name).write_bytes(b"\0\5\26\7")
    write("in/.trash/b.png")
    predict(load(), [Path("in")], Path("out"))
    told = "1 images and 0 videos are labelled in out (index.html shows them); "
    assert capsys.readouterr().out == f"{told}4 files left out (.heic, .txt, no ending)\n"
    assert {path.name for path in Path("out/IMG_0.JPG.d").iterdir()} == {
        f"a_{kind}.png" for kind in KINDS
    }


def test_links_are_followed_but_not_in_circles() -> None:
    write("elsewhere/day/a.png")
    write("in/b.png")
    Path("in/linked").symlink_to(Path("elsewhere").resolve())
    Path("in/c.png").symlink_to(Path("elsewhere/day/a.png").resolve())
    predict(load(), [Path("in")], Path("out"))
    found = {path.relative_to("out").as_posix() for path in Path("out").rglob("*_ids.png")}
    assert found == {"b_ids.png", "c_ids.png", "linked/day/a_ids.png"}
    Path("elsewhere/again").symlink_to(Path("in").resolve())
    with pytest.raises(ValueError, match=r"in/linked/again: a link to in, whose files would come"):
        predict(load(), [Path("in")], Path("out"))


def test_a_name_that_is_not_utf_8_is_one_line_before_any_work() -> None:
    write("in/a.png")
    name = b"in/stra\xdfe.avi".decode(errors="surrogateescape")
    write_video("drive.avi", "MJPG", frames=2).rename(name)
    with pytest.raises(ValueError, match=r"in/stra.*e.avi'?: not UTF-8 in a name: rename it"):
        predict(load(), [Path("in")], Path("out"))
    assert not Path("out").exists()


def test_a_photo_is_labelled_as_it_is_shown() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(picture(48, 32)).save("photo.png", exif=exif)
    Image.fromarray(np.rot90(picture(48, 32), -1)).save("turned.png")
    predict(load(), [Path("photo.png"), Path("turned.png")], Path("out"))
    for kind in KINDS:
        assert np.array_equal(read(f"out/photo_{kind}.png"), read(f"out/turned_{kind}.png"))
    assert read("out/photo_ids.png").shape == (48, 32)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = label_all(load(scale=99.0), iter([("a", picture(32, 32))]))

    def resize(*_: object, **__: object) -> np.ndarray:
        raise cv2.error("(-4:Insufficient memory) Failed to allocate 400000000000 bytes")

    monkeypatch.setattr(cv2, "resize", resize)
    with pytest.raises(ValueError, match=r"^a: out of memory with --batch 1; try .* --scale 0.5"):
        next(seen)


BAD = {
    "nothing there": (["none.png"], r"none.png: no such file or folder"),
    "folder without images": (["empty"], r"empty: no image or video \(.png, .jpg, "),
    "nothing but others": (
        ["others"],
        r"others: no image or video \(.*\); 1 file left out \(.heic\)",
    ),
    "no image": (["text.txt"], r"text.txt: not a readable image"),
    "no video": (["text.mp4"], r"text.mp4: not a readable video"),
    "video without its index": (["cut.mp4"], r"cut.mp4: not a readable video"),
    "two of one name": (["a/x.png", "b/x.jpg"], r"b/x.jpg: has the name of a/x.png"),
    "out is in": (["a", "--out", "a"], r"--out a: must be another folder than the input"),
    "no model": (["a", "--model", "none"], r"none: no such file"),
    "pickled model": (["a", "--model", "pickled"], r"pickled: not a safetensors file"),
    "gap between windows": (
        ["a", "--windows", "10", "20"],
        r"windows: step \[20, 20\] must be",
    ),
    "no pass": (["a", "--passes", "0"], r"options: passes = 0: input should be greater than"),
    "no scale": (["a", "--scale", "nan"], r"options: scale = nan: input should be"),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    row: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write("a/x.png")
    write("b/x.jpg")
    Path("empty").mkdir()
    Path("others").mkdir()
    Path("others/a.heic").touch()
    for name in ("text.txt", "text.mp4"):
        Path(name).write_text("neither")
    Path("cut.mp4").write_bytes(write_video("whole.mp4", "mp4v").read_bytes()[:500])
    torch.save({"weight": torch.zeros(1)}, "pickled")
    before = sorted(Path().rglob("*"))
    arguments, expected = BAD[row]
    given = ["--model", str(MODEL), "--out", "out", "--device", "cpu", *arguments]
    monkeypatch.setattr(sys, "argv", ["predict", *given])
    with pytest.raises(SystemExit, match=f"^error: {expected}") as caught:
        command_line.main()
    assert "\n" not in str(caught.value.code)
    assert capfd.readouterr().err == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", [os.fsdecode(b"stra\xdfe.jpg"), "two\nlines.mp4"])
def test_a_name_that_cannot_be_written_down_is_told_before_any_work(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"^input: '.*in a name: rename it$"):
        find_inputs([tmp_path], tmp_path / "out")
