"""Python code that a model brings beside its weights: run only where the launch and the server's operator both say yes.

Checked by the supervisor before anything is placed, and by the worker, whose operator may be another.
"""

from __future__ import annotations

from xi_core.api.control import LaunchSpec
from xi_core.errors import Forbidden


def check_remote_code(spec: LaunchSpec, allowed: bool) -> None:
    """Raises `Forbidden` for a launch that trusts a model's code where the operator (`allowed`) doesn't."""
    if spec.trust_remote_code and not allowed:
        raise Forbidden(
            "trust_remote_code needs two to say yes, and only the launch does (--trust-remote-code): "
            "the operator of this machine's xi has not set XI_ALLOW_REMOTE_CODE=1; leave it out for a model without code of its own",
            param="trust_remote_code",
        )
