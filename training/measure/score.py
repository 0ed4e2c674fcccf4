"""The scores of the two competitions, from macro F1 and what the model costs. Lower is better.

Spring 2021, kind `f1_macs`, may be negative:

    score = F1 term + MACs / macs_ref
    F1 term = 1 - F1 / f1_ref,  times slope_above from f1_ref on;  below the cliff fixed at cliff_term

November 2021, kind `f1_time`:

    score = sigmoid(steepness * (f1_ref - F1)) + weight * seconds / seconds_ref

MACs are those of the competition's own convention (`training.measure.competition_macs`), not of the exact meter.
Seconds are those of the whole program, from its start to the last written prediction: start-up, reading and decoding
too.
"""

import difflib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from augment_cache.format.strict_yaml import load_yaml
from pipelines.errors import UsageError

Kind = Literal["f1_macs", "f1_time"]
Floats = NDArray[np.float64]
Value = TypeVar("Value", float, Floats)

_FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class MacsConstants:
    """What a score of F1 and MACs is made of.

    Args:
        macs_ref: MACs that cost 1 point.
        f1_ref: Macro F1 whose term is 0.
        cliff: Below this macro F1 the term is `cliff_term`; 0 for no cliff. The competition looked at the public and
            the private half of its test set separately.
        cliff_term: The F1 term below the cliff.
        slope_above: Share of the slope that is left from `f1_ref` on.
    """

    macs_ref: float
    f1_ref: float
    cliff: float
    cliff_term: float
    slope_above: float

    def f1_term(self, f1: Floats, *, smooth: bool) -> Floats:
        """The term of each macro F1, see `score`."""
        gap = 1.0 - f1 / self.f1_ref
        term = np.where(f1 < self.f1_ref, gap, self.slope_above * gap)
        return term if smooth else np.where(f1 < self.cliff, self.cliff_term, term)

    def cost_term(self, macs: float) -> float:
        """The term of the MACs."""
        return macs / self.macs_ref


@dataclass(frozen=True, kw_only=True)
class TimeConstants:
    """What a score of F1 and time is made of.

    Args:
        seconds_ref: Seconds that cost `weight` points.
        f1_ref: Macro F1 whose term is 0.5.
        steepness: Of the sigmoid.
        weight: Of the time.
    """

    seconds_ref: float
    f1_ref: float
    steepness: float
    weight: float

    def f1_term(self, f1: Floats, *, smooth: bool) -> Floats:
        """The term of each macro F1, smooth as it is: a sigmoid, written with tanh since that cannot overflow."""
        return 0.5 - 0.5 * np.tanh(0.5 * self.steepness * (f1 - self.f1_ref))

    def cost_term(self, seconds: float) -> float:
        """The term of the seconds."""
        return self.weight * seconds / self.seconds_ref


_CONSTANTS: dict[Kind, type[MacsConstants] | type[TimeConstants]] = {"f1_macs": MacsConstants, "f1_time": TimeConstants}
_POSITIVE = ("macs_ref", "seconds_ref", "f1_ref", "steepness")
_SHARES = ("f1_ref", "cliff")


@dataclass(frozen=True, kw_only=True)
class ScorePreset:
    """A score with its constants.

    Args:
        name: That of a shipped preset, or the path of the file.
        source: One line: where the constants come from.
        constants: They decide what kind of score it is.
    """

    name: str
    source: str
    constants: MacsConstants | TimeConstants

    @property
    def kind(self) -> Kind:
        """What the score is made of: F1 and MACs, or F1 and time."""
        return "f1_macs" if isinstance(self.constants, MacsConstants) else "f1_time"

    @property
    def cliff(self) -> float:
        """Macro F1 below which the official score jumps; 0 where it does not."""
        return self.constants.cliff if isinstance(self.constants, MacsConstants) else 0.0


@dataclass(frozen=True, kw_only=True)
class Score(Generic[Value]):
    """A score and what it is made of; lower is better.

    Args:
        total: Sum of the two terms; an array where an array of F1 was given.
        f1_term: What macro F1 contributes, likewise.
        cost_term: What MACs or seconds contribute.
    """

    total: Value
    f1_term: Value
    cost_term: float


@overload
def score(
    preset: ScorePreset,
    f1: float,
    *,
    macs: float | None = None,
    seconds: float | None = None,
    smooth: bool = False,
) -> Score[float]: ...
@overload
def score(
    preset: ScorePreset,
    f1: Floats,
    *,
    macs: float | None = None,
    seconds: float | None = None,
    smooth: bool = False,
) -> Score[Floats]: ...
def score(
    preset: ScorePreset,
    f1: float | Floats,
    *,
    macs: float | None = None,
    seconds: float | None = None,
    smooth: bool = False,
) -> Score[float] | Score[Floats]:
    """Compute a score.

    The official one is flat below the cliff, where a search would see no way up. The smooth one leaves the cliff out:
    `1 - F1 / f1_ref` goes on down to F1 = 0, where it is 1, the same as the competitions' flat step. So it falls with
    F1 everywhere, has no jump, and from the cliff on is the official score. A score of F1 and time is smooth as it is.

    Args:
        preset: Which score.
        f1: Macro F1 in [0, 1]; one, or float64 [n].
        macs: MACs of one image by the competition's convention; needed for `f1_macs`.
        seconds: Wall time of the whole program; needed for `f1_time`.
        smooth: The variant for searches. Reports use the official one.

    Raises:
        UsageError: A number is missing or out of its range.
    """
    values = np.asarray(f1, np.float64)
    if not np.all((values >= 0.0) & (values <= 1.0)):
        wrong = float(values[~((values >= 0.0) & (values <= 1.0))].flat[0])
        raise UsageError(f"macro F1 must be from 0 to 1, got {wrong:g}; give it as a share, not in per cent")
    cost = preset.constants.cost_term(_cost(preset, macs, seconds))
    term = preset.constants.f1_term(values, smooth=smooth)
    if isinstance(f1, np.ndarray):
        return Score(total=term + cost, f1_term=term, cost_term=cost)
    return Score(total=float(term) + cost, f1_term=float(term), cost_term=cost)


def _cost(preset: ScorePreset, macs: float | None, seconds: float | None) -> float:
    """The number that the preset is about, checked."""
    name, value = ("MACs", macs) if preset.kind == "f1_macs" else ("seconds", seconds)
    if value is None:
        raise UsageError(f"preset {preset.name} needs {name}; give them")
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be more than 0, got {value:g}; preset {preset.name} measures the cost by them")
    return value


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with Tacopress."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_preset(name_or_path: str | Path) -> ScorePreset:
    """Load a shipped preset by its name or any preset by the path of its YAML file.

    A preset file is a mapping with `kind` (f1_macs or f1_time), `source` (one line), and the constants of that kind:
    the attributes of `MacsConstants` or `TimeConstants`, all of them.

    Raises:
        UsageError: There is no such preset, or the file says something that no preset can mean.
    """
    name, known = str(name_or_path), preset_names()
    path = _FOLDER / f"{name}.yaml" if name in known else Path(name)
    try:
        if not path.is_file():
            raise UsageError(
                f"no preset {name!r}{_near(name, known)}; there are {', '.join(known)}, or give a YAML file"
            )
        value = load_yaml(path.read_bytes())
    except OSError as error:
        raise UsageError(f"preset {name} cannot be read ({error.strerror}); give the path of a YAML file") from error
    except ValueError as error:
        raise UsageError(f"preset {name} is no YAML: {error}") from error
    return _parse(name, value)


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _parse(name: str, value: object) -> ScorePreset:
    where = f"preset {name}"
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a mapping with kind, source and constants, got {value!r:.60}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _CONSTANTS:
        raise UsageError(f"{where}: kind must be {' or '.join(_CONSTANTS)}, got {kind!r:.60}; say which score it is")
    constants = _CONSTANTS[kind]
    names = tuple(field.name for field in fields(constants))
    keys = ("kind", "source", *names)
    for key in value:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys of {kind} are {', '.join(keys)}"
            raise UsageError(f"{where}: unknown key {key!r:.60}; {hint}")
    for key in keys:
        if key not in value:
            raise UsageError(f"{where}: {key} is missing; a preset of kind {kind} has {', '.join(keys)}")
    source = value["source"]
    if not isinstance(source, str) or not source.strip() or "\n" in source.strip():
        raise UsageError(f"{where}: source must be one line of text that says where the constants come from")
    numbers = {key: _number(value[key], f"{where}: {key}", key) for key in names}
    return ScorePreset(name=name, source=source.strip(), constants=constants(**numbers))


def _number(value: Any, where: str, key: str) -> float:  # noqa: ANN401 - whatever YAML holds
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(
            f"{where} must be a number, got {value!r:.60}; write it without quotes and, if it has an exponent, with a "
            "point and a sign, such as 1.0e+7"
        )
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 300 digits
        number = math.inf
    low = "more than 0" if key in _POSITIVE else "0 or more"
    high = ", at most 1" if key in _SHARES else ""
    fits = number > 0 if key in _POSITIVE else number >= 0
    if not math.isfinite(number) or not fits or (key in _SHARES and number > 1):
        raise UsageError(f"{where} must be a finite number, {low}{high}, got {number:g}; correct it")
    return number
