"""What each operator does to channels.

A rule returns the channels of the first output, or None where it has told everything itself or where there are no
channels. It raises `UnknownError` where it cannot say: then all channels that the operator sees are fixed.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from compress.channel_map.channel_map import Layer
from compress.channel_map.notes import Call, Notes, Tie, UnknownError, along, channels_of, constant_along
from compress.channel_map.reshapes import splits

Rule = Callable[[Notes, Call], Tensor | None]

SAME = """alias clone contiguous detach lift_fresh _to_copy relu relu_ relu6 hardtanh hardtanh_ hardswish hardswish_
    hardsigmoid hardsigmoid_ sigmoid sigmoid_ silu silu_ gelu gelu_ tanh tanh_ leaky_relu leaky_relu_ elu elu_ mish
    mish_ softplus clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ exp log sqrt rsqrt neg abs square erf
    reciprocal"""
"""Operators that look at one place of one tensor at a time."""
MEET = "add add_ sub sub_ rsub mul mul_ div div_ pow pow_ maximum minimum where addcmul lerp"
"""Operators that look at one place of each tensor at a time."""
VIEWS = "permute transpose t squeeze unsqueeze expand flip roll index_select select slice narrow"
RESHAPES = "view _unsafe_view reshape _reshape_alias"
PER_CHANNEL = """avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d
    reflection_pad2d replication_pad2d"""
"""Operators that change heights and widths."""
REDUCTIONS = "mean sum amax amin"


def same(notes: Notes, call: Call) -> Tensor | None:
    """One tensor, place by place."""
    return notes.ids(call.args[0])


def meet(notes: Notes, call: Call) -> Tensor | None:
    """Several tensors, place by place: what meets is one."""
    met = [(tensor, notes.ids(tensor)) for tensor in call.args if isinstance(tensor, Tensor)]
    known = [ids.expand(call.out.shape) for _, ids in met if ids is not None]
    if not known:
        return None
    for ids in known[1:]:
        if not torch.equal(known[0], ids):
            notes.unions.join(known[0].numpy(), ids.numpy())
    if any(ids is None and _differs(tensor, known[0]) for tensor, ids in met):
        raise UnknownError("a sum or product with constants of which each channel has its own")
    return known[0]


def _differs(constant: Tensor, ids: Tensor) -> bool:
    """Whether a constant has more than one place where channels differ."""
    shape = (1,) * (ids.ndim - constant.ndim) + tuple(constant.shape)
    return any(length > 1 and not constant_along(ids, axis) for axis, length in enumerate(shape))


def view(notes: Notes, call: Call) -> Tensor | None:
    """The same places in another order, or some of them."""
    if call.name in ("t", "transpose") and notes.owner(call.args[0])[1] == "weight" and call.args[0].ndim == 2:
        notes.transposes(call.args[0], call.out)
        return None
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    found: Tensor = call.again(ids)
    if call.name in ("slice", "narrow", "select") and len(torch.unique(found)) < len(torch.unique(ids)):
        raise UnknownError("a slice")  # its bounds may stand in the code
    return found


def reshape(notes: Notes, call: Call) -> Tensor | None:
    """Another shape; where channels are divided into rows, what is below each other goes together."""
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    for axis, rows in splits(tuple(ids.shape), tuple(call.out.shape)):
        if constant_along(ids, axis):
            continue
        found = along(ids, axis)
        if found is None or not rows:
            raise UnknownError("a reshape")
        table = found.reshape(rows, -1)
        notes.ties.append(Tie(stack=tuple(notes.stack), first=np.tile(table[0], rows - 1), second=table[1:].ravel()))
    return ids.reshape(call.out.shape)


def shuffle(notes: Notes, call: Call) -> Tensor | None:
    """`torch.nn.functional.channel_shuffle`: rows of channels, read by columns."""
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    table = ids.reshape(ids.shape[0], call.args[1], -1, *ids.shape[2:])
    stack = tuple(notes.stack)
    first, second = table[:, :1].expand(table.shape), table
    notes.ties.append(Tie(stack=stack, first=first.reshape(-1).numpy(), second=second.reshape(-1).numpy()))
    return table.transpose(1, 2).flatten(1, 2)


def cat(notes: Notes, call: Call) -> Tensor | None:
    """One after the other."""
    parts = [notes.ids(tensor) for tensor in call.args[0]]
    if all(part is None for part in parts):
        return None
    if any(part is None for part in parts):
        raise UnknownError("a concatenation with constants")
    found: Tensor = call.again(parts)
    return found


def split(notes: Notes, call: Call) -> Tensor | None:
    """Equal pieces stay equal. Sizes that stand in the code cannot change; the proof finds those."""
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    pieces = call.again(ids)
    axis = call.args[2] if len(call.args) > 2 else call.kwargs.get("dim", 0)
    parts = [found for piece in pieces if (found := along(piece, axis)) is not None]
    if len(parts) < len(pieces) or len({len(part) for part in parts}) > 1:
        raise UnknownError("a split into pieces of different sizes")
    notes.balances.append(tuple(parts))
    for tensor, piece in zip(call.out, pieces, strict=True):
        notes.know(tensor, piece)
    return None


def per_channel(notes: Notes, call: Call) -> Tensor | None:
    """Other heights and widths."""
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    first = call.out[0] if isinstance(call.out, tuple) else call.out
    return channels_of(ids).reshape(1, -1, 1, 1).expand(first.shape)


def pad(notes: Notes, call: Call) -> Tensor | None:
    """Zeros around the image."""
    if any(call.args[1][4:]):
        raise UnknownError("channels that are filled up with zeros")
    return per_channel(notes, call)


def reduce(notes: Notes, call: Call) -> Tensor | None:
    """Over places of one channel, not over channels."""
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    axes = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if not axes or not torch.equal(ids.amin(axes), ids.amax(axes)):
        raise UnknownError(f"{call.name} over channels")
    return ids.amin(axes).reshape(call.out.shape)


def norm(notes: Notes, call: Call) -> Tensor | None:
    """Batch normalisation: a scale and a shift for each channel."""
    ids = notes.ids(call.args[0])
    if ids is None:
        return None
    owners = {path for path, name in map(notes.owner, call.args[1:5]) if name}
    if len(owners) != 1 or call.args[5]:
        raise UnknownError("a normalisation whose numbers are computed")
    channels = channels_of(ids).numpy()
    notes.add(owners.pop(), Layer(kind="per-channel", inputs=channels, outputs=channels))
    return ids


def prelu(notes: Notes, call: Call) -> Tensor | None:
    """A slope for each channel, or one for all."""
    ids, slopes = notes.ids(call.args[0]), call.args[1]
    if ids is None or slopes.numel() == 1:
        return ids
    paths = [
        path
        for path, module in notes.modules.items()
        if isinstance(module, nn.PReLU) and module.weight.data_ptr() == slopes.data_ptr()  # it comes reshaped
    ]
    if not paths:
        raise UnknownError("slopes that are computed")
    channels = channels_of(ids).numpy()
    notes.add(paths[0], Layer(kind="per-channel", inputs=channels, outputs=channels))
    return ids


def convolution(notes: Notes, call: Call) -> Tensor | None:
    """New channels, unless each channel has its own filters."""
    x, weight, groups = call.args[0], call.args[1], call.args[8]
    ids, (path, name) = notes.ids(x), notes.owner(weight)
    if ids is None:
        return None
    if call.args[6] or name != "weight" or not isinstance(notes.modules[path], nn.Conv2d):
        raise UnknownError("a convolution whose weight is computed, or that is none of two dimensions")
    inputs = channels_of(ids).numpy()
    work = call.out[0, 0].numel() * weight[0, 0].numel()
    if groups > 1 and weight.shape[1] == 1:
        outputs = np.repeat(inputs, len(weight) // groups)
        notes.add(path, Layer(kind="depthwise", inputs=inputs, outputs=outputs, groups=groups, work=work))
    else:
        outputs = notes.unions.new(len(weight))
        notes.add(path, Layer(kind="convolution", inputs=inputs, outputs=outputs, groups=groups, work=work))
        if groups > 1:
            notes.balances += [tuple(np.split(inputs, groups)), tuple(np.split(outputs, groups))]
    return torch.from_numpy(outputs).reshape(1, -1, 1, 1).expand(call.out.shape)


def product(notes: Notes, call: Call) -> Tensor | None:
    """A linear layer: [rows, in] times its weight."""
    x, matrix = call.args[-2:]
    ids, weight = notes.ids(x), notes.transposed(matrix)
    path, name = notes.owner(weight)
    if ids is None:
        return None
    inputs = along(ids, 1)
    if weight is None or not name or not isinstance(notes.modules[path], nn.Linear) or inputs is None:
        raise UnknownError("a matrix product that is no linear layer over channels")
    outputs = notes.unions.new(len(weight))
    notes.add(path, Layer(kind="linear", inputs=inputs, outputs=outputs, work=len(x)))
    return torch.from_numpy(outputs).reshape(1, -1).expand(call.out.shape)


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME.split(), same),
    **dict.fromkeys(MEET.split(), meet),
    **dict.fromkeys(VIEWS.split(), view),
    **dict.fromkeys(RESHAPES.split(), reshape),
    **dict.fromkeys(PER_CHANNEL.split(), per_channel),
    **dict.fromkeys(REDUCTIONS.split(), reduce),
    "channel_shuffle": shuffle,
    "native_channel_shuffle": shuffle,
    "cat": cat,
    "split": split,
    "constant_pad_nd": pad,
    "native_batch_norm": norm,
    "_prelu_kernel": prelu,
    "prelu": prelu,
    "convolution": convolution,
    "addmm": product,
    "mm": product,
}
"""By name of the operator, without its overload."""
