"""Frames by torchcodec in place of PyAV (`pip install torchcodec`; it needs FFmpeg's shared libraries)."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from vitx.errors import UserError


def decoded(video: bytes | str | os.PathLike, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields the frames of these numbers, [height, width, 3], upright, in one decoder thread.

    Raises:
        UserError: torchcodec or FFmpeg's libraries are not there.
        RuntimeError, ValueError: torchcodec cannot read the video.
    """
    try:
        from torchcodec.decoders import VideoDecoder

        source = video if isinstance(video, bytes) else os.fspath(video)
        decoder = VideoDecoder(source, num_ffmpeg_threads=1, dimension_order="NHWC")
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "libtorchcodec" not in str(error):
            raise  # it is about the video
        raise UserError(
            "data.decoder is torchcodec, which cannot be used here; pip install torchcodec, and FFmpeg's shared "
            f"libraries: {str(error).strip().splitlines()[0]}"
        ) from error
    yield from decoder.get_frames_at(list(wanted)).data.numpy()
