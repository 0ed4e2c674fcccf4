"""Train a small network with the help of a larger one (distillation), or of parts that only training has."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.console.job import run_job
from pipelines.console.output import say
from pipelines.console.words import names_in
from pipelines.engines.base import RenderSpec
from pipelines.errors import UsageError
from training.distillation.cards import methods_text
from training.distillation.methods.base import Method, Student
from training.distillation.methods.catalogue import alpha_of, make_methods
from training.distillation.objective import Distilled
from training.distillation.options import DistillConfig, links
from training.distillation.teachers import Teacher, Wanted, open_teacher
from training.engine.agree import agreeing
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
        for link in links(config):
            report = _distill(link, signals)
    return report


def _distill(config: DistillConfig, signals: StopSignals) -> dict[str, Any]:
    machine = start(config)
    methods = make_methods(config.method)
    alpha = alpha_of(config.method, methods)
    checkpoint = claim(config, machine.accelerator)
    with agreeing(machine.accelerator):
        _check(config, methods)
        sources = training_sources(config.data)
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
    facts = {"alpha": alpha, "temperature": methods[0].temperature, "teachers": [found.name for found in teachers]}
    return report | {"method": config.method.name} | facts if report else report


def _check(config: DistillConfig, methods: list[Method]) -> None:
    """Raises UsageError where methods and options do not go together."""
    needing = [method.card.name for method in methods if method.needs_teacher]
    if needing and not config.teacher.paths:
        raise UsageError(f"--method.name {needing[0]} needs a teacher; name one with --teacher.paths")
    if not needing and config.teacher.paths:
        raise UsageError(f"--method.name {config.method.name} asks no teacher; leave out --teacher.paths")
    if config.mix.mixup > 0 or config.mix.cutmix > 0:
        for method in methods:
            if method.lone_classifier:
                raise UsageError(f"--method.name {method.card.name} needs one label per image; leave out --mix")
    lone = [method.card.name for method in methods if method.lone_classifier]
    taught = [method.card.name for method in methods if method.asks_logits]
    if lone and taught:
        raise UsageError(
            f"--method.name {lone[0]} keeps what the classifier learns from the layers before it, so {taught[0]} would "
            "teach the classifier alone; name one of the two"
        )
    out = config.out.resolve()
    for words in names_in(config.teacher.paths):
        path = Path(words).resolve()
        if path == out or (path.is_file() and path.parent == out):
            raise UsageError(
                f"the teacher {words} lies in --out {config.out}, which a new run replaces; choose another"
            )


def _prepared(
    config: DistillConfig, machine: Machine, methods: list[Method], network: Network
) -> tuple[Network, list[Teacher]]:
    """The network with what it needs for training, and its teachers."""
    card = network.card
    student = Student(
        network=network.model,
        shapes=tap_shapes(network.model, card.size),
        classes=len(card.classes),
        size=card.size,
    )
    wanted = _wanted(config, methods, student)
    spec, device = RenderSpec(card.size, card.fit), machine.accelerator.device
    teachers = [
        open_teacher(words, card.classes, spec, _only_logits(wanted) if number else wanted, device)
        for number, words in enumerate(names_in(config.teacher.paths))
    ]
    _warn_of_leaks(config, machine, network, teachers)
    parts: dict[str, Part] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for method in methods:
            parts |= method.parts(student, teachers[0] if teachers else None)
    taught = {
        "method": config.method.name,
        "alpha": alpha_of(config.method, methods),
        "teachers": [f"{teacher.name} {teacher.fingerprint[:12]}" for teacher in teachers],
    }
    lone = any(method.lone_classifier for method in methods)
    card = replace(card, provenance={**card.provenance, **taught})
    return replace(network, card=card, parts=parts, lone_classifier=lone), teachers


def _wanted(config: DistillConfig, methods: list[Method], student: Student) -> Wanted:
    """What is asked of the first teacher."""
    sides = [method.side(student) for method in methods if method.asks_features]
    return Wanted(
        logits=config.teacher.only_right or any(method.asks_logits for method in methods),
        embedding=any(method.asks_embedding for method in methods),
        features=config.method.teacher_layer if sides else "",
        side=sides[0] if sides else (1, 1),
    )


def _only_logits(wanted: Wanted) -> Wanted:
    """What is asked of the other teachers."""
    if not wanted.logits:
        raise UsageError(
            "only logits of several teachers can be combined; name one teacher, or add kd to --method.name"
        )
    return Wanted()


def _warn_of_leaks(config: DistillConfig, machine: Machine, network: Network, teachers: list[Teacher]) -> None:
    """A teacher that has learned from what the student is validated or tested on makes both scores too good."""
    own = {key: network.card.provenance[key] for key in ("split", "learned_from")}
    for teacher in teachers:
        if teacher.learned_from and teacher.learned_from != own and machine.accelerator.is_main_process:
            say(
                f"distill: the teacher {teacher.name} has learned from other samples ({teacher.learned_from}) than "
                f"this run does ({own}); scores on samples that it knows are too good"
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
