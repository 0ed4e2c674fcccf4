"""YAML as people write it by hand: safe, strict about keys, and with errors of one line."""

from typing import Any

import yaml

_CAUSES = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What PyYAML raises for text such as `!!int ''`, `2021-13-45` or a thousand brackets, beside its own errors."""


def load_yaml(text: str | bytes) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Read one YAML document: plain values only.

    Args:
        text: The YAML.

    Raises:
        ValueError: It is not YAML, or gives a key twice; the message is one line that says where.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except _CAUSES as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML libraries silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return mapping
