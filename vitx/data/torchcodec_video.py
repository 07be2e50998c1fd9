"""An open video that torchcodec decodes (`pip install torchcodec`; it needs FFmpeg's shared libraries)."""

import os
from collections.abc import Iterator

import av

from vitx.data.container import VideoError
from vitx.data.pyav_video import PyAVVideo
from vitx.data.upright import Orientation
from vitx.errors import UserError

CHUNK = 64  # frames that are decoded at once, at full size


class TorchcodecVideo(PyAVVideo):
    """A video whose times are PyAV's and whose pixels are torchcodec's.

    torchcodec returns frames upright, in one decoder thread, `CHUNK` at once, and is not interrupted at a deadline.
    """

    def decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        if not self._is_read_alike():
            yield from super().decode(wanted)
            return
        try:
            decoder = self._open()
            for first in range(0, len(wanted), CHUNK):
                for pixels in decoder.get_frames_at(wanted[first : first + CHUNK]).data.numpy():
                    yield av.VideoFrame.from_ndarray(pixels, format="rgb24")
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoError(f"torchcodec: {str(error).strip().splitlines()[0]}") from error

    def _is_read_alike(self) -> bool:
        """Returns whether torchcodec finds the same frames by number, and shows them the same way up."""
        if not self.index.keyframes or self.aspect != 1 or self.options.stream is not None:
            return False
        first = next(super().decode([0]))
        turn = Orientation.of(first)
        return sum(turn) % 2 == 0

    def _open(self):
        try:
            from torchcodec.decoders import VideoDecoder

            source = self.source if isinstance(self.source, bytes) else os.fspath(self.source)
            return VideoDecoder(source, num_ffmpeg_threads=1, dimension_order="NHWC")
        except (ImportError, OSError, RuntimeError) as error:
            # torchcodec 0.8 (2026-11) raises RuntimeError both for a video and for FFmpeg's missing libraries.
            if isinstance(error, RuntimeError) and "libtorchcodec" not in str(error):
                raise
            raise UserError(
                "data.decoder is torchcodec, which cannot be used here; pip install torchcodec, and FFmpeg's shared "
                f"libraries: {str(error).strip().splitlines()[0]}"
            ) from error
