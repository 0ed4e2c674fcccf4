"""Static int8 quantization of ONNX files: weights and activations in 8 bits, the scaling of the images in float."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipelines.console.files import write_bytes
from training.runtimes.onnx_runtime import INPUT

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""The operators that the work is in; what stands between the images and the first of them is scaling."""


def quantize_file(source: Path, target: Path, batches: Iterable[NDArray[np.uint8]]) -> None:
    """Quantize an exported network: QDQ, activations uint8, weights int8 with a scale per output channel.

    The network decides which ranges its activations take on the images shown here. Images that are not its own give a
    file that is as fast and as large as a good one, and not as accurate.

    Args:
        source: From `export_onnx`.
        target: The file to write, atomically. The card in the metadata comes along.
        batches: uint8 [n, size, size, 3] each.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(source, prepared)  # folds batch normalization into convolutions, which then hide no rounding
        quantize_static(
            prepared,
            quantized,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=scaling_nodes(onnx.load(prepared)),
        )
        model = onnx.load(quantized)
        del model.metadata_props[:]
        model.metadata_props.extend(onnx.load(source, load_external_data=False).metadata_props)
    write_bytes(target, model.SerializeToString())


def scaling_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that turn levels into what the network eats: before its first layer with weights.

    They stay in float: rounding the levels again and again before the first layer costs accuracy and saves nothing.

    Args:
        model: With nodes in topological order, as ONNX demands.
    """
    from_images, from_weights = {value.name for value in model.graph.input}, set[str]()
    names = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED or from_weights.intersection(node.input):
            from_weights.update(node.output)
        elif from_images.intersection(node.input):
            from_images.update(node.output)
            names.append(node.name)
    return names


class _Batches:
    """Images, the way onnxruntime asks for them: a `CalibrationDataReader`."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice from onnxruntime on the root logger: a user can do nothing about it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
