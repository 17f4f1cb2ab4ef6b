"""tdos_d2: text-driven out-of-distribution segmentation for driving scenes, on Detectron2.

Importing this package registers datasets, backbones and the meta-architectures ``TDOS`` and
``NormalityMemory``. Without Detectron2, ``tdos_d2.evaluation`` still works, and everything else
raises an error that names the missing package.
"""

from __future__ import annotations

import warnings

__version__ = "0.1.0"
__all__ = ["add_tdos_config", "get_checkpoint_file", "get_config_file"]

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise

    def __getattr__(name: str):
        if name in __all__:
            raise ImportError(
                f"tdos_d2.{name} needs Detectron2: run tools/install_detectron2.py, or see "
                "Detectron2's installation guide"
            )
        raise AttributeError(f"module 'tdos_d2' has no attribute '{name}'")

else:
    with warnings.catch_warnings():
        # Detectron2 uses torch.jit when it is imported, which this project cannot change.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from . import data, modeling, normality_memory, tdos  # noqa: F401
        from .config import add_tdos_config, get_checkpoint_file, get_config_file
