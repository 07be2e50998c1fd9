"""Every row of the tables in docs/videos.md is checked here: files are written, read, and compared with a plain pass.

python -m tests.data.test_videos_page       # prints the tables

"""

import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.test_decoding import encode, numbered_frames, read_numbers
from tests.data.test_file_kinds import animation, write_pictures
from tests.data.test_same_frames import NUM_FRAMES, pack_pairs
from tests.data.test_upright import ORIENTATIONS, turned
from vitx.data.decoding import VideoError, decode_frames, open_video, probe
from vitx.data.encoding import encode_video
from vitx.data.file_kinds import ENDINGS, UNREAD, read_video
from vitx.data.lists import read_list
from vitx.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "videos.md"
X265 = {"x265-params": "log-level=none:keyint=12"}
REALTIME = {"deadline": "realtime", "cpu-used": "8", "g": "12"}
FILES = (  # (container, encoder, pixel format, the encoder's options)
    ("mp4", "libx264", "yuv420p", {"g": "12"}),
    ("mp4", "libx264", "yuv420p", {"x264-params": "keyint=9:open-gop=1:bframes=3"}),
    ("mp4", "libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=10"}),
    ("mp4", "libx264", "yuv422p10le", {}),
    ("mp4", "libx264", "gray", {}),
    ("mp4", "libx265", "yuv420p10le", X265),
    ("mp4", "libsvtav1", "yuv420p", {"preset": "13"}),
    ("mp4", "mpeg4", "yuv420p", {"g": "12"}),
    ("mov", "prores", "yuv422p10le", {}),
    ("mov", "qtrle", "rgb24", {}),
    ("mov", "png", "rgb24", {}),
    ("3gp", "libx264", "yuv420p", {}),
    ("matroska", "libx264", "yuv444p", {}),
    ("matroska", "ffv1", "gbrap16le", {}),
    ("webm", "libvpx", "yuv420p", REALTIME),
    ("webm", "libvpx-vp9", "yuva420p", REALTIME),
    ("avi", "mpeg4", "yuv420p", {"g": "12"}),
    ("avi", "mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    ("avi", "msmpeg4", "yuv420p", {}),
    ("avi", "libx264", "yuv420p", {"bf": "0"}),
    ("avi", "libx264", "yuv420p", {"bf": "2"}),
    ("avi", "mjpeg", "yuvj420p", {}),
    ("avi", "huffyuv", "yuv422p", {}),
    ("avi", "rawvideo", "yuv420p", {}),
    ("mpegts", "libx264", "yuv420p", {"g": "12"}),
    ("mpegts", "libx265", "yuv420p", X265),
    ("mpegts", "mpeg2video", "yuv420p", {"bf": "2"}),
    ("mpeg", "mpeg2video", "yuv420p", {"bf": "2"}),
    ("mpeg", "mpeg1video", "yuv420p", {}),
    ("mxf", "mpeg2video", "yuv420p", {"bf": "2"}),
    ("mxf", "libx264", "yuv420p", {}),
    ("flv", "flv", "yuv420p", {}),
    ("flv", "libx264", "yuv420p", {}),
    ("nut", "libx264", "yuv420p", {}),
    ("asf", "wmv2", "yuv420p", {}),
    ("ivf", "libvpx", "yuv420p", REALTIME),
    ("h264", "libx264", "yuv420p", {}),
    ("hevc", "libx265", "yuv420p", X265),
    ("gif", "gif", "rgb8", {}),
)
CODECS = {"libx264": "H.264", "libx265": "H.265", "libsvtav1": "AV1", "libvpx": "VP8", "libvpx-vp9": "VP9"}
OTHERS = {  # videos that PyAV's muxers do not write so
    "AVI, two frames in one packet (DivX, XviD)": lambda: pack_pairs("avi"),
    "animated PNG": lambda: animation("PNG"),
    "animated AVIF": lambda: animation("AVIF"),
    "animated WebP": lambda: animation("WEBP"),
}


LISTS = (  # (ending, what is between cells, encoding, end of a line)
    (".csv", ",", "utf-8", "\n"),
    (".csv", ", ", "utf-8", "\r\n"),
    (".csv", ";", "utf-8-sig", "\r\n"),
    (".csv", "|", "utf-8", "\r"),
    (".CSV", "\t", "utf-16", "\r\n"),
    (".tsv", "\t", "utf-8", "\n"),
    (".tsv", ",", "utf-8", "\n"),
    (".jsonl", "", "utf-8", "\n"),
    (".ndjson", "", "utf-8-sig", "\r\n"),
    (".csv", " ", "utf-8", "\n"),
    (".csv", ",", "latin-1", "\n"),
    (".csv", ",", "utf-32", "\n"),
    (".txt", ",", "utf-8", "\n"),
    (".json", "", "utf-8", "\n"),
)
WORDS = {
    **{",": "comma", ", ": "comma and space", ";": "semicolon", "|": "bar", "\t": "tab", " ": "space", "": "JSON"},
    **{"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16 with a byte order mark"},
    **{"latin-1": "Latin-1", "utf-32": "UTF-32", "\n": "LF", "\r\n": "CR LF", "\r": "CR"},
}


def row_of_file(container: str, encoder: str, pixel_format: str, options: dict[str, str]) -> str:
    """Returns the row of a kind of file, after reading it by any way there is."""
    video = encode(numbered_frames(NUM_FRAMES, 128), encoder, container, pixel_format, options)
    words = " ".join(f"{name}={value}" for name, value in options.items() if "log" not in value)
    return f"| {container} | {CODECS.get(encoder, encoder)} | {pixel_format} | {words} | {how_it_is_read(video)} |"


def how_it_is_read(video: bytes | str) -> str:
    """Returns how frames are found, or "no"; fails where any frame is another than that of a plain pass."""
    try:
        with open_video(video) as opened:
            count, is_sought = len(opened.times), bool(opened.index.keyframes)
            whole = opened.read(range(count))[0]
    except VideoError:
        return "no"
    with av.open(io.BytesIO(video)) as container:
        assert count == sum(1 for _ in container.decode(container.streams.best("video")))
    assert read_numbers(whole[:, :32, :32]) == list(range(count))
    for indices in ([count - 1], [count // 2, 2], range(1, count, 7)):
        np.testing.assert_array_equal(decode_frames(video, indices), whole[list(indices)])
    return "by seeking" if is_sought else "by counting"


def rows_of_files() -> Iterator[str]:
    for file in FILES:
        yield row_of_file(*file)
    for name, make in OTHERS.items():
        yield f"| {name} | | | | {how_it_is_read(make())} |"


def rows_of_orientations() -> Iterator[str]:
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :16, :16], frames[:, :16, 48:] = 250, 120
    video = encode_video(frames, options={"qp": "0"})
    for name, (matrix, show) in ORIENTATIONS.items():
        shown = decode_frames(turned(video, matrix), [0, 1]).astype(int)
        is_right = np.array_equal(shown.shape, show(frames).shape) and np.abs(shown - show(frames)).max() <= 3
        yield f"| {' '.join(map(str, matrix))} | {name} | {'yes' if is_right else 'no'} |"


def rows_of_lists() -> Iterator[str]:
    fields = [{"path": f"\u00e9t\u00e9/{number}.mp4", "class": name} for number, name in enumerate("ab")]
    with tempfile.TemporaryDirectory() as folder:
        for ending, between, encoding, line_end in LISTS:
            cells = [list(fields[0]), *(list(row.values()) for row in fields)]
            lines = [between.join(row) for row in cells] if between else map(json.dumps, fields)
            file = Path(folder, f"list{ending}")
            file.write_bytes("".join(line + line_end for line in lines).encode(encoding))
            try:
                is_read = [dict(row) for _, row in read_list(file, ("path", "class"), "path")] == fields
            except UserError:
                is_read = False
            row = (ending, WORDS[between], WORDS[encoding], WORDS[line_end], "yes" if is_read else "no")
            yield f"| {' | '.join(row)} |"


def rows_of_endings() -> Iterator[str]:
    yield f"| {' '.join(ENDINGS)} | as videos |"
    for reason in dict.fromkeys(UNREAD.values()):
        yield f"| {' '.join(ending for ending, why in UNREAD.items() if why == reason)} | not: {reason} |"


def in_page(rows: Iterable[str]) -> list[str]:
    """Returns the rows that the page lacks."""
    lines = PAGE.read_text().splitlines()
    return [row for row in rows if row not in lines]


@pytest.mark.parametrize("file", FILES, ids=lambda file: "-".join(file[:3]))
def test_a_kind_of_file_is_read_as_the_page_states(file):
    assert not in_page([row_of_file(*file)])


def test_the_page_has_a_row_of_everything_that_is_tried_and_of_nothing_else():
    rows = [f"| {name} | | | | {how_it_is_read(make())} |" for name, make in OTHERS.items()]
    rows += [*rows_of_orientations(), *rows_of_endings(), *rows_of_lists()]
    assert not in_page(rows)
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + len(FILES) + 2 * 4  # and four tables' heads


def test_a_folder_of_pictures_is_read_as_the_page_states(tmp_path):
    write_pictures(tmp_path / "frames")
    assert probe(read_video(str(tmp_path / "frames"))).num_frames == 12


if __name__ == "__main__":
    print("\n".join(rows_of_files()), *rows_of_orientations(), *rows_of_endings(), *rows_of_lists(), sep="\n")
