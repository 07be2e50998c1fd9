"""Files, folders and lists of a command line become videos; what is missing is named."""

import pytest

from vitx.data.find_files import find_files, name_outputs
from vitx.errors import UserError


@pytest.fixture
def home(tmp_path):
    for name in ("a.mp4", "sub/b.MKV", "sub/.hidden.mp4", ".cache/c.mp4", "notes.txt", "frames/1.png", "frames/2.png"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_folder_stands_for_all_videos_below_it_and_a_list_for_its_rows(home):
    (home / "list.csv").write_text("path,class\nvideos/sub/b.MKV,x\nvideos/a.mp4,y\n")
    (home / "list.jsonl").write_text('{"path": "videos/a.mp4"}\n')
    # Pictures beside videos are no video of their own, see `find_videos`.
    in_folder = [str(home / "videos" / name) for name in ("a.mp4", "sub/b.MKV")]
    assert find_files([home / "videos"]).files == tuple(in_folder)
    assert find_files([home / "list.csv"]).files == tuple(in_folder[::-1])
    assert find_files([home / "list.jsonl", home / "videos"]).files == tuple(in_folder)
    assert find_files([home / "videos" / "frames"]).files == (str(home / "videos" / "frames"),)


def test_what_is_missing_or_empty_is_an_error_of_its_own(home):
    found = find_files([home / "empty", home / "no.mp4", home / "videos" / "a.mp4"])
    assert found.files == (str(home / "videos" / "a.mp4"),)
    assert list(found.errors) == [str(home / "empty"), str(home / "no.mp4")]
    assert str(home / "empty" / "clip.mp4") in found.errors[str(home / "empty")]


def test_missing_videos_of_a_list_are_named_once(home):
    (home / "list.csv").write_text("path\nvideos/a.mp4\nx.mp4\ny.mp4\n")
    found = find_files([home / "list.csv"])
    assert len(found.files) == 1 and list(found.errors) == [str(home / "x.mp4"), str(home / "y.mp4")]
    (note,) = found.notes
    assert note.startswith("2 of 3 videos") and str(home / "x.mp4") in note and str(home / "list.csv") in note


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path\nx.mp4\n", "1 of 1 videos"),
        ("file\nx.mp4\n", "'path'.*file"),
        ("path\n", "no videos"),
        ("path\n''\n", "''"),
    ],
)
def test_lists_without_a_video_are_refused(home, text, found):
    (home / "list.csv").write_text(text)
    with pytest.raises(UserError, match=found):
        find_files([home / "list.csv"])


def test_two_videos_never_get_one_file(tmp_path):
    named = name_outputs(["x/clip.mp4", "x/clip.mkv", "x/sub/clip.mp4"], tmp_path, "_labels.mp4")
    assert [str(path.relative_to(tmp_path)) for path in named.values()] == [
        "clip.mp4_labels.mp4",
        "clip.mkv_labels.mp4",
        "sub/clip_labels.mp4",
    ]
    with pytest.raises(UserError, match=r"clip\.mp4_labels\.mp4 would be written for two"):
        name_outputs(["x/clip.mp4", "x/clip.mkv", "x/clip.mp4.avi"], tmp_path, "_labels.mp4")
