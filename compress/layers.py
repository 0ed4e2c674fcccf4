"""Remove whole blocks of a network, least important first, at once or one by one with training in between."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from augment_cache.format.manifest import file_sha256
from compress.blocks.find import Found, Units
from compress.blocks.goal import Goal, check_goal
from compress.blocks.rank import NEEDS_IMAGES, RankBy
from compress.blocks.recovery import Workshop, final
from compress.blocks.removal import PRESS, choose, ranker, ranking_rows, remove_units, units_of
from compress.blocks.steps import Step, press_in_steps
from compress.press.contract import Subject, check_out, open_subject, write_pressed
from compress.press.contract import table as press_table
from compress.press.recover import check_recovery, read_recipe, recovery_options
from compress.press.samples import Samples, load_samples, quality
from compress.press.working import working_in
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.output import render_table, say
from pipelines.console.ranges import check_ranges
from pipelines.console.words import names_in
from pipelines.engines.choose import EngineName
from pipelines.errors import UsageError
from training.measure.macs import count_macs

EXAMPLE = """
  python -m compress.layers --model runs/train --out thinner.safetensors --data out/cache --target_share 0.64
  python -m compress.layers --model runs/train --out thinner.safetensors --count 3 --rank_by weight_std
  python -m compress.layers --model runs/train --out thinner.safetensors --modules blocks.2.1,blocks.2.2
  python -m compress.layers --model runs/train --out thinner.safetensors --data out/cache --target_share 0.64 \\
    --recover training/recipes/quick.yaml --work runs/thinner
"""


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Options of the layers job.

    Args:
        model: The model to press: a model file, or a run folder (its best model). It may be pressed already.
        out: The pressed model file (.safetensors).
        data: A cache, a folder of crops, or a folder of class folders: what blocks are ranked and macro F1 is measured
            on. Only --rank_by weight_std and --modules do without.
        units: What may go. residual: blocks that add their input to what they compute; without one of them its input
            simply goes on. any: every module that keeps the shape and costs something (a convolution with as many
            outputs as inputs, squeeze-and-excitation, a stage): more to choose from, and harder to recover from.
        rank_by: What goes first. ablation: the block without which macro F1 on --split falls least, found by trying
            each. weight_std: the one whose convolutions' weights have the smallest standard deviation, no data needed.
            cosine and cka: the one whose output is most like its input, by the cosine of the features of an image or by
            linear CKA over images.
        rerank: Rank anew after each removal, for what a block is worth depends on the others; false ranks once.
        count: Remove so many blocks.
        modules: Remove these blocks, paths with commas between; with --recover, try these.
        target_macs: Remove blocks until the network costs at most so many MACs (the exact meter of training.models).
        target_share: Remove blocks until it costs at most this share of its MACs.
        split: What to rank and measure on. The test split is for the end: do not choose by it.
        images: Rank on so many images at most, of each class its share. Macro F1 in the report is of all.
        engine: Renders the images. auto is DALI on a GPU, the cpu engine otherwise.
        recover: A recipe of training.distill or training.train. Blocks then go one by one: remove, train, keep that if
            macro F1 has not fallen too far, else put the block back and try the next. Training starts from the pressed
            weights and reads --data; a low learning rate and few epochs are usual.
        work: Folder of the steps, with --recover. The same command goes on with what is there, wherever it was stopped;
            with a lower target it goes further.
        allow: With --recover: how far macro F1 may fall below that of --model, in all steps together.
        teacher: With --recover: who teaches, as --teacher.paths of training.distill; the recipe's own when absent.
    """

    model: Path
    out: Path
    data: Path | None = None
    units: Units = "residual"
    rank_by: RankBy = "ablation"
    rerank: bool = True
    count: int | None = None
    modules: str = ""
    target_macs: int | None = None
    target_share: float | None = None
    split: str = "val"
    images: int = 2000
    engine: EngineName = "auto"
    recover: Path | None = None
    work: Path | None = None
    allow: float = 0.01
    teacher: str = ""

    def __post_init__(self) -> None:
        goals = (self.count, names_in(self.modules) or None, self.target_macs, self.target_share)
        if sum(goal is not None for goal in goals) != 1:
            raise UsageError("give one of --count, --modules, --target_macs and --target_share: when to stop")
        check_ranges(
            {
                "--count": (self.count, 1, 10_000),
                "--target_macs": (self.target_macs, 1, 1e15),
                "--target_share": (self.target_share, 1e-6, 1),
                "--images": (self.images, 1, 1e9),
                "--allow": (self.allow, 0, 1),
            }
        )
        if self.out.suffix != ".safetensors":
            raise UsageError(f"--out {self.out} must end in .safetensors")
        if (self.recover is None) != (self.work is None):
            raise UsageError("--recover and --work belong together: a recipe, and a folder for the steps")
        if self.teacher and self.recover is None:
            raise UsageError("--teacher is for --recover; give a recipe, or leave it out")
        if self.data is None and (self.recover or (self.rank_by in NEEDS_IMAGES and not self.modules)):
            why = "--recover" if self.recover else f"--rank_by {self.rank_by}"
            raise UsageError(f"{why} looks at images; give --data")


def layers(config: LayersConfig) -> dict[str, Any]:
    """Remove blocks.

    Returns:
        The report. Keys: `model`, `out`, `press`, `architecture`; `before` and `after`: `macs`, `competition_macs`
        (null where that convention does not see all), `parameters`, `bytes`; `changed` {block: what became of it},
        `skipped` {block: why it stays}; `proof`: `claim`, `error`, `limit`; `ranking`: the first one, of `unit`,
        `value`, `macs`; `removed`, blocks in order; `macro_f1`: `split`, `before`, `after` (null without --data);
        `steps` of --recover: `number`, `unit`, `value`, `macro_f1`, `kept`, `macs`, `model` (else empty); `reached`:
        whether the target is.

    Raises:
        NoEffectError: Nothing can be removed, or everything had to be put back.
        PreemptedError: A signal stopped a recovery; everything is saved.
    """
    quiet_libraries()
    subject = open_subject(config.model)
    check_out(config.out, subject)
    found = units_of(subject, config.units)
    goal = _goal(config, found)
    check_goal(goal, found)
    _check_split(config, subject)
    if config.recover is not None and config.work is not None and config.data is not None:
        return _in_steps(config, subject, found, goal, config.recover, config.work, config.data)
    samples = _samples(config, subject, config.images)
    choice = choose(subject.model, found, goal, ranker(config.rank_by, samples), rerank=config.rerank)
    units = [one.unit for one in choice.removed]
    pressed = remove_units(subject, units, found)
    everything = samples if samples is None or len(samples) < config.images else _samples(config, subject, None)
    scores = None
    if everything is not None:
        before, after = (quality(model, everything).macro_f1 for model in (subject.model, pressed.model))
        scores = {"split": config.split, "before": before, "after": after}
    details = {
        "ranking": ranking_rows(choice.ranking, found),
        "removed": units,
        "macro_f1": scores,
        "steps": [],
        "reached": goal.units is not None
        or goal.reached(len(units), count_macs(pressed.model, subject.card.size).macs),
    }
    if not details["reached"]:
        say(f"compress.layers: {len(units)} blocks are all that can go beside each other: the target is not reached")
    return write_pressed(subject, pressed, config.out, PRESS, details)


def _in_steps(
    config: LayersConfig, subject: Subject, found: Found, goal: Goal, recipe: Path, work: Path, data: Path
) -> dict[str, Any]:
    """With training in between."""
    overrides = recovery_options(data, config.teacher)
    check_recovery(read_recipe(recipe, subject.path, work / "run", overrides)[0], recipe, config.split)  # first of all
    samples, everything = _samples(config, subject, config.images), _samples(config, subject, None)
    if samples is None or everything is None:
        raise UsageError("--recover looks at images; give --data")
    with working_in(work) as pause:
        outcome = press_in_steps(
            subject.path,
            work,
            found,
            goal,
            Workshop(
                found=found,
                order=ranker(config.rank_by, samples, pause),
                samples=everything,
                recipe=recipe,
                overrides=overrides,
            ),
            allow=config.allow,
            rerank=config.rerank,
            belongs=_belongs(config, subject, recipe, samples, everything),
            pause=pause,
            tell=_tell,
        )
    if not outcome.reached:
        say(f"compress.layers: all {len(outcome.steps)} blocks were tried, and the target is not reached")
    first, pressed = final(subject, outcome, found)
    details = {
        "ranking": ranking_rows(outcome.ranking, found),
        "removed": outcome.removed,
        "macro_f1": {"split": config.split, "before": outcome.before, "after": outcome.after},
        "steps": [asdict(step) for step in outcome.steps],
        "reached": outcome.reached,
    }
    return write_pressed(first, pressed, config.out, PRESS, details)


def _goal(config: LayersConfig, found: Found) -> Goal:
    if config.target_share is not None:
        return Goal(macs=int(config.target_share * found.macs))
    units = tuple(names_in(config.modules)) or None
    return Goal(count=config.count, units=units, macs=config.target_macs)


def _check_split(config: LayersConfig, subject: Subject) -> None:
    """Raises UsageError, or warns, where the model has learned from what it is measured on."""
    if config.data is None or not subject.card.knows(config.split):
        return
    known = f"{subject.path} has learned from the {config.split} split"
    if config.recover is not None:
        raise UsageError(f"{known}, so that every step would seem to hurt; begin with one of --data.train_on train")
    say(f"compress.layers: {known}: its macro F1 there is too good")


def _samples(config: LayersConfig, subject: Subject, most: int | None) -> Samples | None:
    if config.data is None:
        return None
    return load_samples(config.data, subject.card, config.split, most=most, engine=config.engine)


def _belongs(
    config: LayersConfig, subject: Subject, recipe: Path, samples: Samples, everything: Samples
) -> dict[str, Any]:
    """What decides how the steps go. The target does not: it only says how far."""
    return {
        "model": file_sha256(subject.path),
        "recipe": file_sha256(recipe),
        "data": everything.fingerprint,
        "ranked_on": samples.fingerprint,
        "units": config.units,
        "rank_by": config.rank_by,
        "rerank": config.rerank,
        "modules": names_in(config.modules),
        "allow": config.allow,
        "teacher": config.teacher,
    }


def _tell(step: Step) -> None:
    done = "stays away" if step.kept else "is put back"
    say(f"compress.layers: step {step.number}: macro F1 {step.macro_f1:.4f} without {step.unit}, which {done}")


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [press_table(report)]
    steps = report["steps"]
    if steps:
        rows = [[s["number"], s["unit"], s["macro_f1"], s["macs"], "kept" if s["kept"] else "put back"] for s in steps]
        lines.append(render_table(["step", "without", ">macro F1", ">MACs", ""], rows))
    elif report["ranking"]:
        gone = set(report["removed"])
        rows = [[r["unit"], r["value"], r["macs"], "removed" if r["unit"] in gone else ""] for r in report["ranking"]]
        lines.append(render_table(["first ranking", ">value", ">MACs", ""], rows))
    return "\n".join(lines)


def main() -> None:
    """Run the job."""
    run_job(LayersConfig, layers, name="compress.layers", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
