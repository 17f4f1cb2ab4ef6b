"""Folders of tools/predict.py: results are no inputs, and a second run loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_predict import PICTURES, load, picture, predict, raw_score, records

from tdos_d2.inference import OODPredictor


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("where", ["in/out", "in", ".", "in/linked"])
def test_results_are_no_inputs(model, tmp_path, capsys, where):
    """Wherever the results lie: of this run, and of others into other folders."""
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True), elsewhere.mkdir()
    cv2.imwrite(str(folder / "1.png"), picture(0))
    cv2.imwrite(str(folder / "sub" / "2_score.png"), picture(1))  # called like a result
    (folder / "linked").symlink_to(elsewhere)
    expected = ["1.png", "sub/2_score.png"]
    for run_number, output in enumerate((where, where, "in/other"), start=1):
        output = tmp_path / output
        assert predict(model, output, "--input", folder, "--words", "deer") == 0
        read = [str(Path(r["input"]).relative_to(folder)) for r in records(output)]
        assert read == expected * (run_number if run_number < 3 else 1)
    given = [str(folder / name) for name in ("1.png", "1_score.png")]
    if where == "in":
        assert "8 files are results, which are no inputs" in capsys.readouterr().err
        assert predict(model, folder, "--input", *given) == 0
        assert records(folder)[-1]["input"] == given[0] and len(records(folder)) == 5


def test_a_second_run_loses_nothing(model, tmp_path, capsys):
    output = tmp_path / "out"
    for i, name in enumerate(("x/1.png", "y/1.png")):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), picture(i))
    assert predict(model, output, "--input", tmp_path / "x") == 0
    before = contents(output)
    assert predict(model, output, "--input", tmp_path / "y" / "1.png") == 0
    assert "has lines of earlier runs: more are added" in capsys.readouterr().err
    after = contents(output)
    table = after.pop("predictions.jsonl"), before.pop("predictions.jsonl")
    assert table[0].startswith(table[1]) and {k: after[k] for k in before} == before
    assert set(after) - set(before) == {f"1_2_{kind}" for kind in PICTURES}
    first, second = records(output)
    predictor = OODPredictor(load(model))
    for record, image in ((first, picture(0)), (second, picture(1))):
        raw = raw_score(output / record["files"]["raw"])
        np.testing.assert_allclose(raw, predictor(image)["ood_score"], atol=1e-3)
    # A line that broke off stays as it is, and the next one whole; files of the user's stay, too.
    with open(output / "predictions.jsonl", "ab") as file:
        file.write(b'{"input": "half')
    (output / "3_segmentation.png").write_text("the user's own")
    cv2.imwrite(str(tmp_path / "3.png"), picture(2))
    assert predict(model, output, "--input", tmp_path / "3.png", tmp_path / "absent.png") == 1
    *_, half, third, absent = (output / "predictions.jsonl").read_text().splitlines()
    assert half == '{"input": "half' and "no image file" in json.loads(absent)["error"]
    assert json.loads(third)["files"]["score"] == "3_2_score.png"
    assert (output / "3_segmentation.png").read_text() == "the user's own"


def test_pictures_of_unread_kinds_are_counted(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "1.png"), picture(0))
    for name in ("2.heic", "3.avif", "4.AVIF"):
        (tmp_path / "in" / name).touch()
    assert predict(model, tmp_path / "out", "--input", tmp_path / "in") == 0
    said = "left out, as files of this kind are not read: 1 .heic, 2 .avif; convert them"
    assert said in capsys.readouterr().err
