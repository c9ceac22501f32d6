"""xi's core: hookspecs, engine interfaces, the token path's shapes and the cluster. It knows no engine library."""

__version__ = "0.1.0"
API_VERSION = 1
"""Version of the plugin contract (`xi_core.hookspecs`); it grows when a plugin would have to change."""
