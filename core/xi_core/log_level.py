"""How much processes log: the words for it, and the one check of the setting, for commands and processes."""

from __future__ import annotations

from xi_core.errors import ConfigError

LOG_LEVELS = ("debug", "info", "warning", "error")


def checked(level: str) -> str:
    """The level in lower case. Raises `ConfigError`, naming the setting."""
    if level.lower() not in LOG_LEVELS:
        raise ConfigError(f"XI_LOG_LEVEL={level!r} is none of {', '.join(LOG_LEVELS)}", param="XI_LOG_LEVEL")
    return level.lower()
