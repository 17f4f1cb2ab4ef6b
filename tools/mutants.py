#!/usr/bin/env python
"""Check that tests fail when central lines of the code are broken one by one.

    python tools/mutants.py              # all, some minutes; --list shows them
    python tools/mutants.py criterion    # those with "criterion" in their file or description

Each mutation replaces a text that occurs once in its file, in a copy of the repository, and runs
the tests for it. Mutations that pass the tests are printed; the exit status is 1 if there is any,
if a text is no longer found, or if the tests fail without a mutation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# (file, tests that should fail) -> {what breaks: (text, replacement)}
MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("tdos_d2/modeling/transformer_decoder.py",
     "tests/modeling/test_transformer_decoder.py"): {
        "keys without positions": ("value + positions[level]", "value"),
        "query position table zeroed": ("= self.query_position.weight",
            "= 0 * self.query_position.weight"),
        "only the last output in training": ("states if self.training else states[-1:]",
            "states[-1:]"),
        "foreground is blocked": ("masks < 0", "masks > 0"),
        "a row that blocks everything stays": ("blocked & ~blocked.all(-1, keepdim=True)",
            "blocked"),
        "levels visited finest first": ("level = i % self.num_levels",
            "level = -1 - i % self.num_levels"),
        "memory without level embedding": (".transpose(1, 2) + embedding",
            ".transpose(1, 2) + 0 * embedding"),
        "values of self-attention with positions": ("(qk, qk, x)", "(qk, qk, qk)"),
    },
    ("tdos_d2/modeling/pixel_decoder.py",
     "tests/modeling/test_pixel_decoder.py"): {
        "sine positions zeroed": ("sine_positions(*shape", "0 * sine_positions(*shape"),
        "text keys without positions": ("text + self.text_position.weight", "text"),
        "pixels ask the text without positions": ("self.text_attention(x + positions",
            "self.text_attention(x"),
        "values with positions": ("reference, x, shapes))", "reference, x + positions, shapes))"),
        "finest level left out": ("finest + upsampled", "upsampled"),
        "x and y of the reference points swapped": ("[grid[1], grid[0]]", "[grid[0], grid[1]]"),
    },
    ("tdos_d2/modeling/deformable_attention.py",
     "tests/modeling/test_pixel_decoder.py"): {
        "first cell half a cell away": ("reference * sizes - 0.5", "reference * sizes"),
        "offsets divided by (h, w)": ("[(w, h) for h, w in shapes]", "[(h, w) for h, w in shapes]"),
        "weights that do not sum to 1": (".float().softmax(-1)", ".float().sigmoid()"),
    },
    ("tdos_d2/modeling/transformer_layers.py", "tests/modeling/test_pixel_decoder.py"): {
        "x before y": ("torch.cat([y, x], dim=-1)", "torch.cat([x, y], dim=-1)"),
        "not normalised by the size": ("position / position[-1]", "position"),
    },
    ("tdos_d2/modeling/transformer_layers.py", "tests/modeling/test_transformer_decoder.py"): {
        "what is blocked is allowed": ("~blocked[:, None]", "blocked[:, None]"),
    },
    ("tdos_d2/engine/steps.py", "tests/engine/test_steps.py"): {
        "statistics stay as a bad batch left them": ("buffer.copy_(before)", "pass"),
        "bad steps need not follow each other": ("self._in_a_row = 0", "pass"),
        "infinite gradients are taken": ("not math.isfinite(norm)", "False"),
    },
    ("tdos_d2/untrusted.py", "tests/test_untrusted.py"): {
        "archives of any size": ("for entry in entries) > most", "for entry in entries) < 0"),
        "names lead out of an archive": ("not stays_inside(entry.filename)", "False"),
        "YAML repeats without limit": ("_nodes(node, {}) > _MAX_NODES", "False"),
    },
    ("tdos_d2/modeling/criterion.py", "tests/modeling/test_criterion.py"): {
        "mask count not agreed between processes": ("torch.distributed.all_reduce(count)", "pass"),
        "mask count not shared out": ("count / comm.get_world_size()", "count / 1"),
        "OOD and no-object weight swapped": ("[ood_weight, no_object_weight]",
            "[no_object_weight, ood_weight]"),
        "class loss not normalised by its weights": ("/ weights.sum()", "/ weights.numel()"),
        "dice without its 1 below": ("truth.sum(-1) + 1)", "truth.sum(-1) + 1e-6)"),
        "dice without its 1 above": ("(share * truth).sum(-1) + 1)", "(share * truth).sum(-1))"),
        "the surest points": ("largest=False", "largest=True"),
        "importance ratio": ("int(self.importance_ratio * num_points)", "int(0.5 * num_points)"),
        "oversample ratio": ("int(self.oversample_ratio * num_points)", "num_points"),
        "points on void count": ("counts = (~on_void(points)).float()",
            "counts = torch.ones_like(truth)"),
        "score map without temperature": ("score_map.float() / self.temperature",
            "score_map.float()"),
        "void in the score map's mean": ("(labels != IGNORE).sum()",
            "torch.tensor(labels.numel())"),
        "mask weight": ("self.mask_weight * mask", "mask"),
    },
    ("tdos_d2/tdos.py", "tests/test_tdos.py"): {
        "padded labels are class 0": ("self.size_divisibility, IGNORE)",
            "self.size_divisibility, 0)"),
        "losses of the last output only": ("self.criterion(*outputs, labels)",
            "self.criterion(*(x[-1:] for x in outputs[:2]), outputs[2], labels)"),
        "text not normalised in the score map": ("units = F.normalize(text.float(), dim=-1)",
            "units = text.float()"),
        "scores in half precision": ("enabled=False)", "enabled=True)"),
        "negatives are known classes": ("self.num_known,\n                rule",
            "self.num_known + 1,\n                rule"),
    },
    ("tdos_d2/modeling/image_model.py", "tests/test_tdos.py"): {
        "pixel_std not used": ("- self.pixel_mean) / self.pixel_std", "- self.pixel_mean)"),
    },
    ("tdos_d2/tdos.py", "tests/modeling/test_regularization.py"): {
        "heads_only trains everything": ("if not name.startswith(HEADS):", "if False:"),
    },
    ("tdos_d2/engine/seeding.py", "tests/engine/test_seeding.py"): {
        "rank dropped from the seed": ("[seed, iteration, rank]", "[seed, iteration]"),
        "every process is rank 0": ("iteration, comm.get_rank()", "iteration, 0"),
    },
    ("configs/Base-TDOS.yaml", "tests/test_published_configs.py"): {
        "BASE_LR times 100": ("BASE_LR: 0.0001", "BASE_LR: 0.01"),
        "WEIGHT_DECAY times 100": ("WEIGHT_DECAY: 0.00001", "WEIGHT_DECAY: 0.001"),
        "RGB means in BGR order": ("- 122.7709", "- 104.0937"),
    },
    ("configs/tdos_vitb_backbone_ft.yaml", "tests/test_published_configs.py"): {
        "encoder learns as fast as the rest": ("- 0.1", "- 1.0"),
    },
    ("tdos_d2/config.py", "tests/test_published_configs.py"): {
        "no-object weight": ("NO_OBJECT_WEIGHT = 0.1", "NO_OBJECT_WEIGHT = 1.0"),
    },
    ("tdos_d2/modeling/merge.py", "tests/modeling/test_merge.py"): {
        "OOD word is not merged": ("ood = maps[..., num_known:,",
            "ood = maps[..., num_known + 1:,"),
        "masks by minimum": ("ood.amax(-3", "ood.amin(-3"),
        "the weakest query": ("log_p.argmax(-1)", "log_p.argmin(-1)"),
        "weights of the first output": ("weights[-1])", "weights[0])"),
        "weights from no-object": ("ood_logits.log_softmax(-1)[..., num_known]",
            "ood_logits.log_softmax(-1)[..., -1]"),
    },
    ("tdos_d2/modeling/scores.py", "tests/modeling/test_scores.py"): {
        "S_ood from no-object": ("dim=-1)[..., -2]", "dim=-1)[..., -1]"),
        "logarithm of a sigmoid": ("_log_sigmoid(mask_logits)", "mask_logits.sigmoid().log()"),
        "maximum for logsumexp": ("return torch.logsumexp(", "return torch.amax("),
        "no-object is a class": ("class_logits.softmax(-1)[..., :-1]",
            "class_logits[..., :-1].softmax(-1)"),
        "OOD among the known logits": ("1 - s[:-1].amax(0)", "1 - s.amax(0)"),
        "text_only without temperature": ("score_map / temperature", "score_map"),
    },
    ("tdos_d2/modeling/sliding_window.py", "tests/modeling/test_sliding_window.py"): {
        "coverage is not counted": ("+ w] += 1", "+ w] = 1"),
        "last window not shifted inside": ("min(i * stride, length - size)",
            "min(i * stride, length - 1)"),
    },
    ("tdos_d2/modeling/clip/towers.py",
     "tests/modeling/test_clip.py tests/modeling/test_clip_resnet.py"): {
        "rows and columns of positions swapped": ("size=tuple(grid), mode",
            "size=tuple(grid)[::-1], mode"),
        "text without positions": ("tokens + self.positional_embedding",
            "tokens + 0 * self.positional_embedding"),
        "taps before the block": ("if number in self.taps", "if number + 1 in self.taps"),
        "dense tokens by plain attention": ("(value[:, :, 1:], value, value)",
            "(key[:, :, 1:], key, value)"),
    },
    ("tdos_d2/modeling/text/prompts.py", "tests/modeling/test_text.py"): {
        "end of text not shifted": ("self.name_end + len(self.context)", "self.name_end"),
        "negatives read one token early": ("negatives.shape[1] - 1", "negatives.shape[1] - 2"),
        "encoder in training mode": ("self.tower.eval()", "pass"),
    },
    ("tdos_d2/modeling/text/context_decoder.py", "tests/modeling/test_text.py"): {
        "gamma not used": ("self.gamma * self.out_proj(x)", "self.out_proj(x)"),
        "no norm before the feed-forward": ("self.norms[2](x)", "x"),
        "no residual around self-attention": ("x = x + self.self_attention",
            "x = self.self_attention"),
    },
    ("tdos_d2/modeling/backbone/freezable_encoder.py",
     "tests/test_tdos.py tests/modeling/test_clip_resnet.py"): {
        "frozen encoder in training mode": ("part.eval()", "pass"),
        "frozen encoder is trained": ("part.requires_grad_(False)", "pass"),
    },
    ("tdos_d2/modeling/semantic_augmentation.py", "tests/modeling/test_semantic_augmentation.py"): {
        "noise on the keys too": ("(tokens + noise, tokens, tokens)",
            "(tokens + noise, tokens + noise, tokens)"),
        "class token perturbed": ("cells.shape[1], 0))", "cells.shape[1], 0), value=1)"),
        "style of the region itself": ("_statistics(x, 1 - cover)", "_statistics(x, cover)"),
        "alpha not used": ("self.alpha * cover", "cover"),
        "region by its nearest pixel": ("return F.adaptive_avg_pool2d(", "return F.interpolate("),
        "ellipses are no OOD targets": ("masked_fill(picked, self.num_known)",
            "masked_fill(picked, 255)"),
    },
    ("tdos_d2/modeling/regularization.py", "tests/modeling/test_regularization.py"): {
        "language term without temperature": ("@ self.references.T / self.temperature",
            "@ self.references.T"),
        "reference encoder in training mode": ("        reference.eval()", "        pass"),
        "similarity for distance": ("1 - F.cosine_similarity", "F.cosine_similarity"),
    },
    ("tdos_d2/modeling/test_time_augmentation.py",
     "tests/modeling/test_test_time_augmentation.py"): {
        "mirrored maps not turned back": ("lambda x: x.flip(-1), maps)", "lambda x: x, maps)"),
    },
    ("tdos_d2/ood_words/prototypes.py", "tests/ood_words/test_prototypes.py"): {
        "prototypes not normalised": ("return unit_length(np.stack(", "return (np.stack("),
        "words not normalised": ("unit_length(np.asarray(", "(np.asarray("),
    },
    ("tdos_d2/evaluation/pixel_metrics.py", "tests/evaluation/test_pixel_metrics.py"): {
        "FPR above 95 % recall": ("20 * tp >= 19", "20 * tp > 19"),
        "ties in the order of OOD first": ("tied = pos * tp / np.maximum(tp + fp, 1)",
            "tied = pos * tp / np.maximum(tp + fp - neg, 1)"),
        "negative scores in reverse": ("(bits >> 31) | np.int32(-(2**31))", "np.int32(-(2**31))"),
        "tolerance": ("TOLERANCE = 5e-5", "TOLERANCE = 5e-2"),
    },
    ("tdos_d2/evaluation/component_metrics.py", "tests/evaluation/test_component_metrics.py"): {
        "found only above the threshold": ("siou >= threshold", "siou > threshold"),
        "false at the threshold": ("ppv < threshold", "ppv <= threshold"),
        "4-connected": ("connectivity=8", "connectivity=4"),
        "smallest size is dropped": (">= size", "> size"),
        "other true components in the union": ("(pred_area - on_true)[pred]", "pred_area[pred]"),
    },
    ("tdos_d2/evaluation/frames.py", "tests/evaluation/test_component_metrics.py"): {
        "strict threshold": ("(self.score >= limit))", "(self.score > limit))"),
        "predictions on void": (" & (self.label != VOID)", ""),
    },
    ("tdos_d2/evaluation/calibration.py", "tests/evaluation/test_calibration.py"): {
        "quantile one level too low": ("[rank - 1]", "[rank - 2]"),
        "quantile one level too high": ("[rank - 1]", "[min(rank, n - 1)]"),
        "quantile of n, not of n + 1": ("round((n + 1) * (1 - rate)", "round(n * (1 - rate)"),
        "alarm at the level itself": ("np.nextafter(quantile, np.float32(np.inf))", "quantile"),
        "levels without the mask": ("(score >= levels[middle]) & inside",
            "(score >= levels[middle])"),
        "an object must be larger": (">= min_area).any()", "> min_area).any()"),
    },
    ("tdos_d2/evaluation/instance_metrics.py", "tests/evaluation/test_breakdown.py"): {
        "instances on void are wrong": ("(scores.ignored <= overlap)", "True"),
        "AP by the step rule": ("(precision[1:] + precision[:-1]) / 2", "precision[1:]"),
        "small instances count": ("true_area >= MIN_INSTANCE", "true_area >= 1"),
    },
    ("tdos_d2/evaluation/threshold_rules.py", "tests/evaluation/test_breakdown.py"): {
        "one level more than the FPR": ("last = unsure - 1", "last = unsure"),
        "coarse thresholds": ("if bins.single[occupied[unsure]]:", "if True:"),
    },
    ("tdos_d2/inference/frame_selection.py", "tests/inference/test_labelling_formats.py"): {
        "worst frames of one event": ("worth = weight * distance", "worth = weight * 1"),
    },
    ("tdos_d2/data/reading.py", "tests/data/test_own_training_sets.py"): {
        "unknown colours are the nearest": ("unknown = known[place] != codes",
            "unknown = known[place] < 0"),
    },
    ("tdos_d2/engine/optimizer.py", "tests/engine/test_optimizer.py"): {
        "gradients not clipped": ("optimizer.register_step_pre_hook(clip_gradients)",
            "pass"),
        "norms decay": ("decay = weight_decay_norm", "decay = weight_decay"),
        "linear schedule": ("** solver.POLY_LR_POWER", "** 1"),
        "shortest prefix wins": ("max(fitting", "min(fitting"),
        "fused step with mixed precision": ("fused = not solver.AMP.ENABLED", "fused = True"),
    },
    ("tdos_d2/engine/optimizer.py", "tests/engine/test_learning.py"): {
        "learning rates times 100": ("lr = base_lr * factor", "lr = 100 * base_lr * factor"),
    },
    ("tdos_d2/data/ood_paste.py",
     "tests/data/test_ood_paste.py tests/data/test_dataset_mapper.py"): {
        "pasted pixels keep their label": ("label[hard > 0] = self.ood_label", "pass"),
        "pasted as the last known class": ("ood_label=len(names)", "ood_label=len(names) - 1"),
        "OOD label reaches the seam": ("label[hard > 0]", "label[alpha[..., 0] > 0]"),
    },
    ("tdos_d2/data/augmentation.py", "tests/data/test_dataset_mapper.py"): {
        "padding is class 0": ("constant_values=IGNORE", "constant_values=0"),
        "vertical for horizontal flip": ("horizontal=not vertical, vertical=vertical",
            "horizontal=vertical, vertical=not vertical"),
    },
    ("tdos_d2/data/dataset_mapper.py", "tests/data/test_dataset_mapper.py"): {
        "image mirrored, label not": ("return aug_input.image,",
            "return aug_input.image[:, ::-1],"),
    },
    ("tdos_d2/data/samplers.py", "tests/data/test_samplers.py"): {
        "all ranks see the same samples": ("start + rank", "start"),
        "one order for all epochs": ("spawn_key=(_ORDER, epoch)", "spawn_key=(_ORDER,)"),
    },
    ("tdos_d2/data/reading.py", "tests/data/test_reading.py"): {
        "void of OOD sets is known": ('metadata.get("ignore_values", (255,)))] = IGNORE',
            'metadata.get("ignore_values", (255,)))] = 0'),
    },
    ("tdos_d2/data/reading.py", "tests/data/test_registration_file.py"): {
        "region mask not applied": ("[read_region(region_mask, path, label)] = IGNORE", "[:0] = 0"),
    },
}  # fmt: skip


class Mutant(NamedTuple):
    """A mutation: ``text``, which occurs once in ``file``, becomes ``replacement``."""

    file: str
    tests: str
    what: str
    text: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"

    def apply(self, root: Path) -> str:
        """Change the file below ``root``; returns the old text. ValueError if not found once."""
        path = root / self.file
        before = path.read_text() if path.is_file() else ""
        if before.count(self.text) != 1:
            raise ValueError(f"{self}: {self.text!r} is there {before.count(self.text)} times")
        path.write_text(before.replace(self.text, self.replacement))
        return before


def mutants() -> Iterator[Mutant]:
    """All of them."""
    for (file, tests), breaks in MUTANTS.items():
        for what, texts in breaks.items():
            yield Mutant(file, tests, what, *texts)


def copy_repository(target: Path) -> None:
    """Copy git's files of the working tree, and new files that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def failed(root: Path, tests: str, log: Path) -> bool:
    """Whether one of the ``tests`` of the copy in ``root`` fails; its output goes to ``log``.

    Raises:
        RuntimeError: the tests could not be run.
    """
    # Forked: a new process would import torch first, which takes longer than most tests.
    process = multiprocessing.get_context("fork").Process(target=_run, args=(root, tests, log))
    process.start()
    process.join()
    if process.exitcode not in (0, 1):
        raise RuntimeError(f"{tests}: pytest ended with {process.exitcode}\n{log.read_text()}")
    return process.exitcode == 1


def _run(root: Path, tests: str, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # two changes of a file within a second would not be noticed
    os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "tdos_d2"]:
        del sys.modules[name]  # modules that a caller has imported are not the copy's
    import pytest

    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests.split()])
    package = sys.modules.get("tdos_d2")
    if package is not None and not Path(package.__file__).is_relative_to(root):
        status = f"another tdos_d2 was tested: {package.__file__}"
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 99)


def main() -> int:
    """Run the mutations of the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutations with one of these in their name")
    parser.add_argument("--list", action="store_true", help="show them and run nothing")
    args = parser.parse_args()
    chosen = [m for m in mutants() if not args.words or any(w in str(m) for w in args.words)]
    if args.list or not chosen:
        print(*chosen, sep="\n")
        return 0 if chosen else 2
    import detectron2.engine  # noqa: F401  the children have it from here

    bad = []
    with tempfile.TemporaryDirectory() as folder:
        root, log = Path(folder, "copy"), Path(folder, "log")
        copy_repository(root)
        for tests in dict.fromkeys(m.tests for m in chosen):
            if failed(root, tests, log):
                print(log.read_text())
                bad.append(f"fails without any mutation: {tests}")
        for mutant in chosen if not bad else ():
            try:
                before = mutant.apply(root)
                noticed = failed(root, mutant.tests, log)
                (root / mutant.file).write_text(before)
            except ValueError as error:
                noticed = False
                mutant = error
            print(f"{'noticed ' if noticed else 'SURVIVES'} {mutant}", flush=True)
            if not noticed:
                bad.append(f"survives: {mutant}")
    print(f"\n{len(chosen)} mutations, {len(bad)} to look at", *bad, sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
