"""Train a small network with the help of a larger one (distillation), or of parts that only training has."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.console.job import run_job
from pipelines.console.output import say
from pipelines.console.words import names_in
from pipelines.engines.base import RenderSpec
from pipelines.errors import UsageError
from pipelines.sources import Source
from training.distillation.cards import methods_text
from training.distillation.methods.base import Method, Student
from training.distillation.methods.catalogue import alpha_of, make_methods, temperature_of
from training.distillation.objective import Distilled
from training.distillation.options import DistillConfig, links
from training.distillation.teachers import Teacher, Wanted, open_teacher
from training.engine.agree import agreeing
from training.engine.checkpoint import Checkpoints
from training.engine.data import training_sources
from training.engine.folder import claim
from training.engine.learner import Part, tap_shapes
from training.engine.preemption import StopSignals
from training.engine.setup import Machine, Network, assemble, start, supervised
from training.train import make_network, table

EXAMPLE = """
  python -m training.distill --methods
  accelerate launch -m training.distill --config training/recipes/distill.yaml --teacher.paths runs/pretrained
  accelerate launch -m training.distill --config training/recipes/distill_seed.yaml --teacher.paths runs/pretrained
  accelerate launch -m training.distill --data.path out/cache --teacher.paths runs/a,runs/b,best.onnx --method.name dist
"""


def distill(config: DistillConfig) -> dict[str, Any]:
    """Train with a teacher, or go on training.

    Returns:
        The report, on the first process only. Keys: those of training.train, for the last network of a chain; `method`,
        `alpha`, `temperature`, `teachers` (their names).

    Raises:
        PreemptedError: A signal stopped it; everything is saved.
    """
    with StopSignals() as signals:
        runs = links(config)
        for link in runs:
            report = _distill(link, signals, later=runs[1:] if link is runs[0] else [])
    return report


def _distill(config: DistillConfig, signals: StopSignals, later: Sequence[DistillConfig]) -> dict[str, Any]:
    machine = start(config)
    methods = make_methods(config.method)
    alpha = alpha_of(config.method, methods)
    checkpoint = claim(config, machine.accelerator)
    with agreeing(machine.accelerator):
        _check(config, methods)
        sources = training_sources(config.data)
        for link in later:  # hours before they begin
            _check_link(link, sources[0])
        network = make_network(config, sources[0], started=checkpoint is not None)
        teachers: list[Teacher] = []
        if alpha > 0:
            network, teachers = _prepared(config, machine, methods, network)
    run = assemble(
        config,
        machine,
        sources,
        network,
        signals,
        (lambda setting: Distilled(config, methods, teachers, setting)) if alpha > 0 else supervised,
        "distill",
    )
    try:
        report = run.fit(checkpoint)
    finally:
        run.train_loader.engine.close()
    facts = {"alpha": alpha, "temperature": temperature_of(methods), "teachers": [found.name for found in teachers]}
    return report | {"method": config.method.name} | facts if report else report


def _check(config: DistillConfig, methods: list[Method]) -> None:
    """Raises UsageError where methods and options do not go together."""
    _check_methods(config, methods)
    if config.method.alpha != 0:
        _check_teachers(config, [method.card.name for method in methods if method.needs_teacher])


def _check_link(config: DistillConfig, source: Source) -> None:
    """Raises UsageError where a later link of a chain could not begin, as far as that shows without its teacher."""
    methods = make_methods(config.method)
    _check(config, methods)
    begun = bool(Checkpoints(config.out, config.save.keep).paths())
    student = _student(make_network(config, source, started=begun))
    for method in methods if alpha_of(config.method, methods) > 0 else ():
        method.features(student)
        if not method.needs_teacher:
            method.parts(student, None)


def _check_methods(config: DistillConfig, methods: list[Method]) -> None:
    images, taught = config.data.batch_size // config.accumulate, any(method.asks_logits for method in methods)
    for method in methods:
        name = method.card.name
        if method.most_images and images > method.most_images:
            raise UsageError(
                f"--method.name {name} compares all triples of {images} images, which takes gigabytes; take "
                f"--data.batch_size {method.most_images} at most, or --accumulate"
            )
        if method.lone_classifier and (config.mix.mixup > 0 or config.mix.cutmix > 0):
            raise UsageError(f"--method.name {name} needs one label per image; leave out --mix")
        if method.lone_classifier and taught:
            raise UsageError(
                f"--method.name {config.method.name}: with {name} nothing that the classifier learns reaches the "
                "layers before it, so a teacher's logits would not either; name one of the two"
            )
    if config.method.balanced:
        _check_balanced(config, methods)
    chooses = bool(config.stop.patience) or config.schedule.name == "plateau"
    if chooses and not taught and alpha_of(config.method, methods) == 1:
        raise UsageError(
            f"--method.name {config.method.name} with --method.alpha 1 trains no classifier, so that validation scores "
            "say nothing; leave out --stop.patience and --schedule.name plateau"
        )


def _check_balanced(config: DistillConfig, methods: list[Method]) -> None:
    alike = [method.card.name for method in methods if not method.weighs_images]
    if alike:
        raise UsageError(f"--method.balanced true: {alike[0]} compares images, which count alike; leave it out")
    if not config.loss.class_balance:
        raise UsageError("--method.balanced true takes the weights of --loss.class_balance, which is 0; give 0.5 or 1")


def _check_teachers(config: DistillConfig, needing: list[str]) -> None:
    if needing and not config.teacher.paths:
        raise UsageError(f"--method.name {needing[0]} needs a teacher; name one with --teacher.paths")
    if not needing and config.teacher.paths:
        raise UsageError(f"--method.name {config.method.name} asks no teacher; leave out --teacher.paths")
    out = config.out.resolve()
    for words in names_in(config.teacher.paths):
        path = Path(words).resolve()
        if path == out or (path.is_file() and path.parent == out):
            raise UsageError(f"the teacher {words} lies in --out {config.out}, which a new run replaces; take another")


def _prepared(
    config: DistillConfig, machine: Machine, methods: list[Method], network: Network
) -> tuple[Network, list[Teacher]]:
    """The network with what it needs for training, and its teachers."""
    card, student = network.card, _student(network)
    wanted = _wanted(config, methods, student)
    spec, device = RenderSpec(card.size, card.fit), machine.accelerator.device
    teachers = [
        open_teacher(words, card.classes, spec, _only_logits(wanted) if number else wanted, device)
        for number, words in enumerate(names_in(config.teacher.paths))
    ]
    _warn_of_leaks(machine, network, teachers)
    parts: dict[str, Part] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for method in methods:
            parts |= method.parts(student, teachers[0] if teachers else None)
    taught = {
        "method": config.method.name,
        "alpha": alpha_of(config.method, methods),
        "teachers": [
            {"name": teacher.name, "fingerprint": teacher.fingerprint, **teacher.provenance} for teacher in teachers
        ],
    }
    lone = any(method.lone_classifier for method in methods)
    card = replace(card, provenance={**card.provenance, **taught})
    return replace(network, card=card, parts=parts, lone_classifier=lone), teachers


def _student(network: Network) -> Student:
    card = network.card
    shapes = tap_shapes(network.model, card.size)
    return Student(network=network.model, shapes=shapes, classes=len(card.classes), size=card.size)


def _wanted(config: DistillConfig, methods: list[Method], student: Student) -> Wanted:
    """What is asked of the first teacher."""
    return Wanted(
        logits=config.teacher.only_right or any(method.asks_logits for method in methods),
        embedding=any(method.asks_embedding for method in methods),
        features=tuple(features for method in methods for features in method.features(student)),
    )


def _only_logits(wanted: Wanted) -> Wanted:
    """What is asked of the other teachers."""
    if not wanted.logits:
        raise UsageError(
            "only logits of several teachers can be combined; name one teacher, or add kd to --method.name"
        )
    return Wanted()


def _warn_of_leaks(machine: Machine, network: Network, teachers: list[Teacher]) -> None:
    """A teacher that has learned from what the student is validated or tested on makes both scores too good."""
    own = network.card.provenance
    for teacher in teachers:
        theirs = teacher.provenance
        if "learned_from" not in theirs or not machine.accelerator.is_main_process:
            continue
        knows, mine = (set(str(found.get("learned_from", "")).split("+")) for found in (theirs, own))
        if theirs.get("split") != own["split"] or not knows <= mine | {"train"}:
            say(
                f"distill: the teacher {teacher.name} has learned from {theirs.get('learned_from')} of the split "
                f"{theirs.get('split')}, this run from {own['learned_from']} of {own['split']}: scores on samples that "
                "only the teacher knows are too good"
            )


def main() -> None:
    """Run the job, or explain the methods."""
    if "--methods" in sys.argv[1:]:
        sys.stdout.write(methods_text())
        return
    run_job(DistillConfig, distill, name="training.distill", summary=SUMMARY, example=EXAMPLE, table=table)


SUMMARY = f"""{__doc__}

The loss is (1 - alpha) of --loss on the labels, and alpha of the method. --methods explains the methods."""


if __name__ == "__main__":
    main()
