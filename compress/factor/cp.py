"""CP decomposition of a kernel by alternating least squares: a sum of outer products of four vectors."""

import torch
from torch import Tensor

SWEEPS = 20
_STEADY = 1e-6
_RIDGE = 1e-12


def cp_components(kernel: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The kernel as a sum of outer products that are orthogonal to each other, the largest first.

    The kernel is turned to the principal axes of its height and its width; each of the height x width slices that
    come of it is a matrix, whose singular values and vectors are the components. All of them together are the kernel.

    Args:
        kernel: float64 [out, in, height, width].

    Returns:
        Squared norms [n], descending; unit vectors [out, n], [in, n], [height, n], and [width, n] with the norms in
        it, n = min(out, in) · height · width.
    """
    _, _, height, width = kernel.shape
    tall = principal_axes(kernel.transpose(0, 2).reshape(height, -1))[1]
    wide = principal_axes(kernel.transpose(0, 3).reshape(width, -1))[1]
    slices = torch.einsum("oihw,ha,wb->aboi", kernel, tall, wide)
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    count = values.shape[-1]
    values, order = values.flatten().sort(descending=True, stable=True)
    a = left.permute(2, 0, 1, 3).reshape(left.shape[2], -1)[:, order]
    b = right.permute(3, 0, 1, 2).reshape(right.shape[3], -1)[:, order]
    cell = torch.arange(height * width).repeat_interleave(count)[order]
    return values**2, (a, b, tall[:, cell // width], wide[:, cell % width] * values)


def principal_axes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, descending, and left singular vectors of a matrix [n, m]: [n] and [n, n].

    Of matrix · matrixᵀ, which for n < m takes a fraction of the time of a singular value decomposition. Values below
    1e-16 of the largest square are lost; whoever projects on all n vectors gets the matrix back exactly.
    """
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def cp_als(kernel: Tensor, rank: int, *, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit `rank` outer products to a kernel. The same kernel gives the same ones.

    Args:
        kernel: float64 [out, in, height, width].
        rank: Number of products.
        sweeps: At most so many times all four vectors are fitted in turn; fewer when it no longer helps.

    Returns:
        [out, rank], [in, rank], [height, rank], [width, rank]; the vectors of a product are of the same length.
    """
    total = float((kernel**2).sum())
    _, start = cp_components(kernel)
    best = tuple(vectors[:, :rank] for vectors in start)
    error = total - float((best[3] ** 2).sum())
    for _ in range(sweeps):
        if error <= 1e-14 * total:
            break
        found, rest = _sweep(kernel, *best)
        if not rest < error:
            break
        best, gain, error = found, error - rest, rest
        if gain < _STEADY * error:
            break
    return _balanced(*best)


def _sweep(kernel: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[tuple[Tensor, ...], float]:
    """Fit the four in turn, the other three held; also the squared error that is left."""
    flat = kernel.flatten(1)
    products = torch.einsum("ir,hr,wr->ihwr", b, c, d)
    a = _solved(flat @ products.flatten(0, 2), b, c, d)
    mixed = (flat.T @ a).reshape(*kernel.shape[1:], -1)  # [in, height, width, rank], used three times
    b = _solved(torch.einsum("ihwr,hr,wr->ir", mixed, c, d), a, c, d)
    cells = torch.einsum("ihwr,ir->hwr", mixed, b)
    c = _solved(torch.einsum("hwr,wr->hr", cells, d), a, b, d)
    seen = torch.einsum("hwr,hr->wr", cells, c)
    d = _solved(seen, a, b, c)
    norm = _gram(a, b, c, d).sum()
    rest = (kernel**2).sum() - 2 * (seen * d).sum() + norm
    return (a, b, c, d), float(rest)


def _gram(*factors: Tensor) -> Tensor:
    """Inner products of the outer products: [rank, rank]."""
    product = factors[0].T @ factors[0]
    for factor in factors[1:]:
        product = product * (factor.T @ factor)
    return product


def _solved(right: Tensor, *others: Tensor) -> Tensor:
    """Least squares by the normal equations, with a ridge as products may become parallel."""
    gram = _gram(*others)
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, right.T).T


def _balanced(*factors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(1e-150)
    common = norms.log().mean(0).exp()
    a, b, c, d = (factor * (common / norm) for factor, norm in zip(factors, norms, strict=True))
    return a, b, c, d
