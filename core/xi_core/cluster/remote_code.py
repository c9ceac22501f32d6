"""Python code that a model brings beside its weights: run only where the launch and the server's operator both say yes.

Checked by the supervisor before anything is placed, and by the worker, whose operator may be another.
"""

from __future__ import annotations

import msgspec

from xi_core.api.control import LaunchSpec
from xi_core.config import Settings
from xi_core.errors import Forbidden
from xi_core.wire.plan import LaunchPlan


def check_remote_code(spec: LaunchSpec, allowed: bool) -> None:
    """Raises `Forbidden` for a launch that trusts a model's code where the operator (`allowed`) doesn't."""
    if spec.trust_remote_code and not allowed:
        raise Forbidden(
            "trust_remote_code needs two to say yes, and only the launch does (--trust-remote-code): "
            "the operator of this machine's xi has not set XI_ALLOW_REMOTE_CODE=1; leave it out for a model without code of its own",
            param="trust_remote_code",
        )


def granted(plan: LaunchPlan, settings: Settings) -> LaunchPlan:
    """The plan with what this machine's operator allows, whatever the supervisor says: a model's own code, and pickled weights."""
    return msgspec.structs.replace(
        plan,
        trust_remote_code=plan.trust_remote_code and settings.allow_remote_code,
        pickled_weights=settings.allow_pickled_weights,
    )
