"""Decoding and augmenting, compared with PyTorchVideo's reader and torchcodec: clips per second of one core.

    pip install -e '.[peers]' torchcodec
    python experiments/benchmarks/decoding.py FOLDER [--videos 16 --rounds 20]

Fills FOLDER with 10-second videos of 340x256 pixels (H.264 at x264's defaults: a keyframe every 250 frames), prepares
the same files with `vitx data prepare`, and reads the same clips with every reader in turn: 16 frames, 4 apart, from
the same random start, a random box of 0.3 to 1 of the area scaled to 224x224, half of them flipped. Time is the
process's on all threads, of which each library has one. torchcodec needs FFmpeg's shared libraries.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
import torchvision
from scenes import LENGTH, RATE, encode_scene
from torchvision.transforms import v2
from tqdm import tqdm

from vitx.data.augmentation import Augmentation
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.preparation import Preparation, prepare
from vitx.data.prepared import Prepared

FRAMES, STRIDE, SIZE, AREA = 16, 4, 224, (0.3, 1.0)
Reader = Callable[[int, float], None]


def vitx_reader(dataset: Folder | Prepared) -> Reader:
    source = dataset.open("train")
    augmentation = Augmentation(crop_area=AREA, flip=0.5)
    data = Data(dataset, num_frames=FRAMES, frame_stride=STRIDE, image_size=(SIZE, SIZE), augmentation=augmentation)
    order = sorted(range(len(source)), key=source.name)
    rng = np.random.default_rng(0)

    def read(index: int, start: float) -> None:
        clip, _ = augmentation.mirror(rng, data.read_clip(source[order[index]], start, rng), {}, {})
        assert clip.shape == (FRAMES, SIZE, SIZE, 3)

    return read


def pytorchvideo_reader(paths: list[str]) -> Reader:
    # PyTorchVideo 0.1.5 imports a module that is private in newer versions of torchvision.
    import torchvision.transforms._functional_tensor as functional

    sys.modules["torchvision.transforms.functional_tensor"] = functional
    from pytorchvideo.data.encoded_video import EncodedVideo
    from pytorchvideo.transforms import RandomResizedCrop, UniformTemporalSubsample

    crop = RandomResizedCrop(SIZE, SIZE, AREA, (3 / 4, 4 / 3))
    transform = v2.Compose([UniformTemporalSubsample(FRAMES), crop, v2.RandomHorizontalFlip()])
    length = ((FRAMES - 1) * STRIDE + 1) / RATE

    def read(index: int, start: float) -> None:
        opened = EncodedVideo.from_path(paths[index], decode_audio=False, decoder="pyav")
        begin = start * (LENGTH / RATE - length)
        clip = transform(opened.get_clip(begin, begin + length)["video"])
        assert clip.shape == (3, FRAMES, SIZE, SIZE)
        opened.close()

    return read


def torchcodec_reader(paths: list[str], seek_mode: str) -> Reader:
    from torchcodec.decoders import VideoDecoder

    crop = v2.RandomResizedCrop(SIZE, AREA, (3 / 4, 4 / 3), antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def read(index: int, start: float) -> None:
        decoder = VideoDecoder(paths[index], num_ffmpeg_threads=1, seek_mode=seek_mode)
        first = int(start * (LENGTH - (FRAMES - 1) * STRIDE))
        clip = transform(decoder.get_frames_at([min(first + STRIDE * i, LENGTH - 1) for i in range(FRAMES)]).data)
        assert clip.shape == (FRAMES, 3, SIZE, SIZE)

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    videos, ready = options.folder / "videos", options.folder / "ready"
    (videos / "class").mkdir(parents=True, exist_ok=True)
    for seed in tqdm(range(options.videos), desc="encode videos"):
        if not (path := videos / "class" / f"{seed:03}.mp4").exists():
            path.write_bytes(encode_scene(seed))
    dataset = Folder(str(videos), validation=0.0, test=0.0)
    prepare(dataset.splits(), ready, Preparation())
    paths = sorted(dataset.open("train").paths)

    readers = {
        "vitx, files": vitx_reader(dataset),
        "vitx, ArrayRecord of `vitx data prepare`": vitx_reader(Prepared(str(ready))),
        "PyTorchVideo 0.1.5, pyav": pytorchvideo_reader(paths),
        "torchcodec, exact": torchcodec_reader(paths, "exact"),
        "torchcodec, approximate": torchcodec_reader(paths, "approximate"),
    }
    rng, rates = np.random.default_rng(1), {name: [] for name in readers}
    for number in tqdm(range(options.rounds + 1), desc="rounds"):
        spent = dict.fromkeys(readers, 0.0)
        for index, start in enumerate(rng.uniform(size=options.videos)):
            for name in np.roll(list(readers), index):
                began = time.process_time()
                readers[name](index, float(start))
                spent[name] += time.process_time() - began
        for name, seconds in spent.items():
            if number:  # the first round warms up
                rates[name].append(options.videos / seconds)

    sizes = [sum(path.stat().st_size for path in folder.rglob("*.*")) for folder in (videos, ready)]
    libraries = f"av {av.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(
        f"Python {platform.python_version()}, {libraries}, {os.cpu_count()} cores; "
        f"files {sizes[0]:,} bytes, shards {sizes[1]:,}"
    )
    ours = rates["vitx, files"]
    print("| reader | clips a core's second, median (quartiles) | vitx on files against it, median (quartiles) |")
    print("| --- | ---: | ---: |")
    for name, values in rates.items():
        quarters = statistics.quantiles(values, n=4)
        ratios = statistics.quantiles([a / b for a, b in zip(ours, values, strict=True)], n=4)
        print(f"| {name} | {quarters[1]:.1f} ({quarters[0]:.1f} to {quarters[2]:.1f}) ", end="")
        print(f"| {ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f}) |")


if __name__ == "__main__":
    main()
