"""Who teaches: a run, a model file, a named network with its weights, or an ONNX file; always in eval mode."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.engines.base import RenderSpec
from pipelines.errors import UsageError
from pipelines.tensors import TensorFormat
from training.engine.folder import BEST_NAME, LAST_NAME
from training.engine.learner import EMBEDDING, Taps, last_map, tap_shapes
from training.engine.objective import LOGITS
from training.model.card import ModelCard, ancestry
from training.model.classifier import classifier_names
from training.model.create import check_input_size, create_model, load_state, preprocessing, read_state_dict
from training.model.model_file import find_model, load_model, read_card
from training.model.names import YAML_ENDINGS, resolve
from training.model.start import HUB, start_from


@dataclass(frozen=True)
class Features:
    """A map of a teacher that is wanted.

    Attributes:
        name: Of the answer.
        path: Of the layer; empty for its last map.
        side: (height, width) that it is averaged to, if it is larger.
    """

    name: str
    path: str
    side: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a teacher.

    Attributes:
        logits: What it thinks of each class.
        embedding: What goes into its classifier.
        features: Maps of its layers.
    """

    logits: bool = True
    embedding: bool = False
    features: tuple[Features, ...] = ()


class Teacher(Protocol):
    """Answers for images.

    Attributes:
        name: For people and for the names of folders.
        fingerprint: SHA-256 of what it was made from.
        spec: Size and fit of the images that it wants.
        columns: Name of each answer → its shape for one image.
        provenance: Its `architecture`, and what its file says: `learned_from`, how the data was `split`, the `weights`
            that it started from, its own `teachers`.
    """

    name: str
    fingerprint: str
    spec: RenderSpec
    columns: dict[str, tuple[int, ...]]
    provenance: dict[str, Any]

    def ask(self, levels: Tensor) -> dict[str, Tensor]:
        """Answer for a batch.

        Args:
            levels: uint8, or float in 0 to 255: [n, 3, size, size] on the device of the run.

        Returns:
            Float32 on the same device, for each of the columns, logits in the order of the student's classes.
        """
        ...


def open_teacher(
    words: str, classes: tuple[str, ...], spec: RenderSpec, wanted: Wanted, device: torch.device
) -> Teacher:
    """Open what an option names.

    Args:
        words: A run folder, a model file, an .onnx file, NAME=FILE (a network and a state dict for it), or NAME (a
            network of timm with the weights of timm's hub).
        classes: The student's.
        spec: The student's; of teachers that do not say what images they want.
        wanted: What will be asked.
        device: Where it runs.

    Raises:
        UsageError: There is no such teacher, or it cannot answer.
    """
    if Path(words).suffix == ".onnx":
        return OnnxTeacher(Path(words), classes, wanted)
    name, equals, file = words.partition("=")
    if Path(words).exists() or (not equals and Path(words).suffix == ".safetensors"):
        return _from_file(find_model(Path(words)), classes, wanted, device)
    if equals and _is_model_file(Path(file)):  # which says more than its name
        return _from_file(Path(file), classes, wanted, device)
    if equals and not file:
        raise UsageError(f"--teacher.paths {words}: after the = stands a file of weights; name one")
    try:
        resolve(name)
    except UsageError as error:
        raise UsageError(
            f"--teacher.paths {words} is neither a run folder nor a model file nor an ONNX file, and as a name: {error}"
        ) from error
    return _from_name(name, file, classes, spec, wanted, device)


def _is_model_file(path: Path) -> bool:
    try:
        read_card(path)
    except UsageError:
        return False
    return True


def _from_file(path: Path, classes: tuple[str, ...], wanted: Wanted, device: torch.device) -> "TorchTeacher":
    model, card = load_model(path)
    return TorchTeacher(
        model,
        card,
        places=class_places(card.classes, classes, str(path)) if wanted.logits else [],
        wanted=wanted,
        device=device,
        name=path.resolve().parent.name if path.name in (BEST_NAME, LAST_NAME) else path.stem,
        fingerprint=sha256(path.read_bytes()).hexdigest(),
    )


def _from_name(
    name: str, file: str, classes: tuple[str, ...], spec: RenderSpec, wanted: Wanted, device: torch.device
) -> "TorchTeacher":
    model = create_model(name, len(classes))
    check_input_size(model, name, spec.size)
    if file:
        state = read_state_dict(Path(file))
        load_state(model, state, file)
        same = all(key in state and state[key].shape == value.shape for key, value in model.state_dict().items())
    else:
        try:
            start_from(model, name, HUB, classes)
        except UsageError as error:
            raise UsageError(f"--teacher.paths {name}: {error}; as a teacher, {name}=FILE") from error
        same = False
    if wanted.logits and not same:
        raise UsageError(
            f"--teacher.paths {name}{'=' * bool(file)}{file}: its weights are not of a classifier of these "
            f"{len(classes)} classes; fine-tune it first (training.train --model.weights), or take a method that looks "
            "at features only"
        )
    digest = sha256(name.encode())
    heads = () if wanted.logits else tuple(f"{head}." for head in classifier_names(model))  # random, and not asked
    for key, value in model.state_dict().items():
        if key.startswith(heads):
            continue
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    mean, std = preprocessing(model)
    card = ModelCard(architecture=name, classes=classes, size=spec.size, fit=spec.fit, mean=mean, std=std)
    return TorchTeacher(
        model,
        card,
        places=list(range(len(classes))),
        wanted=wanted,
        device=device,
        name=re.sub(r"[^\w.+-]", "-", Path(name).stem if name.endswith(YAML_ENDINGS) else name),
        fingerprint=digest.hexdigest(),
    )


def class_places(own: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """Which of a teacher's outputs are the student's classes, in their order; it may know more.

    Raises:
        UsageError: It does not know one of them.
    """
    missing = [name for name in classes if name not in own]
    if missing:
        raise UsageError(
            f"the teacher {where} knows no class {missing[0]!r} (it knows {', '.join(own)}); train it on the same "
            "classes"
        )
    return [list(own).index(name) for name in classes]


class TorchTeacher:
    """A network of PyTorch, see `Teacher`.

    Args:
        model: On the CPU; becomes the teacher's own.
        card: What it expects.
        places: Its outputs that are the student's classes; empty where no logits are wanted.
        wanted: What will be asked.
        device: Where it runs.
        name: For people.
        fingerprint: Of its weights.

    Raises:
        UsageError: It has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        *,
        places: list[int],
        wanted: Wanted,
        device: torch.device,
        name: str,
        fingerprint: str,
    ) -> None:
        self.name, self.spec = name, RenderSpec(card.size, card.fit)
        self.provenance = ancestry(card)
        shapes = tap_shapes(model, card.size)
        self.columns: dict[str, tuple[int, ...]] = {}
        self._paths: dict[str, str] = {}
        if wanted.logits:
            self.columns[LOGITS] = (len(places),)
        if wanted.embedding:
            self._paths[EMBEDDING] = EMBEDDING
            self.columns[EMBEDDING] = _shape_of(shapes, EMBEDDING, name)
        for features in wanted.features:
            path = features.path or last_map(shapes)
            channels, *side = _shape_of(shapes, path, name)
            if len(side) != 2:
                raise UsageError(f"the teacher {name}: {path} puts out no map; name another layer")
            self._paths[features.name] = path
            self.columns[features.name] = (channels, min(side[0], features.side[0]), min(side[1], features.side[1]))
        self._maps = [features.name for features in wanted.features]
        self.fingerprint = sha256(repr([fingerprint, self._paths, self.columns, places]).encode()).hexdigest()
        self._taps = Taps(model, list(self._paths.values()))
        self._places = torch.tensor(places, dtype=torch.int64, device=device)
        model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._model = model.to(device)
        self._format = TensorFormat("float32", card.mean, card.std)

    def ask(self, levels: Tensor) -> dict[str, Tensor]:
        """See `Teacher`."""
        with torch.no_grad():
            logits = self._model(self._format(levels))
            seen = {name: self._taps.seen[path] for name, path in self._paths.items()}
            self._taps.seen.clear()
            for name in self._maps:
                _, height, width = self.columns[name]
                seen[name] = functional.adaptive_avg_pool2d(seen[name], (height, width))
            if LOGITS in self.columns:
                seen[LOGITS] = logits[:, self._places]
            return {name: seen[name].float().contiguous() for name in self.columns}


def _shape_of(shapes: dict[str, tuple[int, ...]], path: str, name: str) -> tuple[int, ...]:
    if path not in shapes:
        raise UsageError(
            f"the teacher {name} has no layer {path!r} that puts out a tensor; its last are "
            f"{', '.join(list(shapes)[-4:])}"
        )
    return shapes[path]


class OnnxTeacher:
    """A network in an ONNX file that Tacopress exported, see `Teacher`. It answers with logits only.

    Args:
        path: The file.
        classes: The student's.
        wanted: What will be asked.

    Raises:
        UsageError: No such file, or more than logits is wanted.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], wanted: Wanted) -> None:
        from training.runtimes.onnx_runtime import OnnxRuntime

        if wanted.embedding or wanted.features:
            raise UsageError(
                f"the teacher {path} shows logits only: an ONNX file has no inner layers; give a model file"
            )
        self._runtime = OnnxRuntime(path, threads=torch.get_num_threads())
        card = self._runtime.card
        self._places = class_places(card.classes, classes, str(path))
        self.name, self.spec = path.stem, RenderSpec(card.size, card.fit)
        self.columns: dict[str, tuple[int, ...]] = {LOGITS: (len(classes),)}
        self.fingerprint = sha256(path.read_bytes() + repr(self._places).encode()).hexdigest()
        self.provenance = ancestry(card)

    def ask(self, levels: Tensor) -> dict[str, Tensor]:
        """See `Teacher`."""
        whole = levels if levels.dtype == torch.uint8 else levels.round().clamp(0, 255).to(torch.uint8)
        images = np.ascontiguousarray(whole.permute(0, 2, 3, 1).cpu().numpy())
        logits = torch.from_numpy(self._runtime.logits(images)[:, self._places])
        return {LOGITS: logits.to(levels.device)}
