"""The competition's MACs: what ptflops of June 2021 printed without activations, and what its scores are made of.

The exact meter (`training.measure.macs`) is what a network costs. This one is what the board would have said, which
counts biases, normalization and pooling too. ptflops looked modules up by their exact type: a convolution in a subclass
of Conv2d, `F.linear` or `@` cost nothing there, and the competition forbade them. Here subclasses follow the rule of
their base, and every module is held against the exact meter in the same run. Where the two do not see the same
multiplications, there is no number.
"""

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from training.measure.macs import MacsReport, count_watched, make_report, uncountable, unwrapped

_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_CURE = "report its exact count (count_macs), or write it with modules of torch.nn"


class _Count(NamedTuple):
    """One call of one module.

    Args:
        macs: By the convention.
        products: Multiply-accumulates of convolutions and matrix products that this stands for.
    """

    macs: int
    products: int


_Rule = Callable[[nn.Module, list[Tensor], Tensor], _Count]


def count_competition_macs(model: nn.Module, input_size: tuple[int, int] | int, *, channels: int = 3) -> MacsReport:
    """Count one forward pass as the competition of 2021 did.

    ptflops 0.6.5 with `ignore_modules=[ReLU, PReLU, ELU, LeakyReLU, ReLU6]` and batch size 1:

    - convolution: output positions x kernel x input channels x output channels / groups, and one per output element
      for a bias. A transposed one likewise, by its output positions, which is stride^2 times what it executes.
    - linear: input elements x output features, and the bias once a call, however many rows there are.
    - batch normalization: input elements, twice if it has weights.
    - maximum and average pooling, adaptive or not: input elements. Upsample: output elements.
    - MultiheadAttention, tokens first: projections with biases, scores, softmax, and the scaling of the queries.
    - Everything else is 0: activations, other normalization, additions, shuffles, whatever is no module.

    Two things differ from ptflops, both to leave no cost out or in by accident: subclasses follow the rule of their
    base (timm's Conv2dSame, StdConv2d and BatchNormAct2d, SyncBatchNorm, a parametrized Conv2d counted 0 there), and a
    module that two others share counts once a call (there it counted once more for each of them).

    Args:
        model: Any network that takes one float tensor [1, channels, height, width]; it is left as it is.
        input_size: (height, width) of the input, or the side of a square, in px.
        channels: Channels of the input.

    Returns:
        The report; its MACs are those of the convention, its parameters the same as in `count_macs`.

    Raises:
        UncountableError: As in `count_macs`; or a module multiplies what the convention does not see (functional
            convolutions, matrix products, attention, recurrent layers), or does not what its type says.
        UsageError: A size is smaller than 1.
    """
    books = _Books()
    exact = count_watched(model, input_size, books.note, channels=channels)
    executed = {layer.path: layer.macs for layer in exact.layers}
    for path, module in unwrapped(model).named_modules():
        if executed.get(path, 0) != books.products[path]:
            what = (
                f"multiplies {executed.get(path, 0):,} times itself, of which the competition's convention sees "
                f"{books.products[path]:,}"
            )
            raise uncountable(path, module, what, _CURE)
    return make_report(unwrapped(model), books.macs, exact.input_size)


class _Books:
    """What the convention counts for each module, by path."""

    def __init__(self) -> None:
        self.macs: Counter[str] = Counter()
        self.products: Counter[str] = Counter()

    def note(self, path: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        """Book one call of a module; one that takes or returns no tensor has no cost that this convention knows."""
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        rule = next((rule for kinds, rule in _RULES.items() if isinstance(module, kinds)), None)
        if rule is not None and tensors and results:
            count = rule(module, tensors, results[0])
            self.macs[path] += count.macs
            self.products[path] += count.products


def _convolution(module: nn.Module, inputs: list[Tensor], output: Tensor) -> _Count:
    assert isinstance(module, _ConvNd)
    image = inputs[0].shape
    each = prod(module.kernel_size) * module.in_channels * (module.out_channels // module.groups) * image[0]
    counted = each * prod(output.shape[2:])
    executed = each * prod(image[2:]) if isinstance(module, _ConvTransposeNd) else counted
    return _Count(counted + (0 if module.bias is None else output.numel()), executed)


def _linear(module: nn.Module, inputs: list[Tensor], output: Tensor) -> _Count:
    products = inputs[0].numel() * output.shape[-1]
    return _Count(products + (0 if module.bias is None else output.shape[-1]), products)


def _batch_norm(module: nn.Module, inputs: list[Tensor], _output: Tensor) -> _Count:
    return _Count(inputs[0].numel() * (2 if module.affine else 1), 0)


def _pool(_module: nn.Module, inputs: list[Tensor], _output: Tensor) -> _Count:
    return _Count(inputs[0].numel(), 0)


def _upsample(_module: nn.Module, _inputs: list[Tensor], output: Tensor) -> _Count:
    return _Count(prod(output.shape[1:]), 0)  # ptflops took the first of the batch


def _attention(module: nn.Module, inputs: list[Tensor], _output: Tensor) -> _Count:
    """Tokens first; with `batch_first` ptflops mistook one for the other, which shows in the products."""
    assert isinstance(module, nn.MultiheadAttention)
    query, key, value = (tensor.shape for tensor in inputs[:3])
    if len(query) != 3:
        return _Count(0, 0)
    width, heads, batch = module.embed_dim, module.num_heads, query[1]
    pairs = query[0] * key[0]
    projections = query[0] * query[2] * width + key[0] * key[2] * module.kdim + value[0] * value[2] * module.vdim
    products = projections + 2 * pairs * width + query[0] * width**2
    biases = query[0] * width + (0 if module.in_proj_bias is None else (query[0] + key[0] + value[0]) * width)
    scaling_and_softmax = query[0] * width + heads * pairs
    return _Count(batch * (products + biases + scaling_and_softmax), batch * products)


_RULES: dict[type | tuple[type, ...], _Rule] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _BatchNorm: _batch_norm,
    _POOLS: _pool,
    nn.Upsample: _upsample,
    nn.MultiheadAttention: _attention,
}
