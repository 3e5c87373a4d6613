"""What a detector learns by: its boxes matched to the objects, and the losses of those pairs.

As Liu et al. 2023 have it from DETR (Carion et al. 2020) and DINO (Zhang et al. 2023).
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

CLASS, L1, GIOU = 2.0, 5.0, 2.0  # weights of the losses; of the matching's costs too


def stages(network: Any, pictures: Tensor, captions: list[str]) -> list[tuple[Tensor, Tensor]]:
    """Logits (B, Q, L) and boxes (B, Q, 4) of the encoder's proposals and of each decoder layer, in this order."""
    kept: dict[str, Any] = {}

    def keep(_: Any, given: tuple[Any, ...], made: Any) -> None:
        kept["text"], kept["made"] = given[6], made

    hook = network.transformer.register_forward_hook(keep)
    try:
        last = network(pictures, captions=captions)
    finally:
        hook.remove()
    text, (hidden, references, proposals, proposed, _) = kept["text"], kept["made"]
    found = [(network.transformer.enc_out_class_embed(proposals[-1], text), proposed[-1])]
    for layer, reference, box, name in zip(hidden, references, network.bbox_embed, network.class_embed, strict=False):
        moved = (box(layer) + torch.logit(reference, eps=1e-3)).sigmoid()
        found.append((name(layer, text), moved))
    return [*found[:-1], (last["pred_logits"], last["pred_boxes"])]


def detection_loss(logits: Tensor, boxes: Tensor, tokens: list[list[slice]], wanted: list[Tensor]) -> Tensor:
    """One stage's loss over a batch, per object.

    Args:
        logits: (B, Q, L), -inf where no token is.
        boxes: (B, Q, 4) centre and sides, as shares.
        tokens: of each object of each picture.
        wanted: (n, 4) boxes of each picture's objects.
    """
    total, count = logits.new_zeros(()), max(1, sum(map(len, wanted)))
    for each, guess, spans, truth in zip(logits, boxes, tokens, wanted, strict=True):
        read = each[:, torch.isfinite(each[0])]
        target = torch.zeros_like(read)
        if spans:
            queries, objects = match(read, guess, spans, truth)
            for query, number in zip(queries, objects, strict=True):
                target[query, spans[number]] = 1
            near, right = guess[queries], truth[objects]
            corners = [box_convert(side, "cxcywh", "xyxy") for side in (near, right)]
            apart = generalized_box_iou_loss(*corners, reduction="sum")
            total = total + L1 * (near - right).abs().sum() + GIOU * apart
        total = total + CLASS * sigmoid_focal_loss(read, target).sum()
    return total / count


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, spans: list[slice], truth: Tensor) -> tuple[list[int], list[int]]:
    """The cheapest assignment of queries to objects: (queries, objects)."""
    ones, zeros = (
        sigmoid_focal_loss(logits, torch.ones_like(logits)),
        sigmoid_focal_loss(logits, torch.zeros_like(logits)),
    )
    named = torch.stack([(ones - zeros)[:, span].mean(1) for span in spans], 1)
    corners = [box_convert(side, "cxcywh", "xyxy") for side in (boxes, truth)]
    cost = CLASS * named + L1 * torch.cdist(boxes, truth, p=1) - GIOU * generalized_box_iou(*corners)
    queries, objects = linear_sum_assignment(cost.numpy())
    return queries.tolist(), objects.tolist()
