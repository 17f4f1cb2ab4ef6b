"""CamVid: driving scenes of 480x360, 11 classes, and the test frames with pasted animals."""

from __future__ import annotations

from .folder import BuiltinFolder, ImageFolder, register_classes, register_folder
from .ood import ood_metadata

# name and colour of the train ids 0..10
CAMVID_CLASSES = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
_VOID, _OOD = 11, 12


def register_camvid() -> None:
    """Register camvid_train, camvid_val, camvid_test and camvid_ood."""
    for split in ("train", "val", "test"):
        folder = BuiltinFolder(("CamVid",), (ImageFolder(split, f"{split}annot"),))
        register_classes(f"camvid_{split}", folder, CAMVID_CLASSES, ignore_values=(_VOID,))
    name = "camvid_ood"
    metadata = ood_metadata(
        name,
        id_values=range(len(CAMVID_CLASSES)),
        ood_values=(_OOD,),
        ignore_values=(_VOID,),
        # 500 and 100 pixels of a frame of 1280x720, scaled by area
        min_pred=94,
        min_gt=19,
    )
    folder = BuiltinFolder(("CamVid",), (ImageFolder("test_ood", "testannot_ood"),))
    register_folder(name, folder, **metadata)
