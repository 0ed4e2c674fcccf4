"""Run an ONNX file through onnxruntime. Imports neither torch nor DALI."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipelines.errors import UsageError
from training.model.card import HEADER_KEY, ModelCard, parse_card

INPUT, OUTPUT = "images", "logits"
QUANTIZED = (b"QuantizeLinear", b"QLinearConv", b"ConvInteger")


class OnnxRuntime:
    """See `training.runtimes.base.Runtime`; several threads may call `logits` at the same time.

    Args:
        model: An ONNX file that Tacopress wrote, or its contents.
        threads: CPU threads that one forward pass may use.
        device: Where it runs; cuda needs onnxruntime-gpu.
        name: What messages call the file when contents are given.

    Raises:
        UsageError: No such file, no ONNX, or none that Tacopress wrote; no GPU for onnxruntime.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1, device: str = "cpu", name: str = "") -> None:
        path = model if isinstance(model, Path) else Path(name or "the ONNX model")
        data = _contents(path) if isinstance(model, Path) else model
        self._session = _session(data, path, threads, device)
        self.card = _card(self._session, path)
        bits = "int8" if any(word in data for word in QUANTIZED) else "fp32"
        self.name = f"onnxruntime-{bits}" + ("" if device == "cpu" else f"-{device}")
        self.threads = threads
        self.size = self.card.size
        self.classes = self.card.classes

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime`."""
        (result,) = self._session.run([OUTPUT], {INPUT: images})
        return result


def _contents(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give an ONNX file that Tacopress exported")
    return path.read_bytes()


def _session(data: bytes, path: Path, threads: int, device: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: warnings speak of the graph, which a user cannot change
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise UsageError("this onnxruntime cannot use a GPU; install onnxruntime-gpu, or leave --device at cpu")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[provider])
    except Exception as error:  # onnxruntime's own kinds are not exported
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is no ONNX file that onnxruntime can run ({reason}); export it again") from error
    if provider not in session.get_providers():  # it goes on without a GPU whose libraries it cannot load
        raise UsageError("onnxruntime cannot reach the GPU; install what its CUDA version needs, or take --device cpu")
    return session


def _card(session: onnxruntime.InferenceSession, path: Path) -> ModelCard:
    try:
        return parse_card(session.get_modelmeta().custom_metadata_map[HEADER_KEY], path)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} was not exported by Tacopress ({error!r}): its classes and scaling are unknown; "
            f"export it from the model file"
        ) from error
