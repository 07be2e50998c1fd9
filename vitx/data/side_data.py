"""Side data of decoded frames: orientation of the camera, motion vectors."""

import contextlib

import av
from av.sidedata.sidedata import SideDataContainer


def side_data_of(frame: av.VideoFrame) -> SideDataContainer:
    """Returns the side data of a frame, up to the first kind that PyAV has no name for."""
    # `frame.side_data` (PyAV 18.1, 2026-11) would be a cycle, which keeps the frame until garbage is collected.
    try:
        return SideDataContainer(frame)
    except ValueError:
        # PyAV 18.1 and 19.0 (2026-11) have no name for the EXIF data of pictures, which come behind the display matrix.
        side_data = SideDataContainer.__new__(SideDataContainer)
        with contextlib.suppress(ValueError):
            side_data.__init__(frame)
        return side_data
