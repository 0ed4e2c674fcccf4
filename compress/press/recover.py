"""Recovery: a pressed model is trained on by the training engine, as a recipe says."""

import argparse
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from augment_cache.format.manifest import MANIFEST_NAME, file_sha256
from augment_cache.format.strict_yaml import load_yaml
from augment_cache.opening.sources import ANNOTATIONS_NAME
from pipelines.console.files import write_json
from pipelines.console.job import is_rank
from pipelines.console.parser import make_parser, parse
from pipelines.errors import UsageError
from pipelines.sources import SPLITS, list_images
from training.distill import distill
from training.distillation.options import DistillConfig
from training.engine.config import TrainConfig
from training.engine.data import LEARNED_SPLITS, image_shape
from training.engine.folder import LAST_NAME, changes
from training.model.model_file import BEST_NAME, read_card
from training.train import train

MARK_NAME = "recovery.json"
"""In the folder of a recovery: which model it began with, and whether it is finished."""

Config = TypeVar("Config")

Train = Callable[[Any], dict[str, Any]]


def recover(model_file: Path, recipe: Path, out: Path, overrides: Mapping[str, Any]) -> Path:
    """Train a pressed model on, in this process.

    The same call goes on where it was stopped, and returns at once when it had finished.

    Args:
        model_file: The pressed model. Its input size is kept; its weights are what training starts from.
        recipe: YAML of training.distill, or of training.train if neither it nor an override speaks of
            a teacher or a method.
        out: Folder of the run; `recovery.json` in it says which model it belongs to.
        overrides: Options besides, by their dotted names.

    Returns:
        The model file of the run: the best where it has validated, otherwise the last.

    Raises:
        UsageError: The recipe cannot be used; or the folder holds something else: the recovery of another model, or
            with other options. It is never begun anew.
        PreemptedError: A signal stopped it; everything is saved.
    """
    config, job = read_recipe(recipe, model_file, out, overrides)
    mark = {"model": str(model_file), "sha256": file_sha256(model_file)}
    found = _read_mark(out)
    if found is None and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UsageError(f"{out} holds no recovery; choose another --work, or delete it")
    if found is not None and found["sha256"] != mark["sha256"]:
        raise UsageError(f"{out} holds the recovery of another model ({found['model']}); choose another --work")
    if found is not None and found.get("finished"):
        if difference := changes(config):
            raise UsageError(f"{out} holds a recovery with other options ({difference}); choose another --work")
        return _model_of(out)
    write_json(out / MARK_NAME, mark)
    job(config)
    model = _model_of(out)
    write_json(out / MARK_NAME, mark | {"finished": True})
    return model


def read_recipe(recipe: Path, model_file: Path, out: Path, overrides: Mapping[str, Any]) -> tuple[TrainConfig, Train]:
    """The options of a recovery, and the job that takes them.

    Raises:
        UsageError: The recipe is none, says something wrong, or trains at another size than the model takes.
    """
    if is_rank():
        raise UsageError("recovery runs in one process; start without accelerate launch")
    if model_file.suffix != ".safetensors":
        raise UsageError(f"{model_file} is no model file (.safetensors)")
    values = read_mapping(
        recipe, "--recover", "give a recipe of training.distill or training.train, as in training/recipes"
    )
    card = read_card(model_file)
    asked = values.get("data", {}).get("size") if isinstance(values.get("data", {}), dict) else None
    if asked not in (None, card.size):
        raise UsageError(f"--recover {recipe} trains at {asked} px, the model takes {card.size}; leave out data.size")
    named = {*values, *(name.partition(".")[0] for name in overrides)}
    kind: type[TrainConfig] = DistillConfig if {"method", "teacher", "chain"} & named else TrainConfig
    # Weights of the recipe would replace those of the pressed model, and a finished recovery is never thrown away.
    fixed: dict[str, object] = {"model.name": model_file, "model.weights": None, "data.size": card.size, "out": out}
    fixed |= {"overwrite": False, "resume": "auto"}
    # Another split would learn from what the model is measured on.
    split = card.provenance.get("split", {})
    fixed |= {f"data.{name}": split[name] for name in ("val", "test", "split_seed") if name in split}
    if taken := sorted(set(overrides) & set(fixed)):
        raise UsageError(f"--recover {recipe}: {taken[0]} is set by the press; leave it out")
    words = [f"--{name}={as_word(value)}" for name, value in {**overrides, **fixed}.items()]
    config = parse_options(kind, ["--config", str(recipe), *words], "training.train", f"--recover {recipe}")
    if config.data.folds:
        raise UsageError(
            f"--recover {recipe} asks for cross-validation, which has no single model; leave out data.folds"
        )
    fit = image_shape(config.data.path, config.data.size)[1]
    if fit != card.fit:
        raise UsageError(f"{config.data.path} has images of fit {fit}, the model takes {card.fit}; build another cache")
    return config, distill if kind is DistillConfig else train


def as_word(value: object) -> str:
    """A value as it stands on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def identity_of(data: Path, work: Path) -> str:
    """What tells data from other data: of a cache the digest of its manifest, else of the images' names and sizes.

    Args:
        data: A cache, a folder of images, or photos with annotations, which count, too.
        work: A folder that does not count, should it lie there.
    """
    manifest, annotations = data / MANIFEST_NAME, data / ANNOTATIONS_NAME
    if manifest.is_file():
        return file_sha256(manifest)
    roots = [folder for folder in (data / split for split in SPLITS) if folder.is_dir()] or [data]
    files = [root / name for root in roots for name in list_images(root)]
    marks: list[object] = [file_sha256(annotations)] if annotations.is_file() else []
    for file in files:
        if work.absolute() not in file.absolute().parents:
            marks.append((file.relative_to(data).as_posix(), file.stat().st_size))
    return sha256(repr(marks).encode()).hexdigest()


def recovery_options(data: Path, teacher: str) -> dict[str, object]:
    """What a press tells all its recoveries: what to learn from, and who teaches if it is not the recipe's."""
    return {"data.path": data} | ({"teacher.paths": teacher} if teacher else {})


def check_recovery(config: TrainConfig, recipe: Path, split: str) -> None:
    """A recovery that learns from what macro F1 is measured on would let everything go.

    Raises:
        UsageError: It does.
    """
    if split in LEARNED_SPLITS[config.data.train_on]:
        raise UsageError(
            f"--recover {recipe} learns from the {split} split, on which macro F1 is measured; set data.train_on to "
            "train, or choose another --split"
        )


def parse_options(kind: type[Config], words: list[str], name: str, what: str) -> Config:
    """Options of a job that another job runs, checked as on its own command line.

    Args:
        kind: The config of the job.
        words: Its command line.
        name: Module path of the job.
        what: Who gave them, for messages.

    Raises:
        UsageError: The job does not take them.
    """
    parser = make_parser(kind, name=name, summary="", example="")
    parser.exit_on_error = False
    try:
        return parse(parser, kind, words)[0]
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
    except (argparse.ArgumentError, SystemExit, ValueError, TypeError) as error:
        raise UsageError(f"{what}: {error}; options are those of python -m {name}, see its --help") from error


def read_mapping(path: Path, option: str, cure: str) -> dict[str, Any]:
    """Read a recipe.

    Args:
        path: YAML.
        option: That it was given by, for messages.
        cure: What to give instead of what is missing, likewise.

    Raises:
        UsageError: It is missing, or no YAML mapping.
    """
    if not path.is_file():
        raise UsageError(f"{option} {path} does not exist; {cure}")
    try:
        values = load_yaml(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{option} {path} is no YAML ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{option} {path} holds no options; {cure}")
    return values


def _read_mark(out: Path) -> dict[str, Any] | None:
    path = out / MARK_NAME
    if not path.is_file():
        return None
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
        return {"model": str(mark["model"]), "sha256": str(mark["sha256"]), "finished": bool(mark.get("finished"))}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); delete {out}") from error


def _model_of(out: Path) -> Path:
    best, last = out / BEST_NAME, out / LAST_NAME
    if not best.is_file() and not last.is_file():
        raise UsageError(f"{out} holds no model; delete it")
    return best if best.is_file() else last
