"""Train a classifier on a cache or a folder of crops, on one process or many (accelerate launch, srun)."""

from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from pipelines.console.job import run_job
from pipelines.console.output import human_seconds, render_table
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from pipelines.sources import Source
from training.engine.agree import agreeing
from training.engine.config import ModelConfig, TrainConfig
from training.engine.data import image_shape, told_split, training_sources
from training.engine.folder import BEST_NAME, claim
from training.engine.folds import cross_validate, own_folder, predict_fold
from training.engine.preemption import StopSignals
from training.engine.setup import Network, assemble, start
from training.model.card import ModelCard, ancestry
from training.model.create import check_input_size, create_model, definition_of, preprocessing
from training.model.model_file import find_model, is_model_file, load_own_weights, read_card, rebuild
from training.model.start import HUB, RANDOM, start_from

EXAMPLE = """
  accelerate launch -m training.train --config training/recipes/demo.yaml --data.path out/cache
  accelerate launch -m training.train --data.path out/cache --model.name resnet18 --out runs/resnet18
  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m training.train --data.path out/cache
  python -m training.train --data.path out/cache --data.folds 5 --out runs/folds
"""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training.

    Returns:
        The report, on the first process only. Keys: `run`, `best_epoch`, `epochs`, `steps`, `val_macro_f1` and
        `val_accuracy` (of the best epoch), `stopped_early`, `seconds`, `images_per_second`, `resumed_at` (step, 0 for a
        fresh run). With folds `run`, `folds`, `classes`, `macro_f1` and `accuracy` (out of fold), `samples`,
        `per_class`, `confusion`; `fold_macro_f1` (a list), its `mean` and `std`.

    Raises:
        PreemptedError: A signal stopped it; everything is saved.
    """
    with StopSignals() as signals:
        if config.data.folds and config.data.fold is None:
            return cross_validate(config, lambda fold: _train(fold, signals))
        return _train(own_folder(config), signals)


def _train(config: TrainConfig, signals: StopSignals) -> dict[str, Any]:
    machine = start(config)
    checkpoint = claim(config, machine.accelerator)
    with agreeing(machine.accelerator):
        sources = training_sources(config.data)
        network = make_network(config, sources[0], started=checkpoint is not None)
    run = assemble(config, machine, sources, network, signals)
    try:
        report = run.fit(checkpoint)
        if config.data.folds:
            predict_fold(config, machine, run)
        return report
    finally:
        run.train_loader.engine.close()


def make_network(config: TrainConfig, source: Source, *, started: bool = False) -> Network:
    """The network of a run, with the weights that it starts from.

    Args:
        config: Options of the run.
        source: What it learns from.
        started: The run has been started before: its weights come from its checkpoint.

    Raises:
        UsageError: There is none of that name, its weights do not fit, or it cannot take images of that size.
    """
    set_seed(config.seed)  # here, for several runs may follow each other in one process
    options, data = config.model, config.data
    if not started:
        refuse_own_weights(config)
    model, made = make_model(options, source.classes, with_weights=not started)
    size, fit_ = image_shape(data.path, data.size or (made.size if is_model_file(options.name) else None))
    if not started:
        start_from(model, made.architecture, options.weights, source.classes)
    check_input_size(model, options.name, size)
    learned = f"fold {data.fold} of {data.folds}" if data.folds else data.train_on
    starts = _starts(options)
    for card in starts.values():
        learned = card.learned_besides(learned)
    provenance = {
        "seed": config.seed,
        "precision": config.precision,
        "split": told_split(data),
        "learned_from": learned,
        "weights": options.weights,
        "timm": version("timm"),
        "torch": version("torch"),
    }
    told = {"starts": [{"name": name, **ancestry(card)} for name, card in starts.items()]} if starts else {}
    return Network(
        model=model,
        card=replace(made, size=size, fit=fit_, provenance=made.provenance | provenance | told),
        freeze=tuple(names_in(options.freeze)),
        channels_last=options.channels_last,
        sync_batchnorm=options.sync_batchnorm,
        compile=options.compile,
    )


def _starts(options: ModelConfig) -> dict[str, ModelCard]:
    """Name → card of the models whose weights a network starts from: they say what is known already."""
    name = options.name if is_model_file(options.name) and options.weights is None else None
    weights = options.weights if options.weights not in (HUB, RANDOM) else None
    found = {}
    for source in (name, weights):
        with suppress(UsageError):  # a state dict says nothing; of a resumed run the checkpoint says it
            if source:
                found[source] = read_card(find_model(Path(source)))
    return found


def make_model(options: ModelConfig, classes: tuple[str, ...], *, with_weights: bool) -> tuple[nn.Module, ModelCard]:
    """The network that the options name, and a card for it, whose size and fit are yet to be set.

    Args:
        options: An architecture by its name, or a model file: its architecture, edits and weights.
        classes: What is to be told apart.
        with_weights: Load those of a model file.

    Raises:
        UsageError: There is none of that name, or the model file tells other classes apart.
    """
    if not is_model_file(options.name):
        model = create_model(options.name, len(classes), drop_rate=options.drop_rate, drop_path=options.drop_path)
        mean, std = preprocessing(model)
        definition = definition_of(options.name)
        plain = ModelCard(
            architecture=options.name, definition=definition, classes=classes, size=64, fit="pad", mean=mean, std=std
        )
        return model, plain
    path = find_model(Path(options.name))
    card = read_card(path)
    if card.classes != classes:
        raise UsageError(
            f"--model.name {path} tells {', '.join(card.classes)} apart, the data has {', '.join(classes)}; give the "
            "data that belongs to it, or name its architecture and give the file as --model.weights"
        )
    model = rebuild(card, path, drop_rate=options.drop_rate, drop_path=options.drop_path)
    if with_weights and options.weights != RANDOM:
        load_own_weights(model, card, path)
    presses = card.provenance.get("presses")
    return model, replace(card, provenance={"presses": presses} if presses else {})


def refuse_own_weights(config: TrainConfig) -> None:
    """Starting weights in the folder of the run would be replaced by it.

    Raises:
        UsageError: They are there.
    """
    name, weights, out = config.model.name, config.model.weights, config.out.resolve()
    sources = {
        "--model.weights": weights if weights not in (HUB, RANDOM) else None,
        "--model.name": name if is_model_file(name) else None,
    }
    for option, source in sources.items():
        if source and out in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UsageError(f"{option} {source} lies in --out {config.out}, which a new run replaces; choose another")


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    if "folds" in report:
        return _folds_table(report)
    rows: list[list[Any]] = [["best epoch", f"{report['best_epoch']} of {report['epochs']}"]]
    if report["val_macro_f1"] is not None:
        rows.append(["macro F1 (validation)", report["val_macro_f1"]])
    rows += [
        ["images/s, evaluation included", report["images_per_second"]],
        ["time", human_seconds(report["seconds"])],
    ]
    text = render_table(["training", f">{report['run']}"], rows)
    return f"{text}\nmodel: {Path(report['run']) / BEST_NAME}"


def _folds_table(report: dict[str, Any]) -> str:
    scores = [[f"fold {number}", score] for number, score in enumerate(report["fold_macro_f1"])]
    rows = [*scores, ["all, out of fold", report["macro_f1"]]]
    return (
        render_table(["cross-validation", ">macro F1"], rows, title=report["run"])
        + f"\nmacro F1 of a fold {report['mean']:.4f} ± {report['std']:.4f} · accuracy {report['accuracy']:.4f} · "
        f"{report['samples']:,} samples"
    )


def main() -> None:
    """Run the job."""
    run_job(TrainConfig, train, name="training.train", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
