"""The recipe of a ladder: presses with their options, in order, and what recovers between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import training
from compress.channels import ChannelsConfig, channels
from compress.layers import LayersConfig, layers
from compress.low_rank import LowRankConfig, low_rank
from compress.press.recover import as_word, parse_options, read_mapping
from compress.weights import WeightsConfig, weights
from pipelines.errors import UsageError

OWN_RECIPES = Path(__file__).parents[1] / "recipes"
TRAINING_RECIPES = Path(training.__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Press:
    """A press that can stand in a ladder.

    Attributes:
        config: Its options.
        run: The job.
        takes_data: It has an option `data`.
        to_macs: Options that go with --target_macs; None if it changes no MACs.
        goals: Options that say how much is to go; a rung with one of them has a goal of its own.
    """

    config: type
    run: Callable[[Any], dict[str, Any]]
    takes_data: bool
    to_macs: Mapping[str, Any] | None
    goals: tuple[str, ...]


PRESSES = {
    "layers": Press(
        config=LayersConfig,
        run=layers,
        takes_data=True,
        to_macs={},
        goals=("count", "modules", "target_macs", "target_share"),
    ),
    "channels": Press(
        config=ChannelsConfig,
        run=channels,
        takes_data=True,
        to_macs={},
        goals=("ratio", "target_macs", "target_share", "target_latency"),
    ),
    "low_rank": Press(
        config=LowRankConfig,
        run=low_rank,
        takes_data=False,
        to_macs={"rank_by": "macs"},
        goals=("energy", "ratio", "target_macs", "rank_by"),
    ),
    "weights": Press(config=WeightsConfig, run=weights, takes_data=False, to_macs=None, goals=("sparsity", "pattern")),
}
OWN = ("model", "out", "work", "recover", "teacher")
"""Options of a press that the ladder sets."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rung.

    Attributes:
        press: Name of the press.
        options: Of the press, as the recipe says.
        recover: Recipe of the recovery; None goes on without.
        overrides: Options of the recovery besides, by dotted names.
        allow: How far macro F1 may fall below that of the rung before; None takes the ladder's.
    """

    press: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recover: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    allow: float | None = None

    @property
    def free(self) -> bool:
        """Whether the ladder chooses how strong it is."""
        press = PRESSES[self.press]
        return press.to_macs is not None and not set(self.options) & set(press.goals)


def read_recipe(path: Path) -> tuple[Rung, ...]:
    """Read the YAML recipe of a ladder.

        recover: recover                   # for all rungs; `recover: null` in a rung goes on without
        options: {schedule.epochs: 10}     # of the recovery, for all rungs
        rungs:
        - {press: layers, target_share: 0.8}
        - {press: channels, importance: taylor, recover_options: {schedule.epochs: 20}}

    A bare name means a recipe that comes with Tacopress: of `compress/recipes`, or `training/recipes` for `recover`.

    Raises:
        UsageError: It is missing, no YAML, or says what no press knows.
    """
    names = ", ".join(sorted(file.stem for file in OWN_RECIPES.glob("*.yaml")))
    value = read_mapping(shipped(path, OWN_RECIPES), "--recipe", f"give a YAML file, or one of {names}")
    if not isinstance(value.get("rungs"), list) or not value["rungs"]:
        raise UsageError(f"--recipe {path} has no rungs; give a list of presses, see compress/recipes")
    unknown = set(map(str, value)) - {"rungs", "recover", "options"}
    if unknown:
        raise UsageError(f"--recipe {path}: unknown key {min(unknown)!r}; there are rungs, recover and options")
    shared = (value.get("recover"), value.get("options") or {})
    return tuple(_rung(entry, number, path, shared) for number, entry in enumerate(value["rungs"], start=1))


def shipped(path: Path, home: Path) -> Path:
    """A path as it is, or the file of a bare name among those that come with Tacopress."""
    return home / f"{path}.yaml" if path.suffix == "" and path.parent == Path() else path


def _rung(entry: object, number: int, path: Path, shared: tuple[Any, Any]) -> Rung:
    where = f"--recipe {path}, rung {number}"
    if not isinstance(entry, dict) or str(entry.get("press")) not in PRESSES:
        press = entry.get("press") if isinstance(entry, dict) else entry
        raise UsageError(f"{where}: {press!r} is no press; there are {', '.join(PRESSES)}")
    options = {str(key): value for key, value in entry.items()}
    press = str(options.pop("press"))
    recover, extra = options.pop("recover", shared[0]), options.pop("recover_options", {})
    allow = options.pop("allow", None)
    own = [name for name in options if name in OWN or name == "data"]
    if own:
        raise UsageError(f"{where}: {own[0]} is set by the ladder; leave it out")
    if not isinstance(extra, dict) or not isinstance(shared[1], dict):
        raise UsageError(f"{where}: options of the recovery are a mapping of dotted names to values")
    if allow is not None and (isinstance(allow, bool) or not isinstance(allow, int | float) or not 0 <= allow <= 1):
        raise UsageError(f"{where}: allow {allow!r} must be 0 to 1")
    return Rung(
        press=press,
        options=options,
        recover=None if recover is None else shipped(Path(str(recover)), TRAINING_RECIPES),
        overrides={**shared[1], **extra},
        allow=allow,
    )


def press_config(rung: Rung, number: int, model: Path, out: Path, data: Path, macs: int | None) -> Any:  # noqa: ANN401
    """The options of a press, parsed as its own command line would be.

    Args:
        rung: What the recipe says.
        number: Of the rung, for messages.
        model: What is pressed.
        out: Where to.
        data: For presses that look at images.
        macs: What a free rung has to reach.

    Raises:
        UsageError: The press does not take them.
    """
    press = PRESSES[rung.press]
    options = dict(rung.options) | {"model": model, "out": out} | ({"data": data} if press.takes_data else {})
    if macs is not None and rung.free and press.to_macs is not None:
        options |= {"target_macs": macs, **press.to_macs}
    words = [f"--{name}={as_word(value)}" for name, value in options.items()]
    return parse_options(press.config, words, f"compress.{rung.press}", f"rung {number} ({rung.press})")
