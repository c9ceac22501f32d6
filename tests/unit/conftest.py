"""How tests of properties choose their examples."""

import os

from hypothesis import HealthCheck, settings

# Those of the default suite are the same each time, and none is too slow: the machine may have other work. XI_RANDOM_EXAMPLES=1 tries others.
random = bool(os.environ.get("XI_RANDOM_EXAMPLES"))
settings.register_profile("xi", deadline=None, derandomize=not random, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xi")
