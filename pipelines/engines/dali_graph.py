"""The DALI graph: decode, fit, ops, flip. Everything random or geometric comes in as per-sample inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.augmentations import FILL, GEOMETRIC, LUMA, OPS
from pipelines.engines.dali_compat import Dali

Node = Any
"""A nvidia.dali DataNode."""


@dataclass(frozen=True)
class GraphShape:
    """What distinguishes one graph from another.

    Attributes:
        encoded: Files to decode; otherwise raw pixels.
        there: Raw pixels lie on the GPU already.
        resize: Images are fitted; otherwise they have the right size already.
        crop: Some placement shows only a part of its image.
        views: Number of placements per sample: 1, or one for each round where crops differ.
        rounds: Versions of each sample.
        slots: Ops applied one after the other.
    """

    encoded: bool
    there: bool
    resize: bool
    crop: bool
    views: int
    rounds: int
    slots: int


BRANCH_OF_OP = {
    "Identity": "identity",
    "Invert": "invert",
    "Contrast": "contrast",
    "AutoContrast": "auto_contrast",
    "Cutout": "cutout",
    "Brightness": "brightness",
    "Equalize": "equalize",
    "Solarize": "solarize",
    "Posterize": "posterize",
    "Sharpness": "sharpness",
    "Color": "color",
    **dict.fromkeys(GEOMETRIC, "affine"),
}
"""Method of `Ops` that carries out each op; the affine maps share one."""

BRANCHES = tuple(dict.fromkeys(BRANCH_OF_OP.values()))
BRANCH_OF_CODE = np.array([BRANCHES.index(BRANCH_OF_OP[op.name]) for op in OPS], np.int32)
"""int32 [len(OPS)]: code in a plan → position in `BRANCHES`."""


class Ops:
    """One method per op, as DALI nodes.

    Args:
        dali: The installed version.
        gpu: Images live on the GPU; parameters of arithmetic have to be moved there.
    """

    def __init__(self, dali: Dali, *, gpu: bool) -> None:
        self.dali, self.fn, self.types, self.gpu = dali, dali.fn, dali.types, gpu

    def functions(self) -> list[Callable[..., Node]]:
        """The functions in the order of `BRANCHES`, each (image, inputs...) → image."""
        return [getattr(self, name) for name in BRANCHES]

    def _near(self, node: Node) -> Node:
        return node.gpu() if self.gpu else node

    def identity(self, image: Node, **_: Node) -> Node:
        """Nothing."""
        return image

    def invert(self, image: Node, **_: Node) -> Node:
        """255 - x."""
        return self.types.Constant(255, dtype=self.types.UINT8) - image

    def brightness(self, image: Node, *, value: Node, **_: Node) -> Node:
        """Levels times the factor."""
        return self.fn.brightness(image, brightness=value)

    def contrast(self, image: Node, *, value: Node, **_: Node) -> Node:
        """Distance to the mean luma times the factor."""
        mean = self.fn.reductions.mean(image, axis_names="HW", keep_dims=True)
        weights = self.types.Constant(np.array(LUMA, dtype=np.float32), device="gpu" if self.gpu else "cpu")
        centre = self.fn.reductions.sum(mean * weights, axis_names="C", keep_dims=True)
        return self.fn.cast_like(centre + (image - centre) * self._near(value), image)

    def auto_contrast(self, image: Node, **_: Node) -> Node:
        """Darkest level to 0, brightest to 255, per channel."""
        low = self.fn.reductions.min(image, axis_names="HW", keep_dims=True)
        high = self.fn.reductions.max(image, axis_names="HW", keep_dims=True)
        flat = high == low
        span = self.fn.cast(high - low, dtype=self.types.FLOAT) + flat
        stretched = (image - low) * (255.0 / span)
        return self.fn.cast_like(flat * image + (flat ^ True) * stretched, image)

    def cutout(self, image: Node, *, anchor: Node, shape: Node, **_: Node) -> Node:
        """A grey rectangle."""
        return self.fn.erase(image, anchor=anchor, shape=shape, axis_names="HW", fill_value=float(FILL))

    def equalize(self, image: Node, **_: Node) -> Node:
        """Histogram equalisation per channel, the formula of OpenCV."""
        return self.dali.equalize(image)

    def solarize(self, image: Node, *, value: Node, **_: Node) -> Node:
        """Invert levels at or above the threshold."""
        above = image >= self._near(value)
        inverted = self.types.Constant(255, dtype=self.types.UINT8) - image
        return self.fn.cast_like(above * inverted + (above ^ True) * image, image)

    def posterize(self, image: Node, *, value: Node, **_: Node) -> Node:
        """Keep the upper bits; the value is the mask."""
        return image & self._near(self.fn.cast(value, dtype=self.types.UINT8))

    def sharpness(self, image: Node, *, kernel: Node, **_: Node) -> Node:
        """A 3 x 3 filter."""
        return self.dali.filter(image, self._near(kernel), border="reflect_101")

    def color(self, image: Node, *, kernel: Node, **_: Node) -> Node:
        """Each pixel's distance to its own luma times the factor; `fn.saturation` would take other weights."""
        return self.fn.coord_transform(image, M=kernel, dtype=self.types.UINT8)

    def affine(self, image: Node, *, matrix: Node, **_: Node) -> Node:
        """Rotate, mirror, zoom, translate or shear, bilinear, grey outside."""
        return self.fn.warp_affine(
            image, matrix=matrix, fill_value=float(FILL), interp_type=self.types.INTERP_LINEAR, inverse_map=True
        )


def build_graph(dali: Dali, shape: GraphShape, *, size: int, gpu: bool) -> tuple[Node, ...]:
    """Wire up the graph; to be called inside a `pipeline_def(enable_conditionals=True)` function.

    Inputs are external sources named `image`, `view{v}_{start,extent,size,offset}`, `op{r}_{s}_{code,value,…}` and
    `flip{r}`.

    Returns:
        One node per round: uint8 HWC.
    """
    fn, types = dali.fn, dali.types
    where = "gpu" if shape.there else "cpu"
    image = fn.external_source(
        name="image", no_copy=True, device=where, ndim=1 if shape.encoded else 3, dtype=types.UINT8
    )
    if shape.encoded:
        image = fn.decoders.image(image, output_type=types.RGB, **(_MIXED if gpu else {"device": "cpu"}))
    else:
        image = fn.reshape(image, layout="HWC")
        image = image.gpu() if gpu and not shape.there else image
    views = (
        [_fitted(dali, image, view, size, crop=shape.crop) for view in range(shape.views)] if shape.resize else [image]
    )
    ops = Ops(dali, gpu=gpu).functions()
    outputs = []
    for number in range(shape.rounds):
        result = views[number % len(views)]
        for slot in range(shape.slots):
            inputs = {name: _input(dali, f"op{number}_{slot}_{name}", ndim) for name, ndim in SLOT_NDIM.items()}
            code = fn.external_source(name=f"op{number}_{slot}_code", device="cpu", ndim=0, dtype=types.INT32)
            result = dali.select(ops, code, result, **inputs)
        flip = fn.external_source(name=f"flip{number}", device="cpu", ndim=0, dtype=types.INT32)
        outputs.append(fn.flip(result, horizontal=flip))
    return tuple(outputs)


SLOT_NDIM = {"value": 0, "matrix": 2, "kernel": 2, "anchor": 1, "shape": 1}
"""Per-sample inputs of one op, float32 on the CPU, with their number of dimensions: value [] (its meaning depends on
the op), matrix [2, 3] (output → input), kernel [3, 3] (Sharpness: of the filter; Color: of the channels), anchor [2]
and shape [2] (Cutout: top, left; height, width; px)."""


def _input(dali: Dali, name: str, ndim: int) -> Node:
    return dali.fn.external_source(name=name, device="cpu", ndim=ndim, dtype=dali.types.FLOAT)


def _fitted(dali: Dali, image: Node, view: int, size: int, *, crop: bool) -> Node:
    """Resize the placement's source and lay it on the grey square."""
    fn = dali.fn
    if crop:  # not through the resize's own region: that would blend in pixels from outside of it
        start, extent = _input(dali, f"view{view}_start", 1), _input(dali, f"view{view}_extent", 1)
        image = fn.slice(image, _integers(dali, start), _integers(dali, extent), **_IN_PIXELS)
    part = fn.resize(
        image, size=_input(dali, f"view{view}_size", 1), interp_type=dali.types.INTERP_LINEAR, antialias=True
    )
    return fn.slice(
        part,
        _integers(dali, _input(dali, f"view{view}_offset", 1)),
        dali.types.Constant(np.array([size, size], np.int32), device="cpu"),  # 2.4 would fetch it back from the GPU
        out_of_bounds_policy="pad",
        fill_values=float(FILL),
        **_IN_PIXELS,
    )


_MIXED = {"device": "mixed", "jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0}
"""Chroma is interpolated as libjpeg does it; no batch is split between decoders, so pixels depend on the file alone."""

_IN_PIXELS = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}


def _integers(dali: Dali, node: Node) -> Node:
    return dali.fn.cast(node, dtype=dali.types.INT32)
