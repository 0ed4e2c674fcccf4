"""A shortcut around a body, with stochastic depth."""

from timm.layers import DropPath
from torch import Tensor, nn


class Residual(nn.Module):
    """`x + body(x)`.

    Args:
        body: Returns the shape it gets.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the body's result, or in training drop it for some images.

        Args:
            x: float [n, c, h, w].
        """
        return x + self.drop_path(self.body(x))


def residual_if(condition: bool, body: nn.Module) -> nn.Module:
    """The body, with a shortcut around it where there can be one."""
    return Residual(body) if condition else body


def set_drop_path(model: nn.Module, rate: float) -> int:
    """Let shortcuts drop their bodies in training, the deeper the more often, up to a rate.

    Returns:
        How many shortcuts there are.
    """
    shortcuts = [module for module in model.modules() if isinstance(module, Residual)]
    for index, shortcut in enumerate(shortcuts):
        shortcut.drop_path = DropPath(rate * (index + 1) / len(shortcuts))
    return len(shortcuts)
