"""What `xi serve`, `xi supervisor`, `xi worker` and `xi gateway` have in common: how they log, and how they end over a wrong setting."""

from __future__ import annotations

from typing import Any

import click

from xi_cli.group import Failure
from xi_cli.options import common
from xi_core import log_level
from xi_core.cluster.sibling import CONFIG_STATUS
from xi_core.config import settings
from xi_core.errors import ConfigError


class WrongSetting(Failure):
    """A server can't start as it is set up. systemd knows by the status that no restart would help."""

    exit_code = CONFIG_STATUS


class ServerCommand(click.Command):
    """A command that becomes a server. Where a setting is wrong, that is a `WrongSetting`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise WrongSetting(error.message) from error


def level_of(ctx: click.Context, given: str | None) -> str:
    """How much the server logs: by its option, the group's options or the setting. Raises `ConfigError`."""
    group = common(ctx)
    return log_level.checked(given or group.log_level or ("debug" if group.verbose else settings().log_level))
