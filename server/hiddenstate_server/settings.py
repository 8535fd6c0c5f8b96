"""Settings by file, environment and flags, each overriding the one before; validated once, then frozen."""

from __future__ import annotations

import argparse
import os
import re
import socket
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from hiddenstate_server.errors import StartError
from hiddenstate_server.limits import Limits

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("give a duration such as 500ms, 90s, 10m or 24h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _size(value: object) -> object:
    match = re.fullmatch(r"(\d+)\s*(KiB|MiB)?", value.strip()) if isinstance(value, str) else None
    return int(match[1]) * {"KiB": 2**10, "MiB": 2**20, None: 1}[match[2]] if match else value


def _state_folder() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "hiddenstate"


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Serves recurrent models over gRPC, keeping one hidden state per session.

    Every setting can stand in a TOML file (--config), in the environment (HIDDENSTATE_ and the name in
    capitals) or on the command line; the later one wins. Durations take ms, s, m, h or d.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path | None = Field(default=None, description="TOML file with any of these settings.")
    models: Path | None = Field(
        default=None, description="Folder of bundles NAME/VERSION; without it, the models that come with the package."
    )
    host: str = Field(
        default="localhost",
        description="Address to listen on. [::] is every interface: mind who reaches it; see --tokens and --tls-key.",
    )
    port: Port = Field(default=50051, description="Port of the service; 0 takes a free one and prints it.")
    metrics_port: Port = Field(default=9090, description="Port of the Prometheus metrics; 0 switches them off.")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1, description="Processes that share the port, each with its own sessions. One per core."
    )
    tokens: Path | None = Field(
        default=None,
        description="TOML file of tenants and the hashes of their bearer tokens; without it nobody is asked for one, "
        "and the header hiddenstate-tenant is believed.",
    )
    admin_tenant: str = Field(
        default="", description="The tenant that may reload models; empty is a caller without tenant."
    )
    tls_certificate: Path | None = Field(default=None, description="PEM file of the server's certificate chain.")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key.")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities whose clients are let in; without it all are."
    )
    runtime: Literal["auto", "onnx", "torch"] = Field(
        default="auto", description="What computes: torch on a CUDA device where there is one, else onnx."
    )
    precision: Literal["auto", "fp32", "int8"] = Field(
        default="auto",
        description="How next words are found (onnx only): int8 is faster, and auto takes it where a bundle's export "
        "measured that it finds the same words.",
    )
    top_k: Annotated[int, Field(ge=1, le=100)] = Field(default=5, description="Words in a next-word prediction.")
    max_sessions: Count = Field(
        default=100_000,
        description="Live sessions per model in memory; beyond, those used longest ago move to the store. Without a "
        "store, detached ones give way.",
    )
    max_stored_sessions: Count = Field(default=10_000_000, description="Live sessions in the store.")
    max_sessions_per_stream: Count = Field(default=65_536, description="Sessions a stream may hold.")
    max_session_backlog: Count = Field(default=16_384, description="Observations that may wait in a session.")
    max_stream_backlog: Count = Field(default=65_536, description="Observations of a stream that may await answers.")
    max_frame_rows: Count = Field(default=16_384, description="Rows in a frame.")
    max_generate_steps: Count = Field(default=10_000, description="Steps of a free-running continuation.")
    max_generate_paths: Count = Field(default=1_024, description="Paths, or quantiles, of one of values.")
    max_generates_per_stream: Count = Field(default=64, description="Continuations a stream may have under way.")
    max_generate_rows: Count = Field(default=4_096, description="Paths of all continuations together.")
    max_message_bytes: Annotated[int, BeforeValidator(_size), Field(ge=1024)] = Field(
        default=4 * 2**20, description="Bytes in a message; takes KiB and MiB."
    )
    max_batch: Annotated[int, Field(ge=0, le=65_536)] = Field(
        default=0, description="Rows stepped together; 0 finds what keeps a step at about 4 ms."
    )
    reload_interval: Annotated[float, BeforeValidator(_seconds), Field(ge=0)] = Field(
        default=5.0, description="How often the model folder is looked at for versions that came or went; 0 never."
    )
    rewind_steps: Annotated[int, Field(ge=0, le=16_384)] = Field(
        default=64, description="Observations of a session that can be taken back; 0 keeps none."
    )
    on_new_version: Literal["pin", "rewarm"] = Field(
        default="pin",
        description="What becomes of sessions when a newer version appears: they stay, or it is fed what is kept of "
        "their observations and takes over, if it has the same vocabulary.",
    )
    retire: Literal["pin", "rewarm"] = Field(
        default="pin", description="The same, for sessions of a version that is gone from the model folder."
    )
    idle_timeout: Seconds = Field(default=600.0, description="Lease of a session whose client asks for none.")
    max_idle_timeout: Seconds = Field(default=86_400.0, description="Longest lease a client gets.")
    detach_timeout: Seconds = Field(default=60.0, description="How long a session outlives its stream, to be resumed.")
    drain_timeout: Seconds = Field(default=30.0, description="How long SIGTERM lets work under way finish.")
    store: str = Field(
        default="",
        description="Where sessions are kept when no server runs: sqlite:///FILE (a fourth slash for a full path), "
        "redis://HOST:PORT/DB, rediss://, redis+cluster://, or none. Without it, a file in the state folder.",
    )
    durability: Literal["none", "behind", "every-step"] = Field(
        default="behind",
        description="When a session is safe in the store: never, soon after every answer, or before each answer.",
    )
    flush_interval: Seconds = Field(
        default=0.05, description="From one write to the store to the next, while they cost little."
    )
    max_flush_interval: Seconds = Field(
        default=1.0,
        description="The same, however much a write costs: so much may have to be sent again after a crash.",
    )
    store_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.02, description="Share of a core above which writes to the store come less often."
    )
    state_folder: Path = Field(
        default_factory=_state_folder,
        description="Folder of what the server keeps; by default hiddenstate in XDG_STATE_HOME, or ~/.local/state.",
    )
    snapshot_key_file: Path | None = Field(
        default=None,
        description="File with the key that snapshots are sealed with, the same on all replicas. Without it, "
        "HIDDENSTATE_SNAPSHOT_KEY is the key, or else one that is made in the state folder.",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="Logs for people or programs.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe record shown."
    )

    @model_validator(mode="after")
    def _lease_within_maximum(self) -> Settings:
        if self.idle_timeout > self.max_idle_timeout:
            raise ValueError("idle_timeout is longer than max_idle_timeout; lower one or raise the other")
        return self

    @model_validator(mode="after")
    def _whole_tls(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_key is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @property
    def model_folder(self) -> Path:
        """The folder of bundles to serve."""
        from hiddenstate_models.bundle import shipped_bundles

        return self.models or shipped_bundles()

    @property
    def store_url(self) -> str | None:
        """The store's URL; None where none is kept."""
        if self.store == "none" or self.durability == "none":
            return None
        return self.store or f"sqlite:///{self.state_folder.absolute() / 'sessions.db'}"

    @property
    def socket_host(self) -> str:
        """The host as plain sockets want it: no brackets, and IPv4 where one socket cannot serve both families."""
        host = self.host.strip("[]")
        return "0.0.0.0" if host == "::" and not socket.has_dualstack_ipv6() else host  # noqa: S104

    @property
    def limits(self) -> Limits:
        """The part clients feel."""
        return Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})


def load(arguments: Sequence[str]) -> Settings:
    """Settings from a file, the environment and these command-line arguments.

    Raises StartError with one sentence where something is wrong; `--help` and unknown flags exit.
    """
    path = _config_path(arguments)

    class Sources(Settings, BaseSettings):
        __doc__ = Settings.__doc__
        model_config = SettingsConfigDict(
            env_prefix="HIDDENSTATE_",
            cli_prog_name="hiddenstate-server",
            cli_kebab_case=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags: CliSettingsSource[Settings] = CliSettingsSource(settings_cls, cli_parse_args=list(arguments))
            return flags, env_settings, TomlConfigSettingsSource(settings_cls, path)

    try:
        return Settings(**Sources().model_dump())
    except ValidationError as error:
        raise StartError(_sentence(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise StartError(f"{path} is no TOML file: {error}") from error


def _config_path(arguments: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=os.environ.get("HIDDENSTATE_CONFIG"))
    config: str | None = parser.parse_known_args(arguments)[0].config
    if config is None:
        return None
    path = Path(config)
    if not path.is_file():
        raise StartError(f"the settings file {path} does not exist")
    return path


def _sentence(error: ValidationError) -> str:
    complaint = error.errors()[0]
    message = complaint["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, complaint["loc"]))
    if complaint["type"] == "extra_forbidden":
        return f"there is no setting {where!r}; see hiddenstate-server --help"
    return f"setting {where}: {message}, not {complaint['input']!r}" if where else message
