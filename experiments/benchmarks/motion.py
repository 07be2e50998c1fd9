"""Decoding with and without the codec's motion: python experiments/benchmarks/motion.py [--videos 8 --rounds 20]

Draws 10-second videos of 340x256 pixels (H.264 at x264's defaults) and reads the same clips with and without
`data.motion` in turn: 16 frames, 4 apart, from a random start, a random box of 0.3 to 1 of the area at 224x224. Time is
the processor's, of one thread.
"""

import argparse
import statistics
import time

import numpy as np
from scenes import encode_scene
from tqdm import tqdm

from vitx.data.augmentation import Augmentation
from vitx.data.encoding import transcode
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.preparation import Preparation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    files = [encode_scene(seed) for seed in tqdm(range(options.videos), desc="encode videos")]
    ready = Preparation()
    how = {"short_side": ready.short_side, "codec": ready.codec, "crf": ready.crf, "keyint": ready.keyint}
    sets = {"files": files, "`vitx data prepare`": [transcode(file, **how) for file in files]}
    clip = {"num_frames": 16, "frame_stride": 4, "image_size": (224, 224)}
    readers = [
        Data(Folder(""), motion=motion, augmentation=Augmentation(crop_area=(0.3, 1.0)), **clip)
        for motion in (False, True)
    ]
    rng = np.random.default_rng(0)
    print("| videos | ms a clip without motion, median (quartiles) | with motion | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, videos in sets.items():
        pairs = []
        for number in range(options.rounds + 1):
            for index, start in enumerate(rng.uniform(size=len(videos))):
                seconds = [0.0, 0.0]
                for motion in (0, 1)[:: 1 if (number + index) % 2 else -1]:  # each first in turn
                    began = time.thread_time()
                    readers[motion].read_clip({"video": videos[index]}, start, np.random.default_rng(number))
                    seconds[motion] = time.thread_time() - began
                if number:  # the first round warms up
                    pairs.append(seconds)
        columns = [*(1e3 * np.array(pairs)).T, np.divide(*np.array(pairs).T[::-1])]
        cells = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*statistics.quantiles(column, n=4)) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
