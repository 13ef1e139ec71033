"""Video files to frames and back, with PyAV: probe, read by frame number, encode, convert to pixels.

Frames are uint8 (T, H, W, 3) RGB. Frame numbers count the frames a decoder shows, from 0. One decoding thread per
file: data-loader workers bring the parallelism, and threads only cost time on small clips.
"""

from vidlab.data.video.container import DecodeLimits
from vidlab.data.video.pixels import to_frames, to_pixels
from vidlab.data.video.reading import ProbedVideo, VideoInfo, probe, probe_closely, read_frames
from vidlab.data.video.writing import encode, encode_frames

__all__ = [
    "DecodeLimits",
    "ProbedVideo",
    "VideoInfo",
    "encode",
    "encode_frames",
    "probe",
    "probe_closely",
    "read_frames",
    "to_frames",
    "to_pixels",
]
