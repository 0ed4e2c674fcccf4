"""Press step by step with recovery in between; one row of F1, MACs, bytes, time and score for each rung.

A recipe names presses in order, each with the options of its own command, and what recovers between them. After each
rung the model is evaluated; a rung that costs more macro F1 than is allowed is rolled back, and the next one starts
from the model before it. The same command goes on wherever it was stopped.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from augment_cache.format.manifest import file_sha256
from compress.press.contract import OutOfReachError, Subject, facts, open_subject
from compress.press.recover import check_recovery, identity_of, recover, recovery_options
from compress.press.recover import read_recipe as read_recovery
from compress.press.working import working_in
from compress.rungs.climb import Climbed, best_of, climb
from compress.rungs.plot import draw_ladder
from compress.rungs.recipe import PRESSES, Rung, press_config, read_recipe
from pipelines.console.files import replacing, write_bytes, write_json
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import human_bytes, render_table, say
from pipelines.console.ranges import check_ranges
from pipelines.errors import UsageError
from training.evaluate import EvaluateConfig, evaluate

EXAMPLE = """
  python -m compress.ladder --recipe small --model runs/train --data out/cache --work runs/ladder
  python -m compress.ladder --recipe small --model runs/train --data out/cache \\
    --target macs=1.0e6 --teacher runs/teacher --work runs/million
"""

MODEL_NAME, REPORT_NAME, PICTURE_NAME = "model.safetensors", "ladder.json", "ladder.png"


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Options of the ladder job.

    Args:
        recipe: A name (small, demo) or a YAML file: `rungs`, a list of {press: layers | channels | low_rank | weights,
            OPTION: value, ...}; `recover`, a recipe of training.distill or training.train; `options` for it. A rung may
            have its own `recover` (null goes on without), `recover_options` and `allow`.
        model: Where to begin: a run folder (its best model), or a model file.
        data: A cache, a folder of crops, or a folder of class folders: to recover and to evaluate on.
        work: Folder of the ladder: a folder for each rung, model.safetensors (the last that was kept), ladder.json and
            ladder.png.
        target: How strong the rungs are that have no goal of their own: macs=1.0e6 lets each take away the same factor,
            so that the last one ends at so many MACs.
        allow: How far macro F1 on --split may fall from one rung to the next.
        split: What is decided by.
        test: Evaluate each rung on the test split too. It decides nothing.
        teacher: Who teaches in recoveries, as --teacher.paths of training.distill; the recipe's own when absent.
        presets: Competition scores to compute, as in training.evaluate.
        latency_rounds: Rounds in which the forward pass of one image is timed; 0 leaves it out.
    """

    recipe: Path
    model: Path
    data: Path
    work: Path
    target: str = ""
    allow: float = 0.02
    split: str = "val"
    test: bool = False
    teacher: str = ""
    presets: str = "p4-2021"
    latency_rounds: int = 50

    def __post_init__(self) -> None:
        check_ranges({"--allow": (self.allow, 0, 1), "--latency_rounds": (self.latency_rounds, 0, 1e6)})
        if self.split == "test":
            raise UsageError("--split test would choose by the test; take val, and --test true to see the test besides")
        target_macs(self.target)


def target_macs(target: str) -> int | None:
    """MACs of `macs=NUMBER`; None for an empty text.

    Raises:
        UsageError: It is something else.
    """
    if not target:
        return None
    name, _, value = target.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if name != "macs" or not 1 <= number < 1e15:
        raise UsageError(f"--target {target} is no goal; write macs=1.0e6 for a million multiply-accumulates")
    return int(number)


@dataclass(frozen=True, kw_only=True)
class _Workshop:
    """`compress.rungs.climb.Tools` for models and data."""

    config: LadderConfig

    def press(self, rung: Rung, number: int, model: Path, macs: int | None, out: Path) -> dict[str, Any]:
        """See `Tools`."""
        run = PRESSES[rung.press].run
        try:
            return run(press_config(rung, number, model, out, self.config.data, macs))
        except OutOfReachError as far:  # then as far as it gets; another rung does the rest
            if not rung.free:
                raise
            return run(press_config(rung, number, model, out, self.config.data, far.least))

    def recover(self, rung: Rung, pressed: Path, run: Path) -> Path:
        """See `Tools`."""
        assert rung.recover is not None
        return recover(pressed, rung.recover, run, overrides_of(self.config, rung))

    def evaluate(self, model: Path, folder: Path) -> dict[str, Any]:
        """See `Tools`."""
        found = self._evaluated(model, folder, self.config.split)
        return found | ({"tested": self._evaluated(model, folder, "test")} if self.config.test else {})

    def _evaluated(self, model: Path, folder: Path, split: str) -> dict[str, Any]:
        config = self.config
        rounds = config.latency_rounds if split == config.split else 0
        return evaluate(
            EvaluateConfig(
                model=model, data=config.data, split=split, out=folder, presets=config.presets, latency_rounds=rounds
            )
        )


def ladder(config: LadderConfig) -> dict[str, Any]:
    """Climb the ladder.

    Returns:
        The report. Keys: `model` (the last that was kept), `work`, `split`, `target_macs`, `reached` (null without a
        target), `before` and `after` (`macs`, `competition_macs`, `parameters`, `bytes`), `rungs`: `number`, `press`,
        `verdict` (start, kept, rolled back or no effect), `why`, `model`, `macro_f1`, `macs`, `evaluation` (the report
        of training.evaluate on --split; null without effect), `tested` (of the test split; null without --test).

    Raises:
        PreemptedError: A signal stopped it; everything is saved.
    """
    quiet_libraries()
    rungs = read_recipe(config.recipe)
    subject = open_subject(config.model)
    goal = target_macs(config.target)
    _check(config, rungs, subject, goal)
    with working_in(config.work) as pause:
        climbed = climb(
            subject.path,
            config.work,
            rungs,
            _Workshop(config=config),
            allow=config.allow,
            macs=goal,
            belongs=_belongs(config, rungs, subject.path),
            pause=pause,
            tell=_tell,
        )
    best = best_of(climbed)
    model = config.work / MODEL_NAME
    with replacing(model) as file, Path(best.model).open("rb") as source:
        shutil.copyfileobj(source, file)
    last = open_subject(model)
    report = {
        "model": str(model),
        "work": str(config.work),
        "split": config.split,
        "target_macs": goal,
        "reached": None if goal is None else best.macs <= goal,
        "before": facts(subject.model, subject.card, subject.path),
        "after": facts(last.model, last.card, model),
        "rungs": [asdict(one) for one in climbed],
    }
    title = f"{subject.card.architecture}, {subject.card.size} px, {config.split} split"
    write_bytes(config.work / PICTURE_NAME, draw_ladder(climbed, title))
    write_json(config.work / REPORT_NAME, report)
    return report


def overrides_of(config: LadderConfig, rung: Rung) -> dict[str, Any]:
    """Options of the recovery of a rung."""
    return {**rung.overrides, **recovery_options(config.data, config.teacher)}


def _check(config: LadderConfig, rungs: tuple[Rung, ...], subject: Subject, goal: int | None) -> None:
    """Everything that is wrong with a recipe shows before anything is done.

    Raises:
        UsageError: Something is.
    """
    model = subject.path
    if subject.card.knows(config.split):
        raise UsageError(
            f"{model} has learned from the {config.split} split, so that every press would seem to hurt; "
            "begin with a model of --data.train_on train"
        )
    if goal is not None and not any(rung.free for rung in rungs):
        raise UsageError(f"--target {config.target}: all rungs have goals of their own; take one out of the recipe")
    for number, rung in enumerate(rungs, start=1):
        if rung.free and goal is None:
            goals = ", ".join(PRESSES[rung.press].goals)
            raise UsageError(f"rung {number} ({rung.press}) has no goal; give one of {goals}, or --target macs=1.0e6")
        press_config(rung, number, model, config.work / "pressed.safetensors", config.data, goal)
        if rung.recover is not None:
            found, _ = read_recovery(rung.recover, model, config.work / "run", overrides_of(config, rung))
            check_recovery(found, rung.recover, config.split)


def _belongs(config: LadderConfig, rungs: tuple[Rung, ...], model: Path) -> dict[str, Any]:
    names = ("target", "allow", "split", "test", "teacher", "presets", "latency_rounds")
    return {
        "model": file_sha256(model),
        "data": identity_of(config.data, config.work),
        "rungs": [json.loads(json.dumps(asdict(rung), default=str)) for rung in rungs],
        "recoveries": [file_sha256(rung.recover) if rung.recover else "" for rung in rungs],
        **{name: getattr(config, name) for name in names},
    }


def _tell(one: Climbed) -> None:
    if one.number:
        why = f" ({one.why})" if one.why else ""
        figures = f"macro F1 {one.macro_f1:.4f}, {one.macs:,} MACs"
        say(f"compress.ladder: rung {one.number} ({one.press}) {one.verdict}: {figures}{why}")


def table(report: dict[str, Any]) -> str:
    """The report for people: a row for each rung."""
    rows = [_row(rung) for rung in report["rungs"]]
    preset = next((_scores(rung)[0]["preset"] for rung in report["rungs"] if _scores(rung)), "score")
    headers = ["rung", "", ">F1", "95 %", ">MACs", ">p4 MACs", ">params", ">bytes", ">ms", f">{preset}"]
    tests = [rung["tested"] for rung in report["rungs"]]
    if any(tests):
        headers.insert(4, ">test")
        for row, tested in zip(rows, tests, strict=True):
            row.insert(4, "-" if tested is None else f"{tested['macro_f1']:.3f}")
    lines = [
        render_table(headers, rows, title=f"macro F1 on {report['split']}, MACs by two conventions, one image in ms")
    ]
    lines += [f"rung {rung['number']} {rung['verdict']}: {rung['why']}" for rung in report["rungs"] if rung["why"]]
    before, after = report["before"]["macs"], report["after"]["macs"]
    lines.append(f"{before:,} → {after:,} MACs ({after / before - 1:+.1%})")
    if report["reached"] is False:
        lines.append(f"the target of {report['target_macs']:,} MACs is not reached")
    return "\n".join([*lines, f"model: {report['model']}"])


def _row(rung: Mapping[str, Any]) -> list[Any]:
    name = f"{rung['number']} {rung['press'] or 'start'}"
    found = rung["evaluation"]
    if found is None:
        return [name, rung["verdict"], *["-"] * 8]
    latency, scores = found["latency"], _scores(rung)
    interval = f"{found['macro_f1_low']:.3f}-{found['macro_f1_high']:.3f}"
    competition = "-" if found["competition_macs"] is None else found["competition_macs"]
    return [
        name,
        rung["verdict"],
        f"{found['macro_f1']:.3f}",
        interval,
        found["macs"],
        competition,
        found["parameters"],
        human_bytes(found["bytes"]),
        f"{latency['median_ms']:.2f}" if latency and latency["trusted"] else "-",
        scores[0]["total"] if scores else "-",
    ]


def _scores(rung: Mapping[str, Any]) -> list[dict[str, Any]]:
    return rung["evaluation"]["scores"] if rung["evaluation"] else []


def main() -> None:
    """Run the job."""
    run_job(LadderConfig, ladder, name="compress.ladder", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
