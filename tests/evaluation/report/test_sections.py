"""What a report says of a dataset, and pictures of its frames."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
from report_sets import FOUND, fill, section_of, write_set

from tdos_d2.errors import UserError
from tdos_d2.evaluation.frames import Frame
from tdos_d2.evaluation.report.sections import (
    Communicator,
    ScoreDisplay,
    draw_frame,
    write_overlays,
    write_picture,
)
from tdos_d2.visualization.drawing import OOD_COLOUR, PREDICTED_COLOUR


def names(frames) -> list[str]:
    return [frame.name for frame in frames]


def test_best_and_worst_frames_are_those_of_the_scores(tmp_path):
    section = section_of(fill(tmp_path), tmp_path)
    assert names(section.worst) == ["town/bad", "town/middling"]
    assert names(section.best) == ["town/perfect", "town/good"]
    assert (section.frames, section.ranked) == (5, 4)
    assert section.best[0].metrics["AP"] == 100
    labels = np.stack(write_set(tmp_path)[2])
    values = {"known": 0, "OOD": 1, "void": 255}
    assert section.counts == {name: (labels == value).sum() for name, value in values.items()}
    assert section.histogram.counts.sum(axis=1).tolist() == [
        section.counts["known"],
        section.counts["OOD"],
    ]


class Processes:
    """``Communicator`` of two threads that stand for processes."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)
        self._given = [None, None]

    def of(self, rank: int) -> Communicator:
        def share(data):
            self._given[rank] = data
            self._barrier.wait(30)
            given = list(self._given)
            self._barrier.wait(30)
            return given

        return Communicator(
            rank == 0, share, lambda data: share(data) if rank == 0 else share(data) * 0
        )


def test_two_processes_give_what_one_gives(tmp_path):
    expected = section_of(fill(tmp_path), tmp_path)
    processes, sections = Processes(), {}

    def work(rank: int, own: list[int]) -> None:
        evaluated = fill(tmp_path, own)
        sections[rank] = section_of(evaluated, tmp_path, processes.of(rank))

    threads = [threading.Thread(target=work, args=x) for x in [(0, [0, 2, 4]), (1, [1, 3])]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sections[1] is None
    got = sections[0]
    assert (names(got.worst), names(got.best)) == (names(expected.worst), names(expected.best))
    assert [x.score for x in got.worst] == [x.score for x in expected.worst]
    assert (got.counts, got.frames, got.ranked) == (expected.counts, 5, 4)
    assert np.array_equal(got.histogram.counts, expected.histogram.counts)


def test_picture_shows_what_is_found_and_what_is_labelled(tmp_path):
    record, score = {"file_name": str(tmp_path / "a.png")}, np.zeros((50, 500), np.float32)
    cv2.imwrite(record["file_name"], np.zeros((50, 500, 3), np.uint8))
    label = np.zeros(score.shape, np.uint8)
    label[10:40, 100:200], label[:, 400:] = 1, 255
    score[15:35, 150:300] = score[:, 450:] = 1
    display = ScoreDisplay("s", 1.0, 0.0, 1.0)
    picture = draw_frame(record, Frame(score, label), display)[0][:50].astype(int)
    orange = np.array(PREDICTED_COLOUR)
    is_orange = np.abs(picture - orange * 0.65).max(axis=2) < 3
    assert is_orange[20:30, 155:195].all() and is_orange[20:30, 205:295].all()
    assert not is_orange[:, :145].any() and not is_orange[:, 302:].any()
    assert (picture == OOD_COLOUR).all(axis=2)[11:39, 99:102].any(axis=1).all()
    strict = draw_frame(record, Frame(score, label), display._replace(strict=True))[0][:50]
    assert not (np.abs(strict - orange * 0.65).max(axis=2) < 3).any()
    with pytest.raises(UserError, match=r"scores are 9x7, but image .*a.png is 500x50"):
        draw_frame(record, Frame(np.zeros((7, 9), np.float32), np.zeros((7, 9), np.uint8)), display)


def test_overlays_of_every_frame(tmp_path):
    write_overlays(fill(tmp_path), ScoreDisplay("s", 1.5, 0, 3), tmp_path / "show")
    found = sorted(path.relative_to(tmp_path / "show") for path in tmp_path.rglob("*.jpg"))
    assert [str(path) for path in found] == sorted(f"tiny/town/{name}.jpg" for name in FOUND)
    picture = cv2.imread(str(tmp_path / "show" / found[0]))
    assert picture.shape[1] == 2 * 4 * 90 and picture.shape[0] > 4 * 60  # enlarged, two, and scale


def test_names_of_frames_do_not_lead_out_of_the_folder(tmp_path):
    picture = np.zeros((4, 5, 3), np.uint8)
    for name in ("/etc/passwd", "../../x"):
        write_picture(tmp_path / "show", "tiny", name, [picture])
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")]
    assert sorted(found) == ["show/tiny/etc/passwd.jpg", "show/tiny/x.jpg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/tiny/x.jpg"):
        write_picture(tmp_path / "file", "tiny", "x", [picture])
