"""Losses against hand-worked values and the formulas of the method."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tdos_d2.modeling.criterion import TDOSCriterion, _sample


def flat_case(masks, labels, outputs=1):
    """Masks that are constant over the image: the losses do not depend on the points drawn."""
    masks = torch.tensor(masks)[None, None, :, None, None].expand(outputs, 1, -1, 4, 4)
    classes = torch.zeros(outputs, 1, masks.shape[2], masks.shape[2] + 1)
    return classes, masks, torch.zeros(1, masks.shape[2], 2, 2), torch.tensor(labels)


def test_class_loss_is_the_weighted_mean():
    """K = 1: query 0 has class 0, query 1 (OOD) is absent, so "no object"."""
    criterion = TDOSCriterion(1, class_weight=2.0, ood_weight=10.0, no_object_weight=0.1)
    classes, masks, score_map, labels = flat_case([0.0, 0.0], [[[0, 0], [0, 0]]])
    classes[0, 0] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    log_sum = [math.log(math.e + 2), math.log(2 + math.e**2)]
    ce = [log_sum[0] - 1.0, log_sum[1] - 0.0]
    expected = 2.0 * (1.0 * ce[0] + 0.1 * ce[1]) / 1.1
    assert criterion(classes, masks, score_map, labels)["loss_class"] == pytest.approx(expected)


def test_ood_weight_applies_where_ood_is_present():
    criterion = TDOSCriterion(1, class_weight=1.0, ood_weight=10.0, no_object_weight=0.1)
    classes, masks, score_map, labels = flat_case([0.0, 0.0], [[[0, 1], [255, 0]]])
    classes[0, 0] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    ce = [math.log(math.e + 2) - 1, math.log(2 + math.e**2) - 2]
    expected = (ce[0] + 10 * ce[1]) / 11
    assert criterion(classes, masks, score_map, labels)["loss_class"] == pytest.approx(expected)


def test_mask_and_dice_of_constant_masks():
    criterion = TDOSCriterion(1, mask_weight=5.0, dice_weight=5.0, num_points=16)
    inputs = flat_case([1.5, -1.0], [[[0] * 4] * 4])
    losses = criterion(*inputs)
    assert losses["loss_mask"] == pytest.approx(5 * math.log(1 + math.exp(-1.5)), rel=1e-5)
    s = 1 / (1 + math.exp(-1.5))
    dice = 1 - (2 * 16 * s + 1) / (16 * s + 16 + 1)  # 16 points, all true
    assert losses["loss_dice"] == pytest.approx(5 * dice, rel=1e-5)


def test_every_output_counts_the_same():
    criterion = TDOSCriterion(1, num_points=16)
    one = criterion(*flat_case([1.5, -1.0], [[[0] * 4] * 4]))
    three = criterion(*flat_case([1.5, -1.0], [[[0] * 4] * 4], outputs=3))
    for term in ("loss_class", "loss_mask", "loss_dice"):
        assert three[term] == pytest.approx(3 * one[term].item(), rel=1e-5)


def test_masks_are_averaged_over_the_classes_present():
    criterion = TDOSCriterion(2, mask_weight=1.0, num_points=400, importance_ratio=0.0)
    labels = [[[0] * 4, [0] * 4, [1] * 4, [1] * 4]]  # OOD absent: its mask costs nothing
    torch.manual_seed(0)
    loss = criterion(*flat_case([3.0, -3.0, 50.0], labels))["loss_mask"]
    # random points: half of them true for each class, so both masks cost the mean of the two
    mean = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(3))) / 2
    assert loss == pytest.approx(mean, rel=0.35)


def test_points_of_each_output_meet_the_truth_at_the_same_place():
    """A mask that equals the truth costs next to nothing, for every output and image."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (2, 1, 2, 3), generator=generator).float()
    labels = F.interpolate(coarse, scale_factor=16, mode="nearest")[:, 0].long()
    onehot = (labels[:, None] == torch.arange(3)[:, None, None]).float()
    masks = (200 * onehot - 100).expand(3, -1, -1, -1, -1)
    criterion = TDOSCriterion(2, num_points=64, importance_ratio=0.0)
    losses = criterion(torch.zeros(3, 2, 3, 4), masks, torch.zeros(2, 3, 4, 6), labels)
    wrong = criterion(
        torch.zeros(3, 2, 3, 4), masks.flip(1), torch.zeros(2, 3, 4, 6), labels
    )
    assert losses["loss_dice"] < 0.3 < wrong["loss_dice"]
    assert losses["loss_mask"] * 20 < wrong["loss_mask"]


def test_score_map_loss_ignores_void():
    criterion = TDOSCriterion(1, temperature=0.5, score_map_weight=1.0)
    score_map = torch.tensor([0.3, -0.2]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    labels = torch.tensor([[[0, 0], [1, 255]]])
    inputs = (torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 2, 2), score_map, labels)
    log_sum = math.log(math.exp(0.6) + math.exp(-0.4))
    expected = (2 * (log_sum - 0.6) + (log_sum + 0.4)) / 3
    assert criterion(*inputs)["loss_score_map"] == pytest.approx(expected, rel=1e-5)


def test_nothing_but_void_gives_finite_losses_with_a_graph():
    criterion = TDOSCriterion(1)
    classes = torch.zeros(1, 1, 2, 3, requires_grad=True)
    masks = torch.zeros(1, 1, 2, 4, 4, requires_grad=True)
    score_map = torch.zeros(1, 2, 2, 2, requires_grad=True)
    losses = criterion(classes, masks, score_map, torch.full((1, 8, 8), 255))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert masks.grad is not None and masks.grad.abs().sum() == 0


def test_values_at_points_are_bilinear_and_the_border_continues():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 1, 5, 7, generator=generator)
    points = torch.rand(2, 40, 2, generator=generator)
    found = _sample(maps, points)
    for i in range(2):
        for j, (x, y) in enumerate(points[i].tolist()):
            # the middle of cell k is at (k + 0.5) / size
            x, y = min(max(7 * x - 0.5, 0), 6), min(max(5 * y - 0.5, 0), 4)
            left, top = min(int(x), 5), min(int(y), 3)
            u, v = x - left, y - top
            (a, b), (c, d) = maps[i, 0, top : top + 2, left : left + 2].tolist()
            expected = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
            assert found[i, 0, j].item() == pytest.approx(expected, abs=1e-5)


def test_points_are_drawn_where_the_mask_is_uncertain():
    """A mask with a ramp along x: the uncertain points lie near its zero, the rest everywhere."""
    criterion = TDOSCriterion(1, num_points=200, oversample_ratio=4.0, importance_ratio=0.75)
    ramp = torch.linspace(-8, 8, 32).expand(1, 1, 32, 32)  # (O, n, h, w), zero at x = 0.5
    torch.manual_seed(0)
    points = criterion._sample_points(ramp, lambda points: points[..., 0] < 0)
    assert points.shape == (1, 200, 2) and points.min() >= 0 and points.max() <= 1
    distance = (points[0, :, 0] - 0.5).abs()
    assert distance[:150].max() < 0.15  # 150 of 800 candidates: within 0.094 on average
    assert distance[150:].max() > 0.3
    assert points[0, :150, 1].std() > 0.2


@pytest.mark.parametrize("ignore_void", [True, False])
def test_masks_are_free_on_void(ignore_void):
    """Whatever a mask says on void costs nothing by default."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 24, 24), generator=generator)
    labels[0, :, 12:], labels[1, 5:9, 5:9], labels[1, 20:] = 255, 255, 255
    masks = torch.randn(3, 2, 3, 24, 24, generator=generator)
    other = torch.where(labels[:, None] == 255, 5 - masks, masks)
    # importance_ratio 0: the points do not depend on the masks
    criterion = TDOSCriterion(2, num_points=300, importance_ratio=0.0, ignore_void=ignore_void)
    losses = []
    for m in (masks, other):
        torch.manual_seed(0)
        losses.append(criterion(torch.zeros(3, 2, 3, 4), m, torch.zeros(2, 3, 4, 4), labels))
    same = [torch.equal(losses[0][k], losses[1][k]) for k in ("loss_mask", "loss_dice")]
    assert same == [ignore_void] * 2


@pytest.mark.parametrize("ignore_void", [True, False])
def test_mask_losses_with_void_by_brute_force(ignore_void):
    """One image, one class, one output: the formulas point by point, in NumPy."""
    labels = torch.zeros(1, 6, 9, dtype=torch.long)
    labels[0, :, 3:5], labels[0, 4:, :] = 2, 255  # K = 2: classes 0 and OOD, void below
    masks = torch.randn(1, 1, 3, 6, 9, generator=torch.Generator().manual_seed(1))
    criterion = TDOSCriterion(2, num_points=54, importance_ratio=0.0, ignore_void=ignore_void)
    torch.manual_seed(3)
    got = criterion(torch.zeros(1, 1, 3, 4), masks, torch.zeros(1, 3, 2, 2), labels)
    torch.manual_seed(3)
    torch.rand(2, 3 * 54, 2)  # the candidates
    points = torch.rand(2, 54, 2).numpy()
    bces, dices = [], []
    for chosen, query in zip(points, (0, 2), strict=True):
        terms = []
        for x, y in chosen:
            corners = [
                (min(max(row, 0), 5), min(max(column, 0), 8), wy * wx)
                for row, wy in weights_along(y * 6 - 0.5)
                for column, wx in weights_along(x * 9 - 0.5)
            ]
            if ignore_void and any(labels[0, i, j] == 255 for i, j, _ in corners):
                continue
            truth = sum(w * float(labels[0, i, j] == query) for i, j, w in corners)
            logit = sum(w * float(masks[0, 0, query, i, j]) for i, j, w in corners)
            share = 1 / (1 + math.exp(-logit))
            bce = -truth * math.log(share) - (1 - truth) * math.log(1 - share)
            terms.append((bce, share, truth))
        bces.append(sum(t[0] for t in terms) / len(terms))
        product = sum(s * t for _, s, t in terms)
        dices.append(1 - (2 * product + 1) / (sum(s + t for _, s, t in terms) + 1))
    assert got["loss_mask"].item() == pytest.approx(5 * sum(bces) / 2, rel=1e-4)
    assert got["loss_dice"].item() == pytest.approx(5 * sum(dices) / 2, rel=1e-4)


def weights_along(place: float) -> list[tuple[int, float]]:
    low = math.floor(place)
    return [(low, low + 1 - place), (low + 1, place - low)]


def test_uncertain_points_are_not_spent_on_void():
    """The mask is least certain on void, where nothing trains it: points go elsewhere."""
    criterion = TDOSCriterion(1, num_points=200, importance_ratio=0.75)
    masks = torch.full((1, 1, 20, 20), 4.0)
    masks[..., 10:] = 0.0
    left = criterion._sample_points(masks, lambda points: points[..., 0] > 0.5)[0, :150, 0]
    right = criterion._sample_points(masks, lambda points: points[..., 0] < 0)[0, :150, 0]
    assert (left <= 0.5).all() and (right > 0.4).all()


def losses_of(images: list[int]) -> dict[str, float]:
    """Losses of a batch of flat images: masks that differ from image to image, truth that is one
    class all over the image or, in image 3, void. Whatever the points, the terms are the same."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 4, 3, 4, generator=generator)
    masks = torch.randn(2, 4, 3, 1, 1, generator=generator).expand(-1, -1, -1, 4, 4)
    labels = torch.tensor([0, 1, 2, 255])[:, None, None].expand(-1, 8, 8)
    # Class weights of one: all queries count the same, in whichever process they are.
    criterion = TDOSCriterion(
        2, ood_weight=1, no_object_weight=1, score_map_weight=0, num_points=16
    )
    score_map = torch.zeros(len(images), 3, 2, 2)
    losses = criterion(classes[:, images], masks[:, images], score_map, labels[images])
    return {name: loss.item() for name, loss in losses.items()}


def one_of_two(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(losses_of([[0, 1], [2, 3]][rank]), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_the_loss_of_two_processes_is_that_of_the_joint_batch(tmp_path):
    """Two masks in one process and one in the other: the mean of their losses is the joint one."""
    # Forked: a new process would import torch first.
    torch.multiprocessing.start_processes(
        one_of_two, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    joint = losses_of([0, 1, 2, 3])
    assert min(joint.values()) > 0.1
    assert {name: (first[name] + second[name]) / 2 for name in joint} == pytest.approx(joint)
