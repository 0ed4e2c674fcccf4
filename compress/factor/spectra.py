"""How much of a weight each form keeps at which ranks, and the ranks that a rule asks for."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.factor.cp import cp_components, principal_axes
from compress.factor.evbmf import evbmf_rank
from compress.factor.kernels import picked_blocks, separable_matrix, weight_of
from training.model.edits.factor import Layer, full_ranks, sides

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What decides the ranks of one form of one layer. It is computed when it is first asked for.

    Attributes:
        layer: One that the form suits; its weight must not be zero.
        form: One of `training.model.edits.factor.FORMS`.
    """

    layer: Layer
    form: str

    @cached_property
    def energies(self) -> tuple[_Floats, ...]:
        """Per rank of the form its squared singular values, descending, as shares of the whole.

        For `groups` what each number of groups in `numbers` keeps; for `spatial` what rank 1 keeps.
        """
        weight = weight_of(self.layer)
        if self.form == "groups":
            own = getattr(self.layer, "groups", 1)
            kept = [picked_blocks(weight, own, number).square().sum() for number in self.numbers]
            return (_shares(torch.stack(kept), weight),)
        if self.form == "spatial":
            first = torch.linalg.matrix_norm(weight.squeeze(1), 2).square().sum()
            return (_shares(first.reshape(1), weight),)
        if self.form == "cp":
            return (_shares(cp_components(weight)[0], weight),)
        return tuple(_shares(_energies(matrix), weight) for matrix in _matrices(weight, self.form))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of groups that are possible, ascending."""
        own, (most,) = getattr(self.layer, "groups", 1), full_ranks(self.layer, "groups")
        return tuple(number for number in range(2 * own, most + 1, own) if most % number == 0)


def ranks_by_energy(spectrum: Spectrum, energy: float) -> tuple[int, ...] | None:
    """The least ranks that surely keep a share of the squared weights; None where the form keeps less.

    Tucker-2 cuts on two sides: each may lose half of what may be lost. The orthogonal products that CP starts from
    decide its rank; the fit only comes closer.

    Args:
        spectrum: Of a layer and form.
        energy: Share, in [0, 1].
    """
    if spectrum.form in ("spatial", "groups"):
        able = np.flatnonzero(spectrum.energies[0] >= energy)
        if not len(able):
            return None
        return () if spectrum.form == "spatial" else (spectrum.numbers[int(able[-1])],)
    lost = (1 - energy) / len(spectrum.energies)
    return tuple(_least_rank(shares, lost) for shares in spectrum.energies)


def ranks_by_ratio(spectrum: Spectrum, ratio: float) -> tuple[int, ...]:
    """A share of the full ranks, for CP of the smaller number of channels; of `groups` the number that keeps it.

    Args:
        spectrum: Of a layer and form.
        ratio: In (0, 1].
    """
    layer = spectrum.layer
    if spectrum.form == "groups":
        own = getattr(layer, "groups", 1)
        kept = [number for number in spectrum.numbers if own / number <= ratio]
        return (kept[0] if kept else spectrum.numbers[-1],)
    full = full_ranks(layer, spectrum.form)
    if spectrum.form == "cp" and isinstance(layer, nn.Conv2d):
        full = (full[0] // math.prod(sides(layer)),)
    return tuple(max(1, round(rank * ratio)) for rank in full)


def ranks_by_evbmf(spectrum: Spectrum) -> tuple[int, ...] | None:
    """The ranks that are more than noise, see `evbmf_rank`; for CP the larger one of both sides; None if all is noise.

    Args:
        spectrum: Of a layer, and of a form that has ranks.
    """
    matrices = _matrices(weight_of(spectrum.layer), spectrum.form)
    cp = spectrum.form == "cp"
    values = [_energies(matrix).numpy() for matrix in matrices] if cp else spectrum.energies
    ranks = tuple(evbmf_rank(own, (len(matrix), matrix.shape[1])) for own, matrix in zip(values, matrices, strict=True))
    if not all(ranks):
        return None
    return (max(ranks),) if cp else ranks


def _least_rank(shares: _Floats, lost: float) -> int:
    """The least rank at which no more is lost than that."""
    tails = np.append(np.cumsum(shares[::-1])[::-1], 0.0)  # tails[r]: what rank r loses
    return max(1, int(np.flatnonzero(tails <= max(lost, 0.0))[0]))


def _matrices(weight: Tensor, form: str) -> tuple[Tensor, ...]:
    """The weight as the matrices whose ranks a form cuts, in the order of its ranks."""
    if form == "svd":
        return (weight.flatten(1),)
    if form == "separable":
        return (separable_matrix(weight),)
    return weight.transpose(0, 1).flatten(1), weight.flatten(1)


def _energies(matrix: Tensor) -> Tensor:
    return principal_axes(matrix if len(matrix) <= matrix.shape[1] else matrix.T)[0]


def _shares(energies: Tensor, weight: Tensor) -> _Floats:
    shares: _Floats = (energies / weight.square().sum()).numpy()
    return shares
