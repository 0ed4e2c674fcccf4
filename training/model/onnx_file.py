"""An ONNX file of a model: takes levels as the engines render them, and carries the model's card."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pipelines.console.files import write_bytes
from pipelines.errors import TacopressError
from pipelines.tensors import scale_and_offset
from training.model.card import HEADER_KEY, ModelCard, card_text
from training.runtimes.onnx_runtime import INPUT, OUTPUT, OnnxRuntime

OPSET = 20
"""With it, onnxruntime 1.18 and later read the file."""
PROOF_IMAGES = 4
TOLERANCE = 1e-4
"""Of the largest logit: what the file's answers may differ from the model's."""


class ExportError(TacopressError):
    """The file would not answer as the model does. Exit status 1."""


class FromLevels(nn.Module):
    """A network that takes levels: uint8 [n, size, size, 3] → float32 logits [n, classes].

    Args:
        network: Takes normalised float32 [n, 3, size, size].
        card: Its mean and deviation.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        scale, offset = scale_and_offset(card.mean, card.std)
        self.scale = nn.Buffer(scale, persistent=False)
        self.offset = nn.Buffer(offset, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scale, shift and run."""
        levels = images.permute(0, 3, 1, 2).to(torch.float32)
        logits: Tensor = self.network(torch.addcmul(self.offset, levels, self.scale))
        return logits


def export_onnx(path: Path, model: nn.Module, card: ModelCard) -> float:
    """Write an ONNX file, atomically, after it has answered as the model does.

    The input `images` is uint8 [n, size, size, 3], any n: scaling and shifting are part of the graph, so that whoever
    runs it cannot get them wrong. The output `logits` is float32 [n, classes]. The card stands in the metadata.

    Args:
        path: Ends in `.onnx`.
        model: On the CPU; not changed.
        card: Goes with it.

    Returns:
        The largest difference between the file's answers and the model's, as a share of the largest logit.

    Raises:
        ExportError: The exporter cannot express the model, or the file's answers are not the model's.
    """
    with _evaluating(model):
        network = FromLevels(model, card).eval()
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (PROOF_IMAGES, card.size, card.size, 3), dtype=np.uint8)
        data = _exported(network, torch.from_numpy(images), card, path)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
    answers = OnnxRuntime(data, name=str(path)).logits(images)
    error = float(np.abs(answers - expected).max() / max(np.abs(expected).max(), 1e-6))
    if not error <= TOLERANCE:
        raise ExportError(
            f"{path} was not written: {card.architecture} answers otherwise in ONNX (by {error:.1e} of the largest "
            f"logit, {TOLERANCE:.0e} is allowed); keep the .safetensors file and run it with torch"
        )
    write_bytes(path, data)
    return error


def _exported(network: nn.Module, images: Tensor, card: ModelCard, path: Path) -> bytes:
    dynamic = {"images": {0: torch.export.Dim("n", min=1, max=65_536)}}
    try:
        with _silence():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter and what it calls have dozens
        raise ExportError(
            f"{path} was not written: {card.architecture} cannot be expressed in ONNX "
            f"({_reason(error)}); keep the .safetensors file and run it with torch"
        ) from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # names and lines of the exporter's sources: paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    proto.ClearField("metadata_props")
    onnx.helper.set_model_props(proto, {HEADER_KEY: card_text(card)})
    file = io.BytesIO()
    onnx.save_model(proto, file)
    return file.getvalue()


def _reason(error: BaseException) -> str:
    """The first line of what started it all; what wraps it speaks of the exporter's steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode, and back in its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter speaks of its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
