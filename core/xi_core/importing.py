"""Import by path: how a descriptor or a launch plan names a class without importing its module."""

from __future__ import annotations

import importlib
from typing import Any

from xi_core.errors import PluginError


def import_path(path: str) -> Any:
    """The object that `module:name` names. Raises `PluginError` if it isn't there; an ImportError of the module itself passes through."""
    module, colon, name = path.partition(":")
    if not colon:
        raise PluginError(f"'{path}' should read 'module:Class'")
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise PluginError(f"module '{module}' has no '{name}'")
    return found
