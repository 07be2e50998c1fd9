"""Official annotation files, small ones of the same format, become lists that train."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from vitx.cli import main
from vitx.data.annotations import FORMATS
from vitx.data.files import Table

EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
OFFICIAL = {
    "kinetics": {
        "train.csv": "label,youtube_id,time_start,time_end,split\n"
        '"abseiling",-4wsuPCjDBc,5,15,train\nair drumming,_zz,61,71,train\n',
        "validate.csv": "label,youtube_id,time_start,time_end,split\nabseiling,gone0000000,0,10,validate\n"
        "air drumming,here,3,13,validate\n",
    },
    "something_something_v2": {
        "something-something-v2-train.json": json.dumps(
            [
                {
                    "id": "78687",
                    "label": "holding potato",
                    "template": "Holding [something]",
                    "placeholders": ["potato"],
                },
                {"id": "42326", "label": "putting a, b", "template": "Putting [something] next to [something]"},
            ]
        ),
        "something-something-v2-validation.json": json.dumps([{"id": "74225", "template": "Holding [something]"}]),
        "something-something-v2-test.json": json.dumps([{"id": "1"}]),
    },
    "ucf101": {
        "classInd.txt": "1 ApplyEyeMakeup\n",
        "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi 1\n",
        "testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n",
    },
    "hmdb51": {
        "brush_hair_test_split1.txt": "April_09.avi 1 \nAtheism.avi 2 \nunused.avi 0 \n",
        "wave_test_split1.txt": "20060723.avi 1 \n",
        "wave_test_split2.txt": "20060723.avi 2 \n",
    },
    "epic_kitchens": {
        "EPIC_100_train.csv": EPIC
        + "\nP01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:01:03.37,8,202,open door,open,3,door,3,['door'],[3]\n",
        "EPIC_100_validation.csv": EPIC
        + "\nP02_01_0,P02,P02_01,00:00:00.5,01:00:00.00,01:00:02.50,0,9,take cup,take,0,cup,13,['cup'],[13]\n",
    },
    "charades": {
        "Charades_v1_classes.txt": "c092 Walking through a doorway\nc147 Sitting down; or so\nc000 Never seen\n",
        "Charades_v1_train.csv": CHARADES
        + '\nYSKX3,HR43,Bedroom,6,7,Yes,"A, b",bed,x,c092 11.90 21.20;c147 0.00 12.60;c092 1.00 2.00,30.42\n'
        + "46GP8,ZAWX,Kitchen,7,7,Yes,Text,,y,,24.83\n",
        "Charades_v1_test.csv": CHARADES + "\nAAAAA,TEST,Kitchen,7,7,Yes,Text,,y,c147 0.50 3.00,9.0\n",
    },
    "echonet_dynamic": {
        "FileList.csv": "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n"
        "0X100009310A3BD7FC,78.498,14.881,69.210,112,112,50,174,VAL\n"
        "0X1002E8FBACD08477,59.101,40.383,98.742,112,112,50,215,TRAIN\n"
        "0X1005D03EED19C65B,62.363,14.267,37.909,112,112,50,104,TEST\n",
    },
}
EXPECTED = {  # (file, split, labels)
    "kinetics": {
        ("-4wsuPCjDBc_000005_000015.mp4", "train", "abseiling"),
        ("_zz_000061_000071.mp4", "train", "air drumming"),
        ("here_000003_000013.mp4", "validation", "air drumming"),
    },
    "something_something_v2": {
        ("78687.webm", "train", "Holding something"),
        ("42326.webm", "train", "Putting something next to something"),
        ("74225.webm", "validation", "Holding something"),
    },
    "ucf101": {
        ("v_ApplyEyeMakeup_g08_c01.avi", "train", "ApplyEyeMakeup"),
        ("v_ApplyEyeMakeup_g08_c02.avi", "train", "ApplyEyeMakeup"),
        ("v_ApplyEyeMakeup_g01_c01.avi", "test", "ApplyEyeMakeup"),
    },
    "hmdb51": {
        ("April_09.avi", "train", "brush_hair"),
        ("Atheism.avi", "test", "brush_hair"),
        ("20060723.avi", "train", "wave"),
    },
    "epic_kitchens": {("P01_01.MP4", "train", "3 3 3 3"), ("P02_01.MP4", "validation", "0 13 0 13")},
    "charades": {
        ("YSKX3.mp4", "train", "Walking through a doorway;Sitting down, or so"),
        ("46GP8.mp4", "train", ""),
        ("AAAAA.mp4", "test", "Sitting down, or so"),
    },
    "echonet_dynamic": {
        ("0X100009310A3BD7FC.avi", "validation", "78.498 14.881 69.210"),
        ("0X1002E8FBACD08477.avi", "train", "59.101 40.383 98.742"),
        ("0X1005D03EED19C65B.avi", "test", "62.363 14.267 37.909"),
    },
}


@pytest.fixture
def folders(tmp_path):
    """Annotations of every format, and empty files for their videos."""
    for name, files in OFFICIAL.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        (tmp_path / "videos" / name / "deep").mkdir(parents=True)
        for video, *_ in EXPECTED[name]:
            (tmp_path / "videos" / name / "deep" / video).touch()
    return tmp_path


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_annotations_become_a_list(name, folders, capsys):
    words = ["data", "list", name, str(folders / name), str(folders / "videos" / name), str(folders / "list.csv")]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert f"{len(EXPECTED[name])} rows" in err
    assert ("gone0000000_000000_000010" in err) == (name == "kinetics")
    with open(folders / "list.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = FORMATS[name]
    labels = [*columns.labels, *columns.multi_label, *columns.targets]
    found = {(row["path"].split("/")[-1], row["split"], " ".join(row[label] for label in labels)) for row in rows}
    assert found == EXPECTED[name]
    table = dataclasses.replace(
        eval(err.split(" reads it with ")[1].split("\n")[0], {"Table": Table}), validation=0.0, test=0.0
    )
    splits = table.splits()
    assert sum(map(len, splits.values())) == len(rows)
    assert all(path.startswith(str(folders)) for videos in splits.values() for path in videos.paths)
    if name == "epic_kitchens":
        assert splits["train"].segments == ((0.14, 63.37),) and splits["validation"].segments == ((3600.0, 3602.5),)
    if name == "charades":
        assert splits["train"].label_names == {"actions": ("Sitting down, or so", "Walking through a doorway")}
        np.testing.assert_array_equal(splits["train"][0]["labels"]["actions"], np.float32([1, 1]))
        np.testing.assert_array_equal(splits["train"].labels["actions"][1], [0, 0])
    if name == "echonet_dynamic":
        assert splits["test"][0]["labels"]["EDV"] == np.float32([37.909])
        assert splits["test"].label_names == {"EF": ("EF",), "ESV": ("ESV",), "EDV": ("EDV",)}
    assert main(words) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "kinetics",
            "train.csv",
            "label,id\na,b\n",
            "youtube_id, time_start, time_end",
        ),
        ("kinetics", "train.csv", "label,youtube_id,time_start,time_end\na,b\n", "line 2"),
        ("kinetics", "train.csv", "label,youtube_id,time_start,time_end\na, b,x,1,2\n", "line 2"),
        ("kinetics", "train.csv", "label,youtube_id,time_start,time_end\na,b,x,2\n", "found the time 'x'"),
        ("kinetics", "train.csv", "label,youtube_id,time_start,time_end\na,b,1,inf\n", "found the time 'inf'"),
        (
            "something_something_v2",
            "something-something-v2-train.json",
            "{}",
            "id, template",
        ),
        (
            "something_something_v2",
            "something-something-v2-train.json",
            '[{"id": 1, "template": null}]',
            "{'id': 1, 'template': None}",
        ),
        ("something_something_v2", "something-something-v2-train.json", "[", "cannot be read"),
        ("ucf101", "trainlist01.txt", "a b c\n", "expected Class/v_Class_g01_c01.avi 1"),
        ("hmdb51", "wave_test_split1.txt", "20060723.avi\n", "expected NAME.avi and 0, 1 or 2"),
        (
            "epic_kitchens",
            "EPIC_100_train.csv",
            EPIC + "\n" + "x," * 14 + "x\n",
            "found the time 'x', expected HH:MM:SS",
        ),
        (
            "charades",
            "Charades_v1_test.csv",
            CHARADES + "\n" + "x," * 10 + "x\n",
            "found the actions 'x', expected c092",
        ),
        ("echonet_dynamic", "FileList.csv", "FileName,EF,ESV,EDV,Split\na,1,2,3,train\n", "found the split 'train'"),
    ],
)
def test_malformed_annotations_name_the_file_and_the_line(name, file, text, message, folders, capsys):
    (folders / name / file).write_text(text)
    assert main(["data", "list", name, str(folders / name), str(folders / "videos"), str(folders / "list.csv")]) == 2
    assert message in (err := capsys.readouterr().err) and file in err
    assert not (folders / "list.csv").exists()


def test_a_video_that_exists_twice_is_refused(folders, capsys):
    (folders / "videos" / "ucf101" / "v_ApplyEyeMakeup_g01_c01.mp4").touch()
    words = ["data", "list", "ucf101", str(folders / "ucf101"), str(folders / "videos"), str(folders / "list.csv")]
    assert main(words) == 2 and "v_ApplyEyeMakeup_g01_c01" in capsys.readouterr().err


def test_missing_annotations_name_the_expected_files(folders, capsys):
    for name, annotations, videos, message in (
        ("kinetic", "kinetics", "videos", "did you mean kinetics?"),
        ("ucf101", "kinetics", "videos", "has no trainlist01.txt"),
        ("hmdb51", "kinetics", "videos", "has no CLASS_test_split1.txt"),
        ("ucf101", "ucf101", "kinetics", "none of the 3 videos that"),
    ):
        words = ["data", "list", name, str(folders / annotations), str(folders / videos), str(folders / "list.csv")]
        assert main(words) == 2 and message in capsys.readouterr().err
