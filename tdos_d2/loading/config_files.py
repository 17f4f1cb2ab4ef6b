"""Reading of configs from files and the command line, with errors in one line."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import CONFIG_DIR, get_checkpoint_file, get_config_file, set_key
from ..data import register_from_file
from ..errors import UserError
from ..modeling.backbone import encoder_name, pixel_statistics_for
from ..modeling.clip import QUICK_GELU_SUFFIX
from ..modeling.memory import PADDING
from ..modeling.scores import needs_memory
from ..untrusted import MAX_YAML, parse_yaml, read_text
from ..value_checks import get_key
from .checkpoint import read_checkpoint_info
from .config_values import check_values, default_config
from .network import check_network
from .resuming import resume_file

_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(\S+)'> vs\. <class '(\S+)'>\) with values \(.* vs\. (.*)\) "
    r"for config key: (\S+)"
)
_MAX_BASES = 50  # largest number of files of one config
_RENAMED = {
    "SOLVER.POLY_POWER": "SOLVER.POLY_LR_POWER",
    "SOLVER.POLY_END": "SOLVER.POLY_LR_CONSTANT_ENDING",
    "INPUT.COLOR_AUG": "INPUT.COLOR_AUG_SSD",
}


def load_config(config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Merge the defaults, the file and the KEY VALUE pairs; registers ``DATASETS.REGISTER``.

    If there is no such file, ``config_file`` may name a config that ships with tdos_d2, with or
    without ``configs/`` before it.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value of the wrong type, an odd number
            of words, a wrong list of datasets, or none of that name, if it is one of the pairs; the
            message names file and key.
    """
    cfg = default_config()
    if config_file:
        config_file = find_config(config_file)
        with _user_errors(config_file):
            # Not merge_from_file, which tries to upgrade configs of Detectron2's first version, and
            # constructs any object that a file specifies.
            cfg.merge_from_other_cfg(CfgNode(read_config(config_file)))
        _check_trusted(cfg, config_file, opts)
    flags = [word for word in opts if word.startswith("--")]
    if flags:
        raise UserError(f"{flags[0]} must come before the KEY VALUE pairs")
    if joined := [word for word in opts[::2] if "=" in word]:
        raise UserError(f"KEY VALUE pairs expected, with a space instead of '=': {joined[0]}")
    if len(opts) % 2:
        raise UserError(f"KEY VALUE pairs expected, but there is an odd number: {' '.join(opts)}")
    for key in opts[::2]:
        _check_key(cfg, key)
    with _user_errors("command line"):
        cfg.merge_from_list(list(opts))
    check_values(cfg)
    register_datasets(cfg, needed="DATASETS.REGISTER" in opts)
    return cfg


def _check_key(cfg: CfgNode, key: str) -> None:
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            raise UserError(f"command line: {_unknown(key)}")
        node = node[name]


def _unknown(key: str) -> str:
    if key in _RENAMED:
        return f"unknown config key {key}: it is {_RENAMED[key]} now"
    close = get_close_matches(key, _keys(default_config()), n=1)
    return f"unknown config key {key}" + (f", did you mean {close[0]}?" if close else "")


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def read_config(config_file: str) -> dict[str, Any]:
    """Keys of a config file and its ``_BASE_``, read as in Detectron2 but only with plain types.

    Raises:
        Exception: of the types that ``_user_errors`` handles.
    """
    opened: list[int] = []  # sizes of the files

    class Reader(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> IO[str]:
            if "://" in filename:
                raise ValueError(f"_BASE_ {filename} is an address: download it and name the file")
            try:
                text = read_text(filename, MAX_YAML)
            except ValueError as error:
                raise ValueError(f"cannot read {filename}: {error}") from error
            opened.append(len(text))
            # If each file names two others, the number of files grows exponentially.
            if len(opened) > _MAX_BASES or sum(opened) > 2 * MAX_YAML:
                raise ValueError("_BASE_ leads back to where it came from, or to too much")
            parse_yaml(text, filename)  # Detectron2 parses it once more, with fewer checks
            return io.StringIO(text)

    return Reader.load_yaml_with_base(config_file)


def _check_trusted(cfg: CfgNode, config_file: str, opts: Sequence[str]) -> None:
    """Raise UserError if a config that is not part of this project would run code."""
    modules = cfg.MODEL.IMPORTS
    if not modules or Path(config_file).resolve().is_relative_to(CONFIG_DIR):
        return
    if "MODEL.IMPORTS" in opts or os.getenv("TDOS_TRUST_IMPORTS") == "1":
        return
    raise UserError(
        f"{config_file}: MODEL.IMPORTS would run the code of {modules}: if you trust it, set "
        "TDOS_TRUST_IMPORTS=1 in the environment, or repeat MODEL.IMPORTS on the command line"
    )


def register_datasets(cfg: CfgNode, *, needed: bool = True) -> None:
    """Import ``MODEL.IMPORTS`` and register ``DATASETS.REGISTER``, if any, in each process.

    Args:
        cfg: the config.
        needed: False = the file of ``DATASETS.REGISTER`` may be missing: a model is also used where
            the datasets of its training are not.

    Raises:
        UserError: a module cannot be imported; see also ``tdos_d2.data.register_from_file``.
    """
    for module in cfg.MODEL.get("IMPORTS", ()):
        # Console scripts do not search the current folder for modules.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except Exception as error:  # the user's code may raise any type
            reason = _one_line(error) or type(error).__name__
            raise UserError(f"MODEL.IMPORTS: cannot import '{module}': {reason}") from error
    path = cfg.DATASETS.get("REGISTER")  # not in a config of another project
    if path and (needed or Path(path).expanduser().exists()):
        register_from_file(path)


def use_cpu_without_gpu(cfg: CfgNode) -> list[str]:
    """Set ``MODEL.DEVICE`` to "cpu" if it is a GPU and there is none. Returns lines for the log.

    Raises:
        UserError: there is no such device.
    """
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError
        if device.type != "cuda":  # testing a GPU would allocate memory on it in this process
            torch.empty(0, device=device)
    except Exception as error:  # the type differs between devices
        raise UserError(f"MODEL.DEVICE: '{name}' is no device here, such as cpu or cuda") from error
    if device.type != "cuda":
        return []
    if not torch.cuda.is_available():
        set_key(cfg, "MODEL.DEVICE", "cpu")
        return ["there is no GPU: MODEL.DEVICE is cpu"]
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"MODEL.DEVICE: '{name}', but there are {torch.cuda.device_count()} GPUs")
    return []


def use_pixel_statistics(cfg: CfgNode) -> None:
    """Set mean and standard deviation of the pixels to those that the model uses.

    Raises UserError as :func:`.pixel_statistics_for` does.
    """
    for key, right in zip(("PIXEL_MEAN", "PIXEL_STD"), pixel_statistics_for(cfg), strict=True):
        set_key(cfg, f"MODEL.{key}", right)


def resolve_from_checkpoint(cfg: CfgNode, *, resume: bool, eval_only: bool) -> list[str]:
    """Set the values that must agree with the checkpoint; ``cfg`` changes in place.

    - Resuming uses the checkpoint's seed, so that the run continues exactly; its class names must
      be those of the config. CLIP's activation is also that of the checkpoint, as in evaluation.
    - Evaluation uses the checkpoint's class names, its OOD word (unless the config sets one) and,
      if the file ``MODEL.CLIP.WEIGHTS`` does not exist, its architecture: the checkpoint has all
      weights.
    - Class names that are still missing are those of the first training dataset.

    Returns:
        Lines for the log.

    Raises:
        UserError: the checkpoint is missing or damaged, or contradicts the class names or settings
            of the network; a memory is empty, or of another encoder or other levels.
    """
    path = resume_file(cfg) if resume else None
    resumed, notes = path is not None, []
    if resume and not resumed:
        if eval_only:
            raise UserError(f"OUTPUT_DIR: {cfg.OUTPUT_DIR} has no checkpoint to evaluate")
        notes.append(f"{cfg.OUTPUT_DIR} has no checkpoint: --resume starts from the beginning")
    if resumed and cfg.SOLVER.RESUME_FROM and not path.samefile(cfg.SOLVER.RESUME_FROM):
        notes.append(f"SOLVER.RESUME_FROM is not read: {cfg.OUTPUT_DIR} has {path.name}")
    if path is None and eval_only:
        path = local_weights(cfg)
    info = read_checkpoint_info(path) if path else {}
    taken = {"SEED": info.get("seed")} if resumed else {}
    if info.get("clip_name") and (resumed or eval_only):
        quick = info["clip_name"].endswith(QUICK_GELU_SUFFIX)
        taken["MODEL.CLIP.ACTIVATION"] = "quick_gelu" if quick else "gelu"
    if eval_only and info:
        taken |= _of_model(cfg, info)
        # The checkpoint has the trained prompts; the list of words need not exist.
        set_key(cfg, "MODEL.PROMPTS.GROUPS", "")
    for key, value in taken.items():
        if value is not None and value != get_key(cfg, key):
            set_key(cfg, key, value)
            notes.append(f"{key} is {value!r}, as in {path}")
    names = list(info.get("class_names", []))
    if resumed or eval_only:
        check_network(cfg, info, path)
    if eval_only:
        notes += _check_memory(cfg, info, path)
    if not cfg.MODEL.TDOS.CLASS_NAMES:
        sets = cfg.DATASETS.TRAIN[:1]
        of_set = MetadataCatalog.get(sets[0]).get("stuff_classes", ()) if sets else ()
        set_key(cfg, "MODEL.TDOS.CLASS_NAMES", (eval_only and names) or list(of_set))
    given = list(cfg.MODEL.TDOS.CLASS_NAMES)
    if names and given and given != names:
        if resumed or len(given) != len(names):
            raise UserError(
                f"{path} knows the classes {', '.join(names)}, but the config (or its training "
                f"set) names {', '.join(given)}: use the config.yaml beside the checkpoint"
                + ("" if resumed else ', or MODEL.TDOS.CLASS_NAMES "[]" for its own classes')
            )
        notes.append(f"class names differ from those {path} was trained with: {', '.join(names)}")
    return notes


def _of_model(cfg: CfgNode, info: dict[str, Any]) -> dict[str, Any]:
    """Keys that evaluation takes from the checkpoint, with its values."""
    taken = {}
    if cfg.MODEL.TDOS.OOD_NAME == default_config().MODEL.TDOS.OOD_NAME:  # not chosen
        taken["MODEL.TDOS.OOD_NAME"] = info.get("ood_name")
    weights = cfg.MODEL.CLIP.WEIGHTS
    if info.get("clip_name") and weights and not Path(weights).expanduser().is_file():
        taken |= {"MODEL.CLIP.NAME": info["clip_name"], "MODEL.CLIP.WEIGHTS": ""}
    return taken


def local_weights(cfg: CfgNode) -> Path | None:
    """``MODEL.WEIGHTS`` as a path; None if it is empty or a URL."""
    weights = cfg.MODEL.WEIGHTS
    if not weights or "://" in weights:
        return None
    return Path(weights.partition("?")[0])


def holds_encoders(cfg: CfgNode, checkpoint: Path | None) -> bool:
    """Whether a checkpoint has the encoders' weights, so that their own files need not be read.

    Packed checkpoints do not have them. If the image encoder is not CLIP's, the activation of the
    text encoder is not in the checkpoint, only in the file of its weights.
    """
    info = {} if checkpoint is None else read_checkpoint_info(checkpoint)
    packed = checkpoint is not None and checkpoint.suffix == ".safetensors"
    known = bool(info.get("clip_name")) or not cfg.MODEL.CLIP.WEIGHTS
    return bool(info) and not packed and known


def _check_memory(cfg: CfgNode, info: dict[str, Any], path: Path | None) -> list[str]:
    fitted, node = info.get("memory"), cfg.MODEL.TDOS
    alone = cfg.MODEL.META_ARCHITECTURE == "NormalityMemory"
    if not fitted or not (alone or needs_memory([node.SCORE, *node.EXTRA_SCORES])):
        return []
    if not fitted["vectors"]:
        raise UserError(f"MODEL.WEIGHTS: the memory in {path} is empty: see tools/fit_memory.py")
    encoder, levels = encoder_name(cfg), list(cfg.MODEL.MEMORY.LEVELS)
    of_file = fitted.get("encoder", encoder)  # a TDOS has other weights that depend on it
    if (encoder, levels) != (of_file, fitted["levels"]):
        raise UserError(
            f"{path} was fitted with the encoder {of_file} and MODEL.MEMORY.LEVELS "
            f"{', '.join(fitted['levels'])}, but the config has {encoder} and {', '.join(levels)}"
        )
    if fitted.get("padding") == PADDING:
        return []
    return [
        f"the memory in {path} is of an earlier version, which padded frames in another way or "
        "stored the padding: fit it again with tools/fit_memory.py"
    ]


def use_shipped_weights(cfg: CfgNode, config_file: str) -> None:
    """If ``MODEL.WEIGHTS`` is empty, set it to the weights that ship with the project's config.

    Args:
        cfg: changes in place.
        config_file: the file that ``cfg`` was loaded from.

    Raises:
        UserError: no weights ship for it.
    """
    if cfg.MODEL.WEIGHTS:
        return
    path = Path(find_config(config_file)).resolve()
    try:
        if not path.is_relative_to(CONFIG_DIR):
            raise FileNotFoundError
        weights = get_checkpoint_file(path.relative_to(CONFIG_DIR).as_posix())
    except FileNotFoundError:
        raise UserError(
            "MODEL.WEIGHTS is empty, and no weights ship for this config: name a checkpoint"
        ) from None
    set_key(cfg, "MODEL.WEIGHTS", weights)


def find_config(name: str) -> str:
    """The file ``name``, or the config of that name that ships with tdos_d2.

    Raises:
        UserError: neither exists.
    """
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        return name
    try:
        return get_config_file(name.removeprefix("configs/"))
    except FileNotFoundError:
        raise UserError(f"config file {name} does not exist") from None


@contextmanager
def _user_errors(source: str) -> Iterator[None]:
    """Turn errors of yacs and PyYAML about ``source`` into one line."""
    try:
        yield
    except (OSError, RecursionError, yaml.YAMLError, TypeError, AttributeError, KeyError,
            AssertionError, ValueError, MemoryError) as error:  # fmt: skip
        raise UserError(f"{source}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = _one_line(error)
    match error:
        case FileNotFoundError():
            return f"its _BASE_ {error.filename} does not exist"
        case OSError():
            return f"it or its _BASE_ cannot be read: {error.strerror or text}"
        case RecursionError() | MemoryError():
            return "a value is nested too deeply"
        case yaml.YAMLError():
            return f"not valid YAML: {text}"
        case TypeError() | AttributeError():
            return (
                "not a config, a YAML mapping of keys is expected, "
                "in which _BASE_, if it is there, names a file or a list of files"
            )
    if unknown := re.search(r"[Nn]on-existent (?:config )?key: ([\w.]+)", text):
        return _unknown(unknown[1])
    if mismatch := _TYPE_MISMATCH.search(text):
        wanted, got, value, key = mismatch.groups()
        wanted, got = (name.rpartition(".")[2] for name in (wanted, got))
        example = f", such as \"('{value}',)\"" if (wanted, got) == ("tuple", "str") else ""
        return f"{key} must be of type {wanted}{example}, not {got} ({value})"
    return text


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())
