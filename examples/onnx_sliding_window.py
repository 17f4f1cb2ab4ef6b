"""OOD score of images with a model that tools/export_model.py wrote as ONNX.

Needs only numpy, opencv and onnxruntime:
    python onnx_sliding_window.py model.onnx image.png [more.png ...]

What the model needs is in the file. The results are those of tdos_d2's OODPredictor.
"""

import json
import os
import sys

import cv2
import numpy as np
import onnxruntime


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every stride, the last one shifted inside."""
    return [min(i, max(length - size, 0)) for i in range(0, max(length - size, 0) + stride, stride)]


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) uint8 BGR, turned as EXIF data say; of 16 bits the high byte. As tdos_d2 reads."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        sys.exit(f"error: cannot read image {path}: {error.strerror}")
    stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if stored is None:
        sys.exit(f"error: cannot read image {path}: OpenCV cannot decode it")
    if stored.dtype not in (np.uint8, np.uint16):
        sys.exit(f"error: cannot read image {path}: pixels are {stored.dtype}, not 8 or 16 bits")
    is_tiff, full = bytes(data[:2]) in (b"II", b"MM"), np.iinfo(stored.dtype).max
    if is_tiff and stored.shape[2:] == (4,) and stored[..., 3].min() < full:
        sys.exit(f"error: {path}: OpenCV darkens TIFF where it is transparent; make it a PNG")
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image


def input_size(about: dict[str, str], height: int, width: int, dataset: str) -> tuple[int, int]:
    """The size that images of a dataset are brought to, as (height, width).

    {"size": [w, h]}: that; {"shorter": a, "longer": b}: the shorter side becomes a, or what makes
    the longer side b if that would be longer; {}: as they are.
    """
    rule = json.loads(about["test_sizes"]).get(dataset, json.loads(about["input_size"]))
    if "size" in rule:
        return rule["size"][1], rule["size"][0]
    if not rule:
        return height, width
    scale = rule["shorter"] / min(height, width)
    height, width = height * scale, width * scale
    scale = min(rule["longer"] / max(height, width), 1)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def shrink_or_enlarge(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 resized as Pillow does: bilinear, over all pixels that become one."""
    for axis in (1, 0):  # as Pillow, mostly; it rounds between the two
        old, new = image.shape[axis], size[axis]
        if old != new:
            step = old / new
            places = (np.arange(new)[:, None] + 0.5) * step - np.arange(old) - 0.5
            weights = np.maximum(1 - np.abs(places) / max(step, 1), 0)
            weights = np.round(weights / weights.sum(1, keepdims=True) * 2**22)  # fixed point
            image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
            image = np.floor(image / 2**22 + 0.5).astype(np.uint8)
    return image


def predict(
    session: onnxruntime.InferenceSession, bgr: np.ndarray, dataset: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 -> sem_seg (K, H, W) and ood_score (H, W), larger = more anomalous.

    A dataset is named where the model's config has a test size for it. A detector without known
    classes has K = 0.
    """
    about = session.get_modelmeta().custom_metadata_map
    size, stride = int(about["window_size"]), int(about["window_stride"])
    original = bgr.shape[:2]
    height, width = input_size(about, *original, dataset)
    image = shrink_or_enlarge(bgr, (height, width))[..., ::-1].transpose(2, 0, 1)  # RGB
    image = image.astype("uint8" if "uint8" in session.get_inputs()[0].type else "float32")
    if size == 0:  # the whole image is one window
        size = stride = max(height, width)
    total, count = 0, np.zeros((height, width), np.float32)
    for y in starts(height, size, stride):
        for x in starts(width, size, stride):
            place = np.s_[:, y : y + size, x : x + size]
            *sem_seg, score = session.run(None, {"windows": image[place][None]})
            channels = np.concatenate([*(maps[0] for maps in sem_seg), score])
            if isinstance(total, int):
                total = np.zeros((len(channels), height, width), np.float32)
            total[place] += channels
            count[place[1:]] += 1
    maps = total / count
    if (height, width) != original:
        maps = np.stack([cv2.resize(channel, original[::-1]) for channel in maps])
    return maps[:-1], maps[-1]


def run() -> None:
    """Write image.png.ood.png, in the current folder, of every image on the command line."""
    if len(sys.argv) < 3:
        sys.exit("usage: onnx_sliding_window.py model.onnx image.png [more.png ...]")
    onnx = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    about = onnx.get_modelmeta().custom_metadata_map
    if "window_size" not in about or onnx.get_inputs()[0].name != "windows":
        sys.exit(f"error: {sys.argv[1]} is no model that export_model.py --form window wrote")
    names, threshold = json.loads(about["class_names"]), json.loads(about["threshold"])
    assert all(map(str.isprintable, names)), "names of classes must be printable"
    for path in sys.argv[2:]:
        if path.endswith(".ood.png"):
            print(f"{path}: left out, it is a result")
            continue
        known, ood = predict(onnx, read_image(path))
        if not np.isfinite(ood).all():
            sys.exit(f"error: {path}: the score is NaN or infinite")
        most = f", most is {names[np.bincount(known.argmax(0).flat).argmax()]}" if names else ""
        found = "" if threshold is None else f", {(ood >= threshold).mean():.1%} of it is OOD"
        output = f"{path.replace(os.sep, '_').lstrip('._')}.ood.png"  # in the current folder
        print(f"{path}: score {ood.min():.2f} to {ood.max():.2f}{found}{most}: {output}")
        gray = cv2.normalize(ood, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        if not cv2.imwrite(output, cv2.applyColorMap(gray, cv2.COLORMAP_VIRIDIS)):
            sys.exit(f"error: cannot write {output}")


def main() -> None:
    """As :func:`run`, with one line for a model that is none, or says odd things of itself."""
    try:
        run()
    except Exception as error:  # onnxruntime has its own kinds
        why = repr(error)[:150] if os.path.isfile(sys.argv[1]) else "no such file"
        sys.exit(f"error: cannot use model {sys.argv[1]}: {why}")


if __name__ == "__main__":
    main()
