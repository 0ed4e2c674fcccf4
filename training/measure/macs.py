"""The exact MAC meter: multiply-accumulates of convolution, matrix product and attention for one image.

Counts what the network executes (`torch.utils.flop_counter.FlopCounterMode` / 2), not which module types it is made of,
so a Conv2d subclass, `F.linear`, `einsum` and `@` cost what they cost. Bias, normalization, pooling, activations and
other elementwise arithmetic count 0 by convention, as do lookups and FFTs. What it cannot see into it refuses: there is
no silent 0.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from pipelines.errors import TacopressError, UsageError

_Shape = tuple[int, ...]
_Operator = OpOverload | HigherOrderOperator
_aten = torch.ops.aten

Watch = Callable[[str, nn.Module, tuple[object, ...], object], object]
"""Called as each module returns, with its path, itself, its positional and keyword inputs in one tuple, its output."""

_ROOT = "the model itself"
_FLOAT_TWIN = "count its float twin instead: quantizing does not change the number of MACs"
_NEEDS_FORMULA = "give it a formula with torch.utils.flop_counter.register_flop_formula"
_NEEDS_PARTS = "write it with plain convolutions and matrix products, or count its float twin if it is quantized"

_OPAQUE_ATEN = re.compile(
    # Convolutions of one vendor or fused with their neighbours.
    r"(mkldnn|miopen|miopen_depthwise|_mps|_nnpack_spatial)_convolution\w*|cudnn_convolution_\w+|conv_tbc"
    r"|_?conv_depthwise[23]d|slow_conv(3d_forward|_dilated[23]d|_transpose[23]d)"
    # Matrix products on packed, scaled, grouped or sparse operands, and distances computed as matrix products.
    r"|mkldnn_linear|_mixed_dtypes_linear|_addmm_activation|_(int|grouped|foreach)_mm|_scaled_(grouped_)?(add)?mm\w*"
    r"|_weight_int[48]pack_mm\w*|_dyn_quant_matmul\w*|_(cslt_)?sparse_\w*(mm|matmul|linear)\w*|hspmm"
    r"|sparse_sampled_addmm|_trilinear|_cdist_forward|_euclidean_dist"
    # Whole layers.
    r"|(mkldnn|_cudnn|miopen)_rnn\w*|_lstm_mps|quantized_(lstm|gru)|_transformer_encoder_layer_fwd"
)
"""Operators that multiply matrices without showing their parts, whatever formula a torch release has for them."""


class UncountableError(TacopressError):
    """The meter cannot see all the arithmetic of a model and will not guess. Exit status 1."""


@dataclass(frozen=True, kw_only=True)
class LayerMacs:
    """What one module does itself, without its children.

    Args:
        path: Dotted module path, `""` for the model itself.
        type_name: Class name of the module.
        macs: Multiply-accumulates executed by this module's own code.
        parameters: Elements of the parameters this module owns; a shared parameter counts where it is met first.
    """

    path: str
    type_name: str
    macs: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class MacsReport:
    """What a model costs for one image.

    Args:
        macs: Multiply-accumulates of one forward pass with batch size 1.
        parameters: Elements of all parameters, frozen ones included, shared ones once.
        layers: Every module with MACs or parameters of its own, in module order; both columns add up to the totals.
        input_size: (height, width) of the input in px.
    """

    macs: int
    parameters: int
    layers: tuple[LayerMacs, ...]
    input_size: tuple[int, int]


def count_macs(model: nn.Module, input_size: tuple[int, int] | int, *, channels: int = 3) -> MacsReport:
    """Count the multiply-accumulates of one forward pass.

    Works on a float32 copy in evaluation mode on the CPU (on the meta device if the model lives there); neither the
    model nor any global state of torch is changed, and it makes no difference whether the caller is in a no_grad,
    inference_mode or autocast block.

    Args:
        model: Any network that takes one float tensor [1, channels, height, width].
        input_size: (height, width) of the input, or the side of a square, in px.
        channels: Channels of the input.

    Raises:
        UncountableError: The model is quantized, scripted or lazy, holds tensors that are not plain, runs an operator
            that hides its arithmetic, cannot be copied or run, or does no countable work at all.
        UsageError: A size is smaller than 1.
    """
    return count_watched(model, input_size, lambda *_: None, channels=channels)


def count_watched(
    model: nn.Module, input_size: tuple[int, int] | int, watch: Watch, *, channels: int = 3
) -> MacsReport:
    """Count as `count_macs` does, with somebody who looks at what goes in and out of the modules.

    Args:
        model: As in `count_macs`.
        input_size: Likewise.
        watch: Sees the modules of the copy that runs, each time one returns; it must not change anything.
        channels: As in `count_macs`.

    Raises:
        UncountableError: As in `count_macs`.
        UsageError: Likewise.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width, channels) < 1:
        raise UsageError(f"input {channels}x{height}x{width} is empty: give sizes of at least 1")
    model = unwrapped(model)
    for path, module in model.named_modules():
        _refuse_opaque(path, module)
    with _neutral_torch():
        flops = _run(_evaluation_copy(model), (1, channels, height, width), watch)
    report = make_report(model, {path: count // 2 for path, count in flops.items()}, (height, width))
    if report.macs == 0 and any(parameter.ndim >= 2 for parameter in model.parameters()):
        raise uncountable("", model, "has weights but ran no countable operator", "compute with torch operators")
    return report


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of what `torch.compile` returns: that is what has to be counted."""
    return getattr(model, "_orig_mod", model)


def make_report(model: nn.Module, macs: Mapping[str, int], input_size: tuple[int, int]) -> MacsReport:
    """Put the cost of the modules together.

    Args:
        model: The network.
        macs: Multiply-accumulates of each module's own code by its path; a path that is absent has none.
        input_size: (height, width) in px.
    """
    layers = tuple(_layers(model, macs))
    return MacsReport(
        macs=sum(layer.macs for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        layers=layers,
        input_size=input_size,
    )


def independent_copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model with tensors that have a history, which `copy.deepcopy` alone refuses.

    Masks and weight norm leave such tensors behind as attributes.

    Raises:
        UncountableError: Something in the model cannot be copied.
    """
    tensors = _tensors(model)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise uncountable("", model, f"cannot be copied ({error})", "pass the network without wrappers") from error


def _tensors(model: nn.Module) -> list[Tensor]:
    return [leaf for m in model.modules() for leaf in tree_leaves(vars(m)) if isinstance(leaf, Tensor)]


def uncountable(path: str, module: nn.Module, what: str, cure: str) -> UncountableError:
    """The error that names a module, what it does that cannot be counted, and what helps."""
    return UncountableError(f"{path or _ROOT} ({type(module).__name__}) {what}: {cure}")


def _refuse_opaque(path: str, module: nn.Module) -> None:
    """Raise for a module whose type or tensors hide the arithmetic."""
    if isinstance(module, torch.jit.ScriptModule):
        raise uncountable(path, module, "is scripted or traced", "count the nn.Module it was made from")
    homes = [base.__module__ for base in type(module).__mro__]
    if any(home.startswith(("torch.", "torchao.")) and ".quantized" in home for home in homes):
        raise uncountable(path, module, "is a quantized module", _FLOAT_TWIN)
    for leaf in tree_leaves(vars(module)):
        if isinstance(leaf, torch.ScriptObject):
            raise uncountable(path, module, "holds packed weights", _FLOAT_TWIN)
        if isinstance(leaf, Tensor):
            _refuse_tensor(path, module, leaf)


def _refuse_tensor(path: str, module: nn.Module, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise uncountable(path, module, "has no shape yet", "run one forward pass before counting")
    if tensor.is_quantized:
        raise uncountable(path, module, "holds quantized tensors", _FLOAT_TWIN)
    if tensor.layout is not torch.strided:
        raise uncountable(path, module, f"holds {tensor.layout} tensors", "count the model with dense weights")
    if hasattr(tensor, "__tensor_flatten__"):  # a subclass that wraps others: torchao, DTensor
        raise uncountable(path, module, f"holds {type(tensor).__name__} weights", "count the model with plain weights")


class _HiddenWork(BaseException):
    """An operator hides its arithmetic; no model's `except Exception` may swallow that. `args`: operator and cure."""


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lies below the counter, sees each operator after decomposition, and stops at one that nobody can count."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: _Operator, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if _hides_work(func) and any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            raise _HiddenWork(str(func), _NEEDS_PARTS if func.namespace == "aten" else _NEEDS_FORMULA)
        return func(*args, **kwargs)


def _hides_work(func: _Operator) -> bool:
    """Whether an operator that takes tensors may do work that the counter misses."""
    packet = func.overloadpacket if isinstance(func, OpOverload) else func
    if func.namespace not in ("aten", "prim", "prims"):
        return packet not in flop_registry
    name = packet.__name__
    # Which fused attention has a formula, and which counts as 0, depends on the torch release (pytorch#195460).
    return bool(_OPAQUE_ATEN.fullmatch(name)) or ("attention" in name and packet not in flop_registry)


def _product(a: _Shape, b: _Shape, *_: object, **__: object) -> int:
    """FLOPs of `a @ b`, two per multiply-accumulate; a one-dimensional `b` is a vector."""
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _added_product(_base: _Shape, a: _Shape, b: _Shape, *_: object, **__: object) -> int:
    return _product(a, b)


_FORMULAS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((_aten.mv, _aten.dot, _aten.vdot), _product),
    **dict.fromkeys((_aten.addmv, _aten.addmv_, _aten.addmm_), _added_product),
    **dict.fromkeys((_aten.addbmm, _aten.addbmm_, _aten.baddbmm_), _added_product),
}
"""Matrix products that torch's own counter takes for nothing."""


@contextmanager
def _neutral_torch() -> Iterator[None]:
    """The state of torch in which every product shows itself; the caller's comes back afterwards.

    The fused attention path and inference mode hide products from the counter, depending on the torch release.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _evaluation_copy(model: nn.Module) -> nn.Module:
    """An independent float32 copy in evaluation mode, on the CPU, or on the meta device if a parameter is there."""
    device = "meta" if any(tensor.is_meta for tensor in _tensors(model)) else "cpu"
    twin = independent_copy(model).float().to(device)
    with suppress(NotImplementedError):  # an exported program: its mode was fixed when it was exported
        twin.eval()
    for module in twin.modules():
        module._compiled_call_impl = None  # Module.compile() would run a graph that nobody sees into
    return twin


def _run(twin: nn.Module, shape: tuple[int, int, int, int], watch: Watch) -> dict[str, int]:
    """One forward pass on zeros; FLOPs by the path of the innermost module that ran them."""
    device = next((tensor.device for tensor in (*twin.parameters(), *twin.buffers())), torch.device("cpu"))
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    ledger = _Ledger(twin, counter, watch)
    try:
        with device, _Guard(), counter:  # type: ignore[no-untyped-call]
            twin(torch.zeros(shape, dtype=torch.float32))
    except _HiddenWork as hidden:
        operator, cure = hidden.args
        what = f"runs {operator}, which hides its arithmetic"
        raise uncountable(ledger.stack[-1], twin.get_submodule(ledger.stack[-1]), what, cure) from None
    except Exception as error:
        what = f"failed on an input of {'x'.join(map(str, shape))} ({error})"
        cure = "give a size and channels the model accepts"
        raise uncountable(ledger.stack[-1], twin.get_submodule(ledger.stack[-1]), what, cure) from error
    ledger.settle()
    return ledger.own


class _Ledger:
    """Books the counter's growth to the innermost module on each entry and exit.

    Args:
        twin: The network to watch; it keeps the hooks, so it must be a throw-away copy.
        counter: The running counter.
        watch: Is told of each exit.
    """

    def __init__(self, twin: nn.Module, counter: FlopCounterMode, watch: Watch) -> None:
        self.own: dict[str, int] = {}
        self.stack = [""]
        self._counter = counter
        self._watch = watch
        self._booked = 0
        for path, module in twin.named_modules():
            module.register_forward_pre_hook(partial(self._enter, path), prepend=True)
            module.register_forward_hook(partial(self._leave, path), with_kwargs=True)

    def settle(self) -> None:
        """Book what was counted since the last call to the module now on top."""
        total = self._counter.get_total_flops()
        self.own[self.stack[-1]] = self.own.get(self.stack[-1], 0) + total - self._booked
        self._booked = total

    def _enter(self, path: str, *_: object) -> None:
        self.settle()
        self.stack.append(path)

    def _leave(
        self, path: str, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        self.settle()
        self._watch(path, module, (*args, *kwargs.values()), output)
        # A model may catch an error of a child, whose exit is then never called: drop everything above ourselves.
        while self.stack.pop() != path:
            pass


def _layers(model: nn.Module, own: Mapping[str, int]) -> Iterator[LayerMacs]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        mine = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in seen}
        seen.update(mine)
        macs, parameters = own.get(path, 0), sum(mine.values())
        if macs or parameters:
            yield LayerMacs(path=path, type_name=type(module).__name__, macs=macs, parameters=parameters)
