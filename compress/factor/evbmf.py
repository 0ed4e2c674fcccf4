"""How many singular values of a matrix are more than noise: empirical variational Bayes matrix factorization.

Nakajima, Sugiyama, Babacan, Tomioka: Global analytic solution of fully-observed variational Bayesian matrix
factorization, JMLR 14 (2013). The names are the paper's: L <= M are the sides, alpha = L / M, x = γ² / (M σ²).
"""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_GRID = 256


def evbmf_rank(energies: _Floats, sides: tuple[int, int]) -> int:
    """The rank that the free energy prefers; 0 where all is noise.

    Args:
        energies: Squared singular values γ², all min(sides) of them, in any order.
        sides: Of the matrix.
    """
    small, large = min(sides), max(sides)
    squares = np.sort(np.asarray(energies, float))[::-1]
    if len(squares) != small:
        raise ValueError(f"{len(squares)} singular values of a matrix of {sides[0]} x {sides[1]}")
    if squares[0] <= 0:
        return 0
    squares = np.maximum(squares, squares[0] * np.finfo(float).eps)  # exact zeros have no logarithm
    alpha = small / large
    threshold = _threshold(alpha)
    variance = _noise_variance(squares, large, alpha, threshold)
    return int((squares > large * variance * threshold).sum())


def _threshold(alpha: float) -> float:
    """The x above which a component is kept (theorem 2): its τ is where Φ(τ) + Φ(τ / α) = 0."""
    from scipy.optimize import brentq  # slow to import

    def phi(z: float) -> float:
        return float(np.log1p(z) / z - 0.5)

    tau = brentq(lambda t: phi(t) + phi(t / alpha), 1e-9, 10.0, xtol=1e-14)
    return float((1 + tau) * (1 + alpha / tau))


def _noise_variance(squares: _Floats, large: int, alpha: float, threshold: float) -> float:
    """σ² that minimises the free energy, between the bounds of theorem 3."""
    from scipy.optimize import minimize_scalar

    small = len(squares)
    most = min(int(np.ceil(small / (1 + alpha))) - 1, small - 1)
    low = max(squares[most] / (large * threshold), squares[most:].mean() / large)
    high = squares.mean() / large
    if low >= high:
        return float(low)
    grid = np.geomspace(low, high, _GRID)  # there may be several minima
    best = int(np.argmin([_free_energy(v, squares, large, alpha, threshold) for v in grid]))
    bounds = np.log((grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]))
    found = minimize_scalar(
        lambda v: _free_energy(float(np.exp(v)), squares, large, alpha, threshold), bounds=bounds, method="bounded"
    )
    return float(np.exp(found.x))


def _free_energy(variance: float, squares: _Floats, large: int, alpha: float, threshold: float) -> float:
    """Twice the free energy, less what does not depend on the variance."""
    x = squares / (large * variance)
    kept = x[x > threshold]
    half = kept - (1 + alpha)
    tau = (half + np.sqrt(half**2 - 4 * alpha)) / 2
    gain = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return float((x - np.log(x)).sum() + gain.sum())
