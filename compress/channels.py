"""Remove channels of all layers at once, shuffles and groups included, to a share, a number of MACs or a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from augment_cache.format.manifest import file_sha256
from compress.channel_map.choose import ChoiceOptions, Scope
from compress.channel_map.importance import Importance
from compress.channel_map.removal import PRESS, Goal, Ranking, remove_channels
from compress.channel_map.rounds import press_in_rounds, shares
from compress.press.contract import (
    Pressed,
    Proof,
    Subject,
    before_presses,
    check_out,
    open_subject,
    table,
    write_pressed,
)
from compress.press.recover import identity_of, read_recipe, recover, recovery_options
from compress.press.samples import Samples, load_samples, quality
from compress.press.working import working_in
from pipelines.console.job import quiet_libraries, run_job
from pipelines.console.ranges import check_ranges
from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.measure.macs import count_macs
from training.model.card import ModelCard

EXAMPLE = """
  python -m compress.channels --model runs/train --out thinner.safetensors --ratio 0.3
  python -m compress.channels --model runs/train --out thinner.safetensors --target_share 0.64 --data out/cache
  python -m compress.channels --model runs/train --out thinner.safetensors --target_macs 1000000 \\
    --importance taylor --data out/cache --recover training/recipes/distill.yaml --rounds 3 --work runs/thinner
"""


@dataclass(frozen=True, kw_only=True)
class ChannelsConfig:
    """Options of the channels job.

    Args:
        model: The model to press: a model file, or a run folder (its best model). It may be pressed already.
        out: The pressed model file (.safetensors).
        ratio: Remove this share of the channels: of each layer, or with --scope global of all together.
        target_macs: Remove as little as it takes to cost at most so many MACs (the exact meter of training.models).
        target_share: Likewise, as a share of its MACs now.
        target_latency: Likewise, as a share of its time now: onnxruntime, one image, one thread, measured in turn.
        importance: What goes first. magnitude: channels with small weights, in all layers that they pass. bn_scale:
            with a small scale in batch normalisation. lamp: small compared with what is left of their layer; made for
            --scope global. taylor: those whose removal changes the loss least, to first order; needs --data. random:
            for comparison.
        scope: layer removes the same share everywhere; global ranks the channels of all layers together.
        round_to: Leave a multiple of so many channels in each layer, where groups allow: 8 suits most runtimes.
        least: Share of the outputs of each layer that stays in any case.
        protect: Layers whose outputs stay: patterns of module paths with commas between, such as blocks.0.*.
        data: A cache, a folder of crops, or a folder of class folders: for taylor, and for macro F1 before and after.
        images: taylor looks at so many images of the train split at most, of each class its share.
        seed: For --importance random.
        recover: A recipe of training.distill or training.train: after each cut the network is trained by it.
        rounds: Cut in so many rounds, each followed by --recover. Several small cuts hurt less than a large one.
        work: Folder of the rounds, with --recover. The same command goes on with what is there.
        teacher: With --recover: who teaches, as --teacher.paths of training.distill; the recipe's own when absent.
    """

    model: Path
    out: Path
    ratio: float | None = None
    target_macs: int | None = None
    target_share: float | None = None
    target_latency: float | None = None
    importance: Importance = "magnitude"
    scope: Scope = "layer"
    round_to: int = 1
    least: float = 0.1
    protect: str = ""
    data: Path | None = None
    images: int = 1000
    seed: int = 0
    recover: Path | None = None
    rounds: int = 1
    work: Path | None = None
    teacher: str = ""

    def __post_init__(self) -> None:
        goals = (self.ratio, self.target_macs, self.target_share, self.target_latency)
        if sum(goal is not None for goal in goals) != 1:
            raise UsageError(
                "give one of --ratio, --target_macs, --target_share and --target_latency: how much is to go"
            )
        check_ranges(
            {
                "--ratio": (self.ratio, 0, 0.99),
                "--target_macs": (self.target_macs, 1, 1e15),
                "--target_share": (self.target_share, 1e-6, 1),
                "--target_latency": (self.target_latency, 0.01, 1),
                "--round_to": (self.round_to, 1, 1024),
                "--least": (self.least, 0, 1),
                "--images": (self.images, 1, 1e9),
                "--seed": (self.seed, 0, 2**32 - 1),
                "--rounds": (self.rounds, 1, 1000),
            }
        )
        if self.out.suffix != ".safetensors":
            raise UsageError(f"--out {self.out} must end in .safetensors")
        if (self.recover is None) != (self.work is None):
            raise UsageError("--recover and --work belong together: a recipe, and a folder for the rounds")
        if self.recover is None and (self.teacher or self.rounds > 1):
            raise UsageError(f"{'--teacher' if self.teacher else '--rounds'} is for --recover; give a recipe")
        if self.target_latency is not None and self.rounds > 1:
            raise UsageError("--target_latency is reached in one round; give a target of MACs, or leave out --rounds")
        if self.ratio is not None and self.rounds > 1 and self.round_to > 1:
            raise UsageError(
                "--ratio in --rounds would be rounded by --round_to in each of them; give a target of MACs"
            )
        if self.data is None and (self.recover or self.importance == "taylor"):
            raise UsageError(f"{'--recover' if self.recover else '--importance taylor'} looks at images; give --data")


def channels(config: ChannelsConfig) -> dict[str, Any]:
    """Remove channels.

    Returns:
        The report. Keys: `model`, `out`, `press`, `architecture`; `before` and `after`: `macs`, `competition_macs`
        (null where that convention does not see all), `parameters`, `bytes`; `changed` {layer: outputs before and
        after}, `skipped` {layer: why its outputs stay}; `proof`: `claim`, `error`, `limit`; `importance`, `scope`;
        `macro_f1`: `split`, `before`, `after` (null without --data, and where one of the models has learned from the
        split); `rounds`.

    Raises:
        NoEffectError: Nothing can go, or nothing has to.
        PreemptedError: A signal stopped a recovery; everything is saved.
    """
    quiet_libraries()
    subject = open_subject(config.model)
    check_out(config.out, subject)
    if config.recover is not None and config.work is not None and config.data is not None:
        return _in_rounds(config, subject, config.recover, config.work, config.data)
    pressed = _press(config, subject, _goal(config, subject))
    return write_pressed(subject, pressed, config.out, PRESS, _details(config, subject, pressed, subject.card))


def _goal(config: ChannelsConfig, subject: Subject) -> Goal:
    macs = config.target_macs
    if config.target_share is not None:
        macs = int(config.target_share * count_macs(subject.model, subject.card.size).macs)
    return Goal(ratio=config.ratio, macs=macs, latency=config.target_latency)


def _press(config: ChannelsConfig, subject: Subject, goal: Goal) -> Pressed:
    samples: Samples | None = None
    if config.importance == "taylor" and config.data is not None:
        samples = load_samples(config.data, subject.card, "train", most=config.images)
    ranking = Ranking(name=config.importance, samples=samples, seed=config.seed)
    options = ChoiceOptions(scope=config.scope, round_to=config.round_to, least=config.least)
    return remove_channels(subject, goal, ranking, options, names_in(config.protect))


def _details(config: ChannelsConfig, subject: Subject, pressed: Pressed, last: ModelCard) -> dict[str, Any]:
    scores = None
    if config.data is not None and not (subject.card.knows("val") or last.knows("val")):
        samples = load_samples(config.data, subject.card, "val")
        before, after = (quality(model, samples).macro_f1 for model in (subject.model, pressed.model))
        scores = {"split": "val", "before": before, "after": after}
    return {"importance": config.importance, "scope": config.scope, "macro_f1": scores, "rounds": config.rounds}


def _in_rounds(config: ChannelsConfig, subject: Subject, recipe: Path, work: Path, data: Path) -> dict[str, Any]:
    """With training after each cut."""
    overrides = recovery_options(data, config.teacher)
    read_recipe(recipe, subject.path, work / "run", overrides)  # what is wrong with it shows before anything is done
    goals = _goals(config, subject)
    with working_in(work) as pause:

        def press(model: Path, number: int, out: Path) -> None:
            now = open_subject(model)
            write_pressed(now, _press(config, now, goals[number]), out, PRESS, {"round": number + 1})

        last = press_in_rounds(
            subject.path,
            work,
            config.rounds,
            press=press,
            recover=lambda pressed, run: recover(pressed, recipe, run, overrides),
            belongs=_belongs(config, subject, recipe, data),
            pause=pause,
        )
    return _report(config, subject, open_subject(last))


def _goals(config: ChannelsConfig, subject: Subject) -> list[Goal]:
    """What each round has to reach."""
    whole = _goal(config, subject)
    if whole.latency is not None:
        return [whole]
    if whole.ratio is not None:  # of what is left each time
        return [Goal(ratio=1 - (1 - whole.ratio) ** (1 / config.rounds))] * config.rounds
    now = count_macs(subject.model, subject.card.size).macs
    return [Goal(macs=round(now * share)) for share in shares((whole.macs or now) / now, config.rounds)]


def _report(config: ChannelsConfig, first: Subject, last: Subject) -> dict[str, Any]:
    """One report over all rounds, with the least of their proofs; the last model becomes the file."""
    rounds = last.card.provenance["presses"][len(first.card.provenance.get("presses", [])) :]
    proofs = [Proof(**told["proof"]) for told in rounds]
    widths = [_widths(subject.model) for subject in (first, last)]
    pressed = Pressed(
        model=last.model,
        edits=last.card.edits[len(first.card.edits) :],
        proof=max(proofs, key=lambda proof: proof.error),
        changed={
            path: f"{before} → {widths[1][path]} outputs"
            for path, before in widths[0].items()
            if widths[1][path] < before
        },
        skipped={path: "all its outputs stay" for path, before in widths[0].items() if widths[1][path] == before},
    )
    details = _details(config, first, pressed, last.card)
    return write_pressed(before_presses(first, last), pressed, config.out, PRESS, details)


def _widths(model: nn.Module) -> dict[str, int]:
    """Outputs of convolutions and linear layers."""
    return {
        path: len(module.weight) for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }


def _belongs(config: ChannelsConfig, subject: Subject, recipe: Path, data: Path) -> dict[str, Any]:
    goal = ("ratio", "target_macs", "target_share", "target_latency", "rounds")
    choice = ("importance", "scope", "round_to", "least", "protect", "images", "seed", "teacher")
    return {
        "model": file_sha256(subject.path),
        "recipe": file_sha256(recipe),
        "data": identity_of(data, config.work or config.out),
        **{name: getattr(config, name) for name in (*goal, *choice)},
    }


def main() -> None:
    """Run the job."""
    run_job(ChannelsConfig, channels, name="compress.channels", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
