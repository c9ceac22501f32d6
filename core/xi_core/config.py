"""Settings: the only reader of the environment. Each is `XI_NAME`; where Xinference has the same setting, its name works too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from xi_core.errors import ConfigError

DEFAULT_PORT = 9997
CLUSTER_PORT = 9998
"""Where `xi supervisor` takes workers and gateways of other machines, who join at the next one."""
YEAR = 366 * 24 * 3600
Seconds = Annotated[float, Meta(gt=0, le=YEAR)]


class Settings(Struct, kw_only=True, frozen=True):
    """All settings with their defaults. The environment variable of `hang_timeout` is `XI_HANG_TIMEOUT`.

    Each says last which processes read it: the head (supervisor and launcher), the gateway, the worker, or the other commands.
    """

    home: str = "~/.xi"
    """Where xi keeps what outlives a process: `models` (the cache of downloads), `families` (registered models), `envs` (environments of
    models' own), `logs` (of replicas), and `cluster` (keys of members, and `state.db`, the supervisor's memory; its owner's only).
    Read by: head, gateway, worker, commands."""
    endpoint: str = f"http://127.0.0.1:{DEFAULT_PORT}"
    """The server that commands talk to, and by which `xi worker` and `xi gateway` join where neither an option nor a token names one.
    Read by: gateway, worker, commands."""
    model_src: str = "huggingface"
    """The source of models where neither the launch nor the model itself says: `huggingface`, `modelscope`, or a plugin's.
    Read by: head, commands."""
    offline: bool = False
    """Use what is in the cache, and ask no hub. Also where `HF_HUB_OFFLINE` is 1 and `XI_OFFLINE` isn't set. Read by: worker, commands."""
    verify_models: bool = True
    """Whether a model in the cache is hashed before each launch, so that a damaged file is never loaded. Read by: worker, commands."""
    download_workers: Annotated[int, Meta(ge=1, le=64)] = 4
    """Files of one model that are downloaded at once. Read by: worker, commands."""
    api_key: str = ""
    """The key that the server asks for and that commands send; empty: none. Read by: head, gateway, worker, commands."""
    allow_origins: str = ""
    """Sites whose web pages may use the server: origins, `https://chat.example.org,http://localhost:3000`; with a key also `*`, for any.
    Read by: head, gateway."""
    host: str = "127.0.0.1"
    """Address that `xi serve`, `xi supervisor` and `xi gateway` listen on. Read by: head, gateway, commands."""
    port: Annotated[int, Meta(ge=0, le=65535)] = DEFAULT_PORT
    """Port that they listen on for HTTP; 0 takes a free one. Read by: head, gateway, commands."""
    log_level: str = "info"
    """How much processes log: debug, info, warning or error. Replicas log as the head does. Read by: head, gateway, worker."""
    plugins: str = ""
    """Which plugins load, by entry point name: `a,b` allows only these, `-a,-b` blocks these. Read by: head, gateway, worker, commands."""
    launch_strategy: str = "idle_first"
    """The scheduler that places replicas. Read by: head."""
    allow_multi_replica_per_gpu: bool = True
    """Whether a device may take several replicas, as far as its memory goes. Read by: head."""
    fake_devices: str = ""
    """Devices made up for this worker, `4x80GiB` or `cuda:0=80GiB,cuda:1=24GiB`: placement is real on them, engines run on CPU.
    Read by: worker, commands."""
    port_range: str = "20000-29999"
    """Ports for the ranks of sharded replicas, FIRST-LAST; best outside those that the system gives to outgoing connections.
    Read by: worker."""
    allow_virtual_env: bool = True
    """Whether launches may bring packages of their own, which run as this user. Read by: head, worker."""
    allow_remote_code: bool = False
    """Whether launches with `trust_remote_code` may download Python code beside a model's weights, and run it as this user.
    Read by: head, worker, commands."""
    allow_pickled_weights: bool = False
    """Whether weights that come as `pytorch_model*.bin` only may be downloaded and read, by torch's `weights_only` loading.
    Read by: worker, commands."""
    env_allow: str = ""
    """Beginnings of names, `A_,B_`, that launches may set by `--env` beside the built-in ones where other machines reach this server.
    Read by: head."""
    join_token: str = ""
    """The token with which `xi worker` or `xi gateway` joins a cluster for the first time. Read by: gateway, worker."""
    router: str = "least_loaded"
    """The router that chooses a replica for each request: `least_loaded` or `prefix_affinity`. Read by: gateway."""
    launch_timeout: Seconds = 600.0
    """Seconds; a launch that isn't READY by then is FAILED. Read by: head, gateway."""
    hang_timeout: Seconds = 60.0
    """Seconds; a replica that is busy for this long without a step is killed and started again. Read by: head."""
    grace: Annotated[float, Meta(ge=0, le=YEAR)] = 10.0
    """Seconds to finish running requests when something is stopped gently. Read by: head, gateway, worker."""
    queue_size: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 256
    """Requests of one model that may wait, in the gateway and in each replica. Read by: head, gateway."""
    request_timeout: Seconds = 600.0
    """Seconds; a request without a first token by then fails with 504. Read by: gateway."""
    max_body: Annotated[int, Meta(ge=1024, le=48 * 1024 * 1024)] = 16 * 1024 * 1024
    """Bytes of the largest request body. Read by: gateway."""
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Requests that one replica runs at once, at most. Read by: head."""
    batch_interval: Annotated[float, Meta(ge=0, le=10)] = 0.003
    """Seconds of the longest wait to fill a batch when idle. Read by: head."""

    @property
    def home_dir(self) -> Path:
        """`home` as an absolute path. Raises `ConfigError` where it begins with a home directory that nobody knows."""
        try:
            return Path(self.home).expanduser().absolute()
        except RuntimeError:
            raise ConfigError(f"XI_HOME='{self.home}': there is no such home directory; write the path in full", param="XI_HOME") from None


XINFERENCE_NAMES = {
    "home": "XINFERENCE_HOME",
    "endpoint": "XINFERENCE_ENDPOINT",
    "launch_strategy": "XINFERENCE_LAUNCH_STRATEGY",
    "allow_multi_replica_per_gpu": "XINFERENCE_ALLOW_MULTI_REPLICA_PER_GPU",
    "batch_size": "XINFERENCE_BATCH_SIZE",
    "batch_interval": "XINFERENCE_BATCH_INTERVAL",
    "model_src": "XINFERENCE_MODEL_SRC",
}
"""Settings that Xinference has under its own name; `XI_…` wins when both are set."""


YES = ("1", "on", "yes", "true")
"""What Hugging Face's libraries take for true."""


def read(environ: Mapping[str, str]) -> Settings:
    """Settings from `environ`. Raises `ConfigError`, naming the variable."""
    found: dict[str, Any] = {}
    for setting in msgspec.structs.fields(Settings):
        for variable in (f"XI_{setting.name.upper()}", XINFERENCE_NAMES.get(setting.name)):
            if variable and environ.get(variable):
                found[setting.name] = _converted(variable, environ[variable], setting.type)
                break
    if "offline" not in found and environ.get("HF_HUB_OFFLINE", "").lower() in YES:
        found["offline"] = True
    return Settings(**found)


def _converted(variable: str, text: str, wanted: Any) -> Any:
    try:
        return msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{variable}={text!r}: {error}", param=variable) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """This process's settings, read once."""
    return read(os.environ)
