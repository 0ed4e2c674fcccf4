"""All methods, by name."""

from collections.abc import Sequence

from pipelines.console.words import names_in
from pipelines.errors import UsageError
from training.distillation.methods.alone import ArcFace, Autoencoder, Auxiliary
from training.distillation.methods.base import Method
from training.distillation.methods.inside import Feature, Relational
from training.distillation.methods.logits import Dist, Dkd, Kd
from training.distillation.methods.residual import Residual
from training.distillation.options import MethodConfig

METHODS: dict[str, type[Method]] = {
    kind.card.name: kind for kind in (Kd, Dkd, Dist, Feature, Relational, Residual, ArcFace, Auxiliary, Autoencoder)
}


def make_methods(options: MethodConfig) -> list[Method]:
    """The methods that an option names.

    Raises:
        UsageError: There is none of that name, or it is named twice.
    """
    names = names_in(options.name)
    for name in names:
        if name not in METHODS:
            raise UsageError(f"--method.name {name} is unknown; there are {', '.join(METHODS)}")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--method.name {options.name!r}: name at least one method, and each once")
    return [METHODS[name](options) for name in names]


def temperature_of(methods: Sequence[Method]) -> float:
    """Of the first method that looks at logits: at it, several teachers become one; 1 where none does."""
    return next((method.temperature for method in methods if method.asks_logits), 1.0)


def alpha_of(options: MethodConfig, methods: Sequence[Method]) -> float:
    """Share of the methods in the loss: as told, or as the first of them wants."""
    return methods[0].card.alpha if options.alpha is None else options.alpha
