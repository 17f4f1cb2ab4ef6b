"""OOD score of images with a model that tools/export_model.py wrote as ONNX.

Needs only numpy, opencv and onnxruntime:
    python onnx_sliding_window.py model.onnx image.png [more.png ...]
"""

import json
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


def predict(session: onnxruntime.InferenceSession, bgr: np.ndarray) -> tuple[np.ndarray, ...]:
    """(H, W, 3) uint8 -> sem_seg (K, H, W) and ood_score (H, W), larger = more anomalous."""
    about = session.get_modelmeta().custom_metadata_map
    size, stride = int(about["window_size"]), int(about["window_stride"])
    image = np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1))
    image = image.astype("uint8" if "uint8" in session.get_inputs()[0].type else "float32")
    height, width = image.shape[1:]
    if size == 0:  # the whole image is one window
        size = stride = max(height, width)
    total, count = 0, np.zeros((height, width), np.float32)
    for y in starts(height, size, stride):
        for x in starts(width, size, stride):
            place = np.s_[:, y : y + size, x : x + size]
            sem_seg, score = session.run(["sem_seg", "ood_score"], {"windows": image[place][None]})
            if isinstance(total, int):
                total = np.zeros((sem_seg.shape[1] + 1, height, width), np.float32)
            total[place] += np.concatenate([sem_seg[0], score])
            count[place[1:]] += 1
    return (total / count)[:-1], (total / count)[-1]


if __name__ == "__main__":
    onnx = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    names = json.loads(onnx.get_modelmeta().custom_metadata_map["class_names"])
    for path in sys.argv[2:]:
        if path.endswith(".ood.png"):
            print(f"{path}: left out, it is a result")
            continue
        known, ood = predict(onnx, read_image(path))
        label = names[int(np.bincount(known.argmax(0).ravel()).argmax())]
        print(f"{path}: score {ood.min():.2f} to {ood.max():.2f}, most of it is {label}")
        gray = cv2.normalize(ood, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        if not cv2.imwrite(f"{path}.ood.png", cv2.applyColorMap(gray, cv2.COLORMAP_VIRIDIS)):
            sys.exit(f"error: cannot write {path}.ood.png")
