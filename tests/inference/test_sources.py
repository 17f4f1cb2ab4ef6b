"""What gives frames: times of a video, numbered images, a stream that is faster than its reader."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path
from socketserver import ThreadingTCPServer

import cv2
import pytest
from network_camera import RTSPCamera, number, numbered

from tdos_d2.errors import UserError
from tdos_d2.inference.sources import (
    ImageSequence,
    LiveStream,
    Span,
    Video,
    live_source,
    natural_order,
    stream_name,
)


@pytest.fixture(scope="module", params=["mp4v.mp4", "MJPG.avi"])
def ride(request, tmp_path_factory) -> Path:
    return write_ride(tmp_path_factory.mktemp("ride") / request.param)


def write_ride(path: Path) -> Path:
    """60 frames, 10 per second."""
    code = cv2.VideoWriter.fourcc(*path.name[:4])
    writer = cv2.VideoWriter(str(path), code, 10.0, (80, 48))
    for i in range(60):
        writer.write(numbered(i))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(), range(60)),
        (Span(every=7), range(0, 60, 7)),
        (Span(start=1.5), range(15, 60)),
        (Span(start=1.41, end=2.0), range(15, 20)),  # 1.4 s is before 1.41 s; 2 s is not before 2 s
        (Span(every=25, start=5, end=99), [50]),
    ],
)
def test_frames_of_a_video(ride, span, expected):
    video = Video(ride, span)
    frames = list(video)
    assert [frame.index for frame in frames] == [number(frame.image) for frame in frames]
    assert [frame.index for frame in frames] == list(expected) and video.length == len(expected)
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in expected])


def test_frames_of_a_video_whose_rate_varies(tmp_path):
    """20 frames of 0.2 s, then 40 of 0.05 s: frames are counted, and times are number / rate."""
    path = write_ride(tmp_path / "mp4v.mp4")
    data = path.read_bytes()
    at = data.index(b"stts") - 4
    delta = struct.unpack_from(">I", data, at + 20)[0]
    after = at + 24
    size, kind, _, keys = struct.unpack_from(">I4sII", data, after)
    assert kind == b"stss" and keys > 2 and delta % 2 == 0
    # The longer table of times takes its 8 bytes from that of the key frames.
    times = struct.pack(">I4s6I", 32, b"stts", 0, 2, 20, 2 * delta, 40, delta // 2)
    kept = struct.pack(">I4sII", size - 8, kind, 0, keys - 2) + data[after + 16 : after + size - 8]
    path.write_bytes(data[:at] + times + kept + data[after + size :])
    for start in (1.0, 2.0, 4.5):
        frames = list(Video(path, Span(start=start)))
        assert [number(frame.image) for frame in frames] == list(range(int(10 * start), 60))
        assert frames[0].index == 10 * start and frames[0].time == start


@pytest.mark.parametrize("span", [Span(start=6.0), Span(start=100), Span(start=1.01, end=1.02)])
def test_no_frames_in_the_time(ride, span):
    with pytest.raises(UserError, match=r"has no frames in the given time: it lasts 6\.0 s"):
        list(Video(ride, span))


def test_frames_of_a_folder(tmp_path):
    paths = [tmp_path / f"drive1_{i}.png" for i in (0, 1, 2, 10, 11)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), numbered(i))
    ordered = sorted(tmp_path.iterdir(), key=lambda path: natural_order(path.name))
    assert ordered == paths
    sequence = ImageSequence(ordered, 2.0, Span(every=2, start=0.5))
    assert [(f.index, f.time, number(f.image)) for f in sequence] == [(1, 0.5, 1), (3, 1.5, 3)]
    assert sequence.length == 2
    with pytest.raises(UserError, match="5 images has none in the given time"):
        list(ImageSequence(paths, 2.0, Span(start=2.5)))


def test_a_stream_that_is_taken_in_time(camera):
    stream = LiveStream(camera, size=40)
    frames = list(stream)
    assert [number(frame.image) for frame in frames] == list(range(40)) and stream.dropped == 0
    assert [frame.index for frame in frames] == list(range(40))
    assert 0 <= frames[0].time <= frames[-1].time < 30
    every = LiveStream(camera, Span(every=15), size=40)
    assert [number(frame.image) for frame in every] == [0, 15, 30]


def test_a_stream_that_is_too_fast(camera):
    """The reader sleeps until the stream is over: the last three frames are in the queue."""
    stream = LiveStream(camera, size=3)
    frames = iter(stream)
    first = next(frames)
    deadline = time.monotonic() + 10
    while not stream._over and time.monotonic() < deadline:
        time.sleep(0.01)
        assert len(stream._queue) <= 3
    rest = list(frames)
    assert [frame.index for frame in rest] == [37, 38, 39] == [number(f.image) for f in rest]
    assert stream.dropped == 40 - 1 - 3 and first.index < 37


class Camera:
    """Stands in for OpenCV's capture of camera 0: frame 0; frames 1 to 9 when ``go`` is set."""

    def __init__(self, *given: object) -> None:
        self.opened, self.index = given == (0,), -1
        self.go, self.released = threading.Event(), threading.Event()

    def isOpened(self) -> bool:
        return self.opened

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0}[what]  # as many cameras answer

    def grab(self) -> bool:
        self.index += 1
        return self.index == 0 or (self.go.wait(10) and self.index < 10)

    def read(self) -> tuple:
        return (True, numbered(self.index)) if self.grab() else (False, None)

    def release(self) -> None:
        self.released.set()


def test_a_camera_that_is_too_fast(monkeypatch):
    """While frame 0 is processed, nine come into a queue of three: 1 to 6 are dropped."""
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    stream = LiveStream(0, size=3)
    assert (stream.name, stream.rate, stream.length) == ("camera 0", 25, 0)
    frames = iter(stream)
    first = next(frames)
    assert (first.index, number(first.image), stream.dropped) == (0, 0, 0)
    stream._capture.go.set()
    assert stream._capture.released.wait(10)
    assert [(f.index, number(f.image)) for f in frames] == [(7, 7), (8, 8), (9, 9)]
    assert stream.dropped == 6


def test_every_third_frame_of_a_camera(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    stream = LiveStream(0, Span(every=3))
    stream._capture.go.set()
    assert [(f.index, number(f.image)) for f in stream] == [(i, i) for i in (0, 3, 6, 9)]
    assert stream.dropped == 0


def test_a_camera_that_cannot_be_opened(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "isOpened", lambda self: False)
    with pytest.raises(UserError, match="^cannot open camera 0$"):
        LiveStream(0)


@pytest.fixture(scope="module")
def rtsp_camera():
    """Port of an RTSP camera."""
    with ThreadingTCPServer(("127.0.0.1", 0), RTSPCamera) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_rtsp(rtsp_camera):
    """Over TCP, which the camera asks for, and with the address's password."""
    stream = LiveStream(f"rtsp://me:secret@127.0.0.1:{rtsp_camera}/front", size=40)
    assert stream.name == f"rtsp://127.0.0.1:{rtsp_camera}/front" and stream.rate == 25
    assert [(frame.index, number(frame.image)) for frame in stream] == [(i, i) for i in range(40)]
    assert stream.dropped == 0
    fast = iter(LiveStream(f"rtsp://me:secret@127.0.0.1:{rtsp_camera}/front", size=2))
    first = next(fast)
    time.sleep(1)
    assert number(first.image) < 38 and [number(frame.image) for frame in fast] == [38, 39]
    with pytest.raises(UserError, match=f"^cannot open rtsp://127.0.0.1:{rtsp_camera}/front$"):
        LiveStream(f"rtsp://me:wrong@127.0.0.1:{rtsp_camera}/front")


def test_streams_that_end_early(camera):
    threads = threading.active_count()
    frames = iter(LiveStream(camera))
    next(frames)
    frames.close()  # as the end of a loop does
    assert threading.active_count() <= threads + 1  # that of the server may take a moment
    with pytest.raises(UserError, match="^http://127.0.0.1:[0-9]+/live gives no frames$"):
        list(LiveStream(camera, Span(end=1e-9)))
    with pytest.raises(UserError, match="^cannot open http://127.0.0.1:1/live$"):
        LiveStream("http://me:secret@127.0.0.1:1/live?token=secret")


@pytest.mark.parametrize(
    ("word", "source", "name"),
    [
        ("0", 0, "camera 0"),
        ("rtsp://me:pw@10.0.0.1:554/cam?x=1", "rtsp://me:pw@10.0.0.1:554/cam?x=1",
         "rtsp://10.0.0.1:554/cam"),
        ("HTTP://cam/", "HTTP://cam/", "http://cam/"),
        ("street.png", None, None),
        ("file:///a.mp4", None, None),
        ("-", None, None),
    ],
)  # fmt: skip
def test_names_of_live_inputs(word, source, name):
    assert live_source(word) == source
    if source is not None:
        assert stream_name(source) == name


def test_a_folder_called_like_a_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    assert live_source("7") is None and live_source("8") == 8
