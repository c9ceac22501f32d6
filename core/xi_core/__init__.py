"""xi's core: hookspecs, engine interfaces, the token path's shapes and the cluster. It knows no engine library."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xi_core.offline import LLM, SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"
API_VERSION = 1
"""Version of the plugin contract (`xi_core.hookspecs`); it grows when a plugin would have to change."""

__all__ = ["API_VERSION", "LLM", "SamplingParams", "StructuredOutputsParams", "__version__"]


if not TYPE_CHECKING:  # type checkers would believe any name

    def __getattr__(name: str) -> Any:
        """`LLM` and its parameters, imported when they are first used: this package stays light."""
        if name not in ("LLM", "SamplingParams", "StructuredOutputsParams"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from xi_core import offline

        return getattr(offline, name)
