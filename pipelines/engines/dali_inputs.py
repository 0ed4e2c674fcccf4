"""What a DALI graph is told of each sample: placements, and the numbers of its ops. Pure functions."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.augmentations import GEOMETRIC, OPS, affine, color_matrix, cutout_box, posterize_mask, sharpness_kernel
from pipelines.decode import read_header
from pipelines.engines.base import Image, RenderSpec
from pipelines.engines.dali_graph import BRANCH_OF_CODE
from pipelines.fit import Box, place
from pipelines.plan import Plan

Images = list[Image] | torch.Tensor
"""One array per image, or one for all of them: uint8 [n, height, width, 3], on the engine's device."""


def sizes_of(images: Images) -> list[tuple[int, int]]:
    """(height, width) of each image."""
    if not isinstance(images, list):
        return [(images.shape[1], images.shape[2])] * len(images)
    return [(image.shape[0], image.shape[1]) if image.ndim == 3 else read_header(image).upright for image in images]


def view_inputs(images: Images, plan: Plan, spec: RenderSpec, views: int, *, crop: bool) -> dict[str, Any]:
    """Inputs of the placements: where each starts and how far it extends (if any crops), its size and its offset."""
    sizes = sizes_of(images)
    inputs: dict[str, Any] = {}
    for view in range(views):
        rows = [_placed(spec, *key) for key in zip(sizes, map(tuple, plan.box[view].tolist()), strict=True)]
        table = np.array(rows, np.float32).reshape(len(images), 8)
        for part, name in enumerate(("start", "extent", "size", "offset")):
            if crop or name in ("size", "offset"):
                inputs[f"view{view}_{name}"] = np.ascontiguousarray(table[:, 2 * part : 2 * part + 2])
    return inputs


@lru_cache(maxsize=1024)  # images of one cache share their size, and without crops all of them share the box
def _placed(spec: RenderSpec, side: tuple[int, int], box: Box) -> tuple[float, ...]:
    """Start, extent, size and offset of a placement, each (vertical, horizontal)."""
    placement = place(*side, spec.size, spec.fit, box)
    source, target = placement.source, placement.target
    starts, extents = (source.top, source.left), (source.height, source.width)
    return *starts, *extents, target.height, target.width, -target.top, -target.left


def slot_inputs(plan: Plan, number: int, slot: int, size: int) -> dict[str, NDArray[Any]]:
    """Inputs of one op of one round; for each op only those that it reads mean anything, see `SLOT_NDIM`."""
    codes, values = plan.op[number, :, slot], plan.value[number, :, slot]
    count = len(codes)
    value = values.astype(np.float32)
    matrix = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (count, 1, 1))
    kernel = np.tile(sharpness_kernel(0.0), (count, 1, 1))
    anchor, shape = np.zeros((count, 2), np.float32), np.zeros((count, 2), np.float32)
    for code in np.unique(codes).tolist():
        name, places = OPS[code].name, np.flatnonzero(codes == code)
        strengths = values[places].tolist()
        if name in ("Brightness", "Contrast"):
            value[places] = 1.0 + values[places]
        elif name == "Posterize":
            value[places] = [posterize_mask(strength) for strength in strengths]
        elif name == "Sharpness":
            kernel[places] = sharpness_kernel(values[places])
        elif name == "Color":
            kernel[places] = color_matrix(values[places])
        elif name == "Cutout":
            centres = plan.centre[number, places, slot].tolist()
            boxes = [cutout_box(each, (x, y), size) for each, (x, y) in zip(strengths, centres, strict=True)]
            left, top, width, height = np.array(boxes).T
            anchor[places], shape[places] = np.stack([top, left], 1), np.stack([height, width], 1)
        elif name in GEOMETRIC:
            matrix[places] = [affine(name, strength, size) for strength in strengths]
    prefix = f"op{number}_{slot}_"
    return {
        prefix + "code": BRANCH_OF_CODE[codes],
        prefix + "value": value,
        prefix + "matrix": matrix,
        prefix + "kernel": kernel,
        prefix + "anchor": anchor,
        prefix + "shape": shape,
    }
