"""`vitx data check`: contents and damage; hostile files cost neither the process nor memory."""

import io
import json
import pathlib
import struct
import subprocess
import sys

import av
import numpy as np
import pytest

from vitx.cli import main
from vitx.data.encoding import encode_video


def encode_noise(seed: int, **how) -> bytes:
    frames = np.random.default_rng(seed).integers(0, 255, (12, 32, 48, 3), np.uint8)
    return encode_video(frames, options={"x264-params": "keyint=4", "bframes": "2"}, **how)


@pytest.fixture
def folder(tmp_path):
    counts = {"train": (4, 3), "validation": (3, 2), "test": (3, 2)}
    for split, name, count in (
        (split, name, count) for split, of in counts.items() for name, count in zip(("walk", "fall"), of, strict=True)
    ):
        (tmp_path / "videos" / split / name).mkdir(parents=True)
        for i in range(count):
            data = encode_noise(100 * len(split) + 10 * len(name) + i + (name == "fall") * 5)
            (tmp_path / "videos" / split / name / f"{i}.mp4").write_bytes(data)
    return tmp_path / "videos"


@pytest.mark.smoke
def test_an_intact_folder_is_summarised(folder, capsys):
    sheet = folder / "sheet.png"
    assert main(["data", "check", str(folder), "--json", "--sheet", str(sheet)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["videos"] == 17 and report["broken"] == report["duplicates"] == report["leaks"] == []
    assert report["codecs"] == {"h264": 17} and report["sizes"] == {"32x48": 17} and report["fps"] == {"25": 17}
    assert report["seconds"]["median"] == pytest.approx(12 / 25) and report["seconds"]["sum"] == pytest.approx(
        17 * 12 / 25
    )
    assert report["classes"]["class"] == {
        "fall": {"train": 3, "validation": 2, "test": 2},
        "walk": {"train": 4, "validation": 3, "test": 3},
    }
    assert sheet.stat().st_size > 5000
    assert main(["data", "check", str(folder), "--whole"]) == 0
    assert "17 videos, 0 broken" in capsys.readouterr().out


def test_broken_and_duplicate_videos_are_named(folder, capsys):
    (folder / "train/walk/0.mp4").write_bytes((folder / "test/walk/0.mp4").read_bytes())
    (folder / "train/fall/1.mp4").write_bytes(b"no video")
    (folder / "train/fall/2.mp4").write_bytes(b"")
    listed = folder / "list.csv"
    rows = [f"{path.relative_to(folder)},{path.parts[-3]},{path.parts[-2]}" for path in sorted(folder.rglob("*.mp4"))]
    listed.write_text("\n".join(["path,split,action", *rows, "no.mp4,train,walk"]))
    assert main(["data", "check", str(listed), "--labels", "action", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    broken = {video["path"]: video["problem"] for video in report["broken"]}
    assert sorted(broken) == [str(folder / name) for name in ("no.mp4", "train/fall/1.mp4", "train/fall/2.mp4")]
    assert broken[str(folder / "no.mp4")].endswith("No such file or directory")
    assert report["leaks"] == [[str(folder / "test/walk/0.mp4"), str(folder / "train/walk/0.mp4")]]
    assert main(["data", "check", str(listed), "--labels", "action"]) == 1
    out = capsys.readouterr().out
    assert "18 videos, 3 broken" in out and f"{folder / 'train/fall/1.mp4'}: Invalid data" in out
    assert main(["data", "check", str(listed)]) == 2
    assert "has no 'class'" in capsys.readouterr().err
    assert main(["data", "check", str(folder), "--sheet", str(folder / "no" / "sheet.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def remux(whole: bytes, container: str) -> bytes:
    file = io.BytesIO()
    with av.open(io.BytesIO(whole)) as source, av.open(file, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


def claim_samples(samples: int) -> bytes:
    """A small file whose tables claim so many samples of one byte, all in one chunk."""
    data = bytearray(encode_noise(0))
    struct.pack_into(">II", data, data.index(b"stsz") + 8, 1, samples)
    struct.pack_into(">III", data, data.index(b"stsc") + 8, 1, 1, samples)
    return bytes(data)


HOSTILE = {
    "forty million samples": claim_samples(40_000_000),
    "nothing": b"",
    "zeros": bytes(100_000),
    "gif of four gigapixels": b"GIF89a\xff\xff\xff\xff\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\0\x3b",
    "png of four gigapixels": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0" + bytes(64),
    "box without end": b"\0\0\0\x18ftypisom\0\0\x02\0isommp41" + b"\x7f\xff\xff\xffmoov" + bytes(64),
    "boxes in boxes": b"\0\0\0\x18ftypisom\0\0\x02\0isommp41" + 2000 * b"\0\x01\0\0moov",
    "matroska of petabytes": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xfe"
    + 500 * b"\x18\x53\x80\x67\x01\xff\xff",
    "a list of files": b"ffconcat version 1.0\nfile 0001.mp4\n",
}


def mutate(whole: bytes, kind: int, rng: np.random.Generator) -> bytes:
    """A file cut short, with flipped bits, with a run of noise, or whose boxes claim sizes that are absurd."""
    data = bytearray(whole)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        for _ in range(rng.integers(1, 40)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 2:
        at, length = rng.integers(len(data)), rng.integers(1, 400)
        data[at : at + length] = rng.bytes(length)
    else:
        box = (b"moov", b"trak", b"stsd", b"avc1", b"stts", b"stsz", b"stco", b"tkhd", b"mdhd", b"mvhd", b"avcC")
        at = data.find(box[rng.integers(len(box))])
        claims = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\xff\xff\xff")
        where = at + int(rng.integers(-4, 60))
        data[where : where + 4] = claims[rng.integers(len(claims))]
    return bytes(data)


@pytest.mark.parametrize(
    "words", [["--labels", "action"], ["--multi_label", "acts"], ["--targets", "EF"], ["--num_classes", "class=3"]]
)
def test_columns_of_a_list_are_refused_for_a_folder(words, tmp_path, capsys):
    (tmp_path / "walk").mkdir()
    assert main(["data", "check", str(tmp_path), *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_files_outside_of_classes_are_reported(tmp_path, capsys):
    for name in ("a/1.mp4", "b/2.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encode_noise(ord(name[0])))
    # Two videos in all: too few of validation and of the test, whatever lies beside them.
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "not read" not in capsys.readouterr().out
    ignored = [tmp_path / name for name in ("a/1.mp4.part", "b/labels.txt", "loose.mp4")]
    for path in [*ignored, tmp_path / ".DS_Store", tmp_path / "a" / "._1.mp4"]:
        path.write_bytes(b"")
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "not read" in out and all(f"  {path}\n" in out for path in ignored) and "/._1" not in out
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["problems"]) == 2 and report["ignored"] == [str(path) for path in ignored]


# Runs a command and prints its peak memory last. Linux counts the memory of the process that starts a command to that
# command's peak, so a small process must start it, not this one.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_are_counted_in_bounded_time_and_memory(count, tmp_path):
    """Half a second a file and 1.5 GiB at most; every file is intact or broken."""
    rng, whole = np.random.default_rng(0), [encode_noise(i) for i in range(3)]
    whole += [remux(whole[0], container) for container in ("matroska", "mpegts", "flv")]
    (tmp_path / "class").mkdir()
    for i in range(count - len(HOSTILE)):
        (tmp_path / "class" / f"{i:04}.mp4").write_bytes(mutate(whole[i % 6], i % 4, rng))
    for name, data in HOSTILE.items():
        (tmp_path / "class" / f"{name}.mp4").write_bytes(data)
    words = [sys.executable, "-m", "vitx.cli", "data", "check", str(tmp_path), "--whole", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, timeout=30 + count / 2
    )
    assert done.returncode == 1, done.stderr[-2000:]
    report = json.loads(done.stdout)
    broken = {pathlib.Path(video["path"]).stem for video in report["broken"]}
    assert set(HOSTILE) <= broken
    assert report["videos"] == count and count / 4 < len(report["broken"]) < count
    assert sum(report["codecs"].values()) + len(report["broken"]) == count
    assert int(done.stderr.splitlines()[-1]) < 1.5 * 2**20  # KiB
    assert "Traceback" not in done.stderr


def test_a_list_of_several_classes_and_numbers_is_summarised(folder, capsys):
    paths = sorted(folder.rglob("*.mp4"))
    rows = [
        f"{path.relative_to(folder)},{'sit;run' if i % 2 else 'run'},{i},{path.parts[-3]}"
        for i, path in enumerate(paths)
    ]
    (folder / "list.csv").write_text("\n".join(["path,acts,EF,split", *rows]))
    words = ["data", "check", str(folder / "list.csv"), "--multi_label", "acts", "--targets", "EF"]
    assert main([*words, "--json", "--sheet", str(folder / "sheet.png")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["classes"]["acts"]["run"].values()) == 17
    assert sum(report["classes"]["acts"]["sit"].values()) == 8 and set(report["classes"]) == {"acts"}
    spread = report["values"]["EF"].values()
    assert (min(row["least"] for row in spread), max(row["most"] for row in spread)) == (0, 16)
    assert main(words) == 0
    assert "EF, train: " in capsys.readouterr().out
    assert main([*words, "--labels", "EF"]) == 2 and "labels" in capsys.readouterr().err
