"""What a decoded frame carries beside its pixels: how it was held, motion vectors."""

import contextlib

import av
from av.sidedata.sidedata import SideDataContainer


def side_data_of(frame: av.VideoFrame) -> SideDataContainer:
    """Returns what a frame carries beside its pixels, up to the first kind that PyAV has no name for."""
    # `frame.side_data` (PyAV 18.1, 2026-11) would be a cycle, which keeps the frame until garbage is collected.
    try:
        return SideDataContainer(frame)
    except ValueError:
        # PyAV 18.1 and 19.0 (2026-11) have no name for the EXIF data of pictures, which come behind the display matrix.
        side_data = SideDataContainer.__new__(SideDataContainer)
        with contextlib.suppress(ValueError):
            side_data.__init__(frame)
        return side_data
