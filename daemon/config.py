"""Everything an owner can set, read once at the start into one frozen `Config`.

Flags win over HEARTH_*, those over OLLAMA_*, those over defaults. A value of ours that cannot be
understood stops the start (`ConfigError`); one meant for another server falls back to the default
with a warning, as that server does. Nothing here touches a disk or a socket.
"""

from __future__ import annotations

import ipaddress
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from backends.select import WISHES
from daemon.durations import SECOND_NS, keep_alive_seconds, parse_duration_ns
from daemon.models.registry.mirror_address import LAN, parse_mirror
from daemon.models.registry.throttle import QuietHours, parse_quiet_hours

log = logging.getLogger(__name__)

DEFAULT_PORT = 11434
# Ranks that one MLX model may be split over, and how.
MAX_RANKS = 16
SPLITS = ("auto", "tensor", "pipeline")
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: the service manager shall not retry
_T = TypeVar("_T")


class ConfigError(Exception):
    """The start is refused; the message is one sentence for the owner."""


class HostSetting(msgspec.Struct, frozen=True):
    """HEARTH_HOST or OLLAMA_HOST taken apart. An empty host means every interface."""

    scheme: str
    host: str
    port: int
    path: str = ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """`keep_alive_seconds` and `load_timeout_seconds` None: forever. `max_loaded` 0: automatic.

    `name` empty: the machine's. `models_foreign`: the store is one that OLLAMA_MODELS named, so it
    is read-only until adopted. `foreign` are folders of other programs whose models are served too,
    never written; `create_path` lets clients of /api/create name files of this machine.
    `prefix_cache_bytes` > 0 keeps what was computed for prompts on disk, so much in all.
    `context_growth`: a longer prompt whose request says no num_ctx gets more than `context_length`.
    `memory_artifacts` is a folder in memory for artifacts that fit on no disk; None: there is none.
    """

    home: pathlib.Path
    models: pathlib.Path
    artifacts: pathlib.Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    backend: str = "auto"
    keep_alive_seconds: float | None = 300.0
    context_length: int = 4096
    context_growth: bool = True
    num_parallel: int = 4
    max_queue: int = 512
    max_loaded: int = 0
    origins: tuple[str, ...] = ()
    open_lan: bool = False
    models_foreign: bool = False
    foreign: tuple[pathlib.Path, ...] = ()
    foreign_auto: bool = False
    load_timeout_seconds: float | None = 300.0
    no_prune: bool = False
    create_path: bool = False
    debug: bool = False
    name: str = ""
    pull_bytes_per_second: int = 0
    pull_quiet_hours: QuietHours | None = None
    registries: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    share: bool = False
    tls_certificate: pathlib.Path | None = None
    tls_key: pathlib.Path | None = None
    mlx_ranks: int = 1
    mlx_split: str = "auto"
    memory_artifacts: pathlib.Path | None = None
    prefix_cache_bytes: int = 0

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the socket."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def trimmed(text: str) -> str:
    """Without surrounding spaces and quotes, as every environment value is read."""
    return text.strip().strip("\"'").strip()


def parse_bool(text: str) -> bool:
    """Any text but the spellings of false is true."""
    return text not in ("0", "f", "F", "false", "FALSE", "False")


def parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError("must be a whole number, 0 or more")
    return int(text)


def _parse_seconds(text: str) -> float | None:
    """Seconds of a duration or a bare integer (seconds); None for a negative one."""
    if text.lstrip("+-").isdigit() and len(text) <= 18:
        return keep_alive_seconds(int(text) * SECOND_NS)
    return keep_alive_seconds(parse_duration_ns(text))


def _parse_timeout(text: str) -> float | None:
    return _parse_seconds(text) or None  # 0 means no limit too


def _split_port(text: str) -> tuple[str, str | None]:
    """(host, port); the port is None when `text` has none. A bare IPv6 address has none."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest[1:] if rest.startswith(":") else None
    if text.count(":") != 1:
        return text, None
    host, _, port = text.partition(":")
    return host, port


def parse_host(text: str) -> HostSetting:
    """`host`, `:port`, `host:port`, `[v6]`, `http://host` (80), `https://host` (443), `/path`.

    Raises ValueError for a bad port; its `setting` argument (args[1]) has the default port instead.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    default_port = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT)
    default_port = default_port if separator else DEFAULT_PORT
    address, _, path = rest.partition("/")
    host, port = _split_port(address)
    if not address:
        host = "127.0.0.1"
    setting = HostSetting(scheme, host, default_port, path.rstrip("/"))
    if port is None:
        return setting
    if port.isascii() and port.isdigit() and int(port[:9]) <= 65535:
        return msgspec.structs.replace(setting, port=int(port[:9]))
    raise ValueError(f"{port!r} is not a port", setting)


def _parse_host_leniently(text: str) -> HostSetting:
    try:
        return parse_host(text)
    except ValueError as error:
        log.warning("OLLAMA_HOST: %s; using the default port", error.args[0])
        return error.args[1]


def _parse_path(text: str) -> pathlib.Path:
    return pathlib.Path(text).expanduser().absolute()


def _memory_folder() -> pathlib.Path | None:
    """Where Linux keeps files in memory; other systems have no such place."""
    folder = pathlib.Path("/dev/shm")  # ours below it is for this user only
    return folder if sys.platform == "linux" and folder.is_dir() else None


def _parse_memory_folder(text: str) -> pathlib.Path | None:
    return {"auto": _memory_folder(), "off": None}.get(text, _parse_path(text))


def _parse_foreign(text: str) -> tuple[tuple[pathlib.Path, ...], bool]:
    """Folders between colons; the word `auto` among them stands for the usual places."""
    words = [word for part in text.split(":") if (word := trimmed(part))]
    folders = tuple(_parse_path(word) for word in words if word not in ("auto", "off"))
    return folders, "auto" in words


def _parse_backend(text: str) -> str:
    if text not in (*WISHES, "scripted"):
        raise ValueError(f"must be one of {', '.join(WISHES)}")
    return text


def _parse_ranks(text: str) -> int:
    count = parse_count(text)
    if not 1 <= count <= MAX_RANKS:
        raise ValueError(f"must be a number from 1 to {MAX_RANKS}")
    return count


def _parse_split(text: str) -> str:
    if text not in SPLITS:
        raise ValueError(f"must be one of {', '.join(SPLITS)}")
    return text


_RATE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_rate(text: str) -> int:
    """Bytes a second: a number with K, M or G (decimal), such as 500K or 12.5M."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        rate = float(number) * _RATE_UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError("is not a rate such as 500K or 12.5M (bytes a second)") from None
    if not 0 <= rate < 2**63:
        raise ValueError("is not a rate such as 500K or 12.5M (bytes a second)")
    return int(rate)


def parse_size(text: str) -> int:
    """Bytes: a number with K, M or G (decimal), such as 500M or 4G; 0 for none."""
    try:
        return parse_rate(text)
    except ValueError:
        raise ValueError("is not a size such as 500M or 4G (bytes)") from None


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (trimmed(part) for part in text.split(","))))


def _parse_mirrors(text: str) -> tuple[str, ...]:
    entries = _parse_list(text)
    for entry in entries:
        if entry != LAN:
            parse_mirror(entry)
    return entries


def _parse_origins(text: str) -> tuple[str, ...]:
    entries = _parse_list(text)
    for entry in entries:
        if entry != "*" and "://" not in entry:
            raise ValueError(f"{entry!r} needs a scheme, such as http://")
    return entries


class _Settings:
    """Looks one setting up in flags, then HEARTH_*, then OLLAMA_*."""

    def __init__(self, environ: Mapping[str, str], arguments: Mapping[str, object]) -> None:
        self._environ = environ
        self._arguments = arguments

    def own(self, key: str) -> tuple[str, str]:
        """(where it was found, text); both empty when neither a flag nor HEARTH_* gives it."""
        given = self._arguments.get(key)
        if given is not None and given is not False:
            return f"--{key.replace('_', '-')}", "1" if given is True else trimmed(str(given))
        variable = f"HEARTH_{key.upper()}"
        text = trimmed(self._environ.get(variable, ""))
        return (variable, text) if text else ("", "")

    def foreign(self, key: str) -> str:
        return trimmed(self._environ.get(f"OLLAMA_{key.upper()}", ""))

    def read(self, key: str, parse: Callable[[str], _T], default: _T) -> _T:
        source, text = self.own(key)
        if text:
            try:
                return parse(text)
            except ValueError as error:
                raise ConfigError(f"{source}={text!r}: {error.args[0]}") from error
        return self._read_foreign(key, parse, default)

    def _read_foreign(self, key: str, parse: Callable[[str], _T], default: _T) -> _T:
        text = self.foreign(key)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            # An origin that is read wrongly would open or close a door: never guessed.
            if key == "origins":
                raise ConfigError(f"OLLAMA_ORIGINS: {error}") from error
            log.warning("OLLAMA_%s=%r: %s; using %r", key.upper(), text, error, default)
            return default


def _read_host(settings: _Settings) -> HostSetting:
    _, own = settings.own("host")
    default = HostSetting("http", "127.0.0.1", DEFAULT_PORT)
    return settings.read("host", parse_host if own else _parse_host_leniently, default)


def client_url(environ: Mapping[str, str]) -> str:
    """Where a client on this machine connects to, by the same setting. Raises ConfigError."""
    address = _read_host(_Settings(environ, {}))
    host = address.host if address.host not in ("", "0.0.0.0", "::") else "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    path = f"/{address.path}" if address.path else ""
    return f"{address.scheme}://{shown}:{address.port}{path}"


def default_home(environ: Mapping[str, str]) -> pathlib.Path:
    return _Settings(environ, {}).read("home", _parse_path, pathlib.Path("~/.hearth").expanduser())


def load_config(environ: Mapping[str, str], arguments: Mapping[str, object]) -> Config:
    """`arguments` are flags by name (`host`, `keep_alive`, `open_lan` …); None means not given.

    Raises ConfigError.
    """
    settings = _Settings(environ, {"open": arguments.get("open_lan"), **arguments})
    address = _read_host(settings)
    home = settings.read("home", _parse_path, default_home(environ))
    foreign, foreign_auto = settings.read("foreign", _parse_foreign, ((), False))
    has_own_models = bool(settings.own("models")[1])
    return Config(
        home=home,
        models=settings.read("models", _parse_path, home / "models"),
        models_foreign=not has_own_models and bool(settings.foreign("models")),
        foreign=foreign,
        foreign_auto=foreign_auto,
        artifacts=settings.read("artifacts", _parse_path, home / "artifacts"),
        host=address.host or "0.0.0.0",
        port=address.port,
        backend=settings.read("backend", _parse_backend, "auto"),
        keep_alive_seconds=settings.read("keep_alive", _parse_seconds, 300.0),
        context_length=settings.read("context_length", parse_count, 0) or 4096,
        context_growth=settings.read("context_growth", parse_bool, True),
        num_parallel=settings.read("num_parallel", parse_count, 4) or 4,
        max_queue=settings.read("max_queue", parse_count, 512),
        max_loaded=settings.read("max_loaded_models", parse_count, 0),
        origins=settings.read("origins", _parse_origins, ()),
        open_lan=settings.read("open", parse_bool, False),
        load_timeout_seconds=settings.read("load_timeout", _parse_timeout, 300.0),
        no_prune=settings.read("noprune", parse_bool, False),
        create_path=settings.read("create_path", parse_bool, False),
        debug=settings.read("debug", parse_bool, False),
        name=settings.read("name", str, ""),
        pull_bytes_per_second=settings.read("pull_rate", parse_rate, 0),
        pull_quiet_hours=settings.read("pull_quiet_hours", parse_quiet_hours, None),
        registries=settings.read("registries", _parse_list, ()),
        mirrors=settings.read("mirrors", _parse_mirrors, ()),
        share=settings.read("share", parse_bool, False),
        tls_certificate=settings.read("tls_cert", _parse_path, None),
        tls_key=settings.read("tls_key", _parse_path, None),
        prefix_cache_bytes=settings.read("prefix_cache_bytes", parse_size, 0),
        mlx_ranks=settings.read("mlx_ranks", _parse_ranks, 1),
        mlx_split=settings.read("mlx_split", _parse_split, "auto"),
        memory_artifacts=settings.read("memory_artifacts", _parse_memory_folder, _memory_folder()),
    )


def check_listening(config: Config, *, has_keys: bool) -> None:
    """Raises ConfigError when others could connect and the owner has not said who may."""
    if config.is_loopback or config.open_lan or has_keys:
        return
    raise ConfigError(
        f"listening on {config.host} lets other machines connect, and nobody has a key yet: "
        f"make one with hearth key add NAME (here HEARTH_HOME is {config.home}), or let everybody "
        "in with --open (HEARTH_OPEN=1)"
    )
