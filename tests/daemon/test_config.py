import logging
import pathlib

import pytest

from daemon.config import (
    Config,
    ConfigError,
    HostSetting,
    check_listening,
    client_url,
    load_config,
    parse_host,
)
from daemon.models.registry.throttle import QuietHours


def config(arguments: dict[str, object] | None = None, **environ: str) -> Config:
    return load_config(environ, arguments or {})


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 11434),
        ("1.2.3.4", "1.2.3.4", 11434),
        ("1.2.3.4:1234", "1.2.3.4", 1234),
        (":1234", "", 1234),
        ("example.com", "example.com", 11434),
        ("example.com:1234", "example.com", 1234),
        ("[::1]", "::1", 11434),
        ("[::1]:1337", "::1", 1337),
        ("::1", "::1", 11434),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("http://1.2.3.4", "1.2.3.4", 80),
        ("https://1.2.3.4", "1.2.3.4", 443),
        ("http://1.2.3.4:4321/", "1.2.3.4", 4321),
        ("https://example.com:4321/path", "example.com", 4321),
    ],
)
def test_host_forms(text: str, host: str, port: int) -> None:
    setting = parse_host(text)
    assert (setting.host, setting.port) == (host, port)


def test_path_of_a_host_is_kept_for_clients() -> None:
    assert parse_host("https://example.com/ollama/") == HostSetting(
        "https", "example.com", 443, "ollama"
    )
    assert client_url({"OLLAMA_HOST": "https://example.com/a"}) == "https://example.com:443/a"


@pytest.mark.parametrize("text", ["1.2.3.4:66000", "1.2.3.4:-1", "1.2.3.4:x", "1.2.3.4:"])
def test_bad_port_is_an_error_of_ours_and_a_warning_of_theirs(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="HEARTH_HOST"):
        config(HEARTH_HOST=text)
    with caplog.at_level(logging.WARNING):
        foreign = config(OLLAMA_HOST=text)
    assert (foreign.host, foreign.port) == ("1.2.3.4", 11434)
    assert "OLLAMA_HOST" in caplog.text


def test_flag_wins_over_ours_over_theirs_over_default() -> None:
    environ = {"HEARTH_HOST": "127.0.0.2", "OLLAMA_HOST": "127.0.0.3"}
    assert config({"host": "127.0.0.1:5"}, **environ).port == 5
    assert config({"host": None}, **environ).host == "127.0.0.2"
    assert config(OLLAMA_HOST="127.0.0.3").host == "127.0.0.3"
    assert config().host == "127.0.0.1"


def test_values_lose_spaces_and_quotes() -> None:
    assert config(OLLAMA_HOST=' "127.0.0.9:1" ').host == "127.0.0.9"
    assert config(HEARTH_BACKEND="' mlx '").backend == "mlx"


def test_an_unknown_backend_stops_the_start() -> None:
    assert config().backend == "auto"
    with pytest.raises(ConfigError, match="auto, mlx, onnx"):
        config(HEARTH_BACKEND="cuda")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("300ms", 0.3),
        ("0", 0.0),
        ("42", 42.0),
        ("-1", None),
        ("-1m", None),
    ],
)
def test_keep_alive(text: str, seconds: float | None) -> None:
    assert config(OLLAMA_KEEP_ALIVE=text).keep_alive_seconds == seconds
    assert config(HEARTH_KEEP_ALIVE=text).keep_alive_seconds == seconds


def test_load_timeout_of_nothing_is_forever() -> None:
    assert config().load_timeout_seconds == 300.0
    assert config(OLLAMA_LOAD_TIMEOUT="0").load_timeout_seconds is None
    assert config(OLLAMA_LOAD_TIMEOUT="-1s").load_timeout_seconds is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("true", True), ("T", True), ("yes", True), ("0", False), ("F", False)],
)
def test_booleans(text: str, expected: bool) -> None:
    assert config(OLLAMA_NOPRUNE=text).no_prune is expected


def test_bad_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert config(OLLAMA_MAX_QUEUE="7").max_queue == 7
    with caplog.at_level(logging.WARNING):
        assert config(OLLAMA_MAX_QUEUE="-7").max_queue == 512
    assert "OLLAMA_MAX_QUEUE" in caplog.text
    with pytest.raises(ConfigError, match="HEARTH_MAX_QUEUE='-7'"):
        config(HEARTH_MAX_QUEUE="-7")
    with pytest.raises(ConfigError):
        config(HEARTH_MAX_QUEUE="²")


def test_folders_follow_home() -> None:
    settings = config(HEARTH_HOME="/tmp/h")
    assert settings.models == pathlib.Path("/tmp/h/models")
    assert settings.artifacts == pathlib.Path("/tmp/h/artifacts")
    assert config({"home": "/tmp/f"}, HEARTH_HOME="/tmp/h").home == pathlib.Path("/tmp/f")
    assert config().home == pathlib.Path.home() / ".hearth"
    assert config(HEARTH_HOME="~/x").home == pathlib.Path.home() / "x"


def test_only_a_store_named_for_the_other_server_is_foreign() -> None:
    assert config(OLLAMA_MODELS="/tmp/m").models_foreign
    assert not config(OLLAMA_MODELS="/tmp/m", HEARTH_MODELS="/tmp/n").models_foreign
    assert not config({"models": "/tmp/n"}, OLLAMA_MODELS="/tmp/m").models_foreign
    assert not config().models_foreign


def test_origins_without_scheme_stop_the_start() -> None:
    assert config(OLLAMA_ORIGINS="http://a, chrome-extension://*").origins == (
        "http://a",
        "chrome-extension://*",
    )
    assert config(HEARTH_ORIGINS="*").origins == ("*",)
    for name in ("OLLAMA_ORIGINS", "HEARTH_ORIGINS"):
        with pytest.raises(ConfigError, match="scheme"):
            config(None, **{name: "example.com"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    check_listening(config(HEARTH_HOST=host), has_keys=False)


@pytest.mark.parametrize("host", [":11434", "0.0.0.0", "[::]:1", "192.168.1.2", "example.com"])
def test_listening_beyond_loopback_needs_the_owners_word(host: str) -> None:
    with pytest.raises(ConfigError, match=r"hearth key add NAME.*--open"):
        check_listening(config(HEARTH_HOST=host), has_keys=False)
    check_listening(config(HEARTH_HOST=host), has_keys=True)
    check_listening(config({"open_lan": True}, HEARTH_HOST=host), has_keys=False)
    check_listening(config(HEARTH_HOST=host, HEARTH_OPEN="1"), has_keys=False)
    with pytest.raises(ConfigError):
        check_listening(config(HEARTH_HOST=host, HEARTH_OPEN="0"), has_keys=False)


def test_a_client_asks_loopback_where_the_daemon_takes_every_interface() -> None:
    assert client_url({"HEARTH_HOST": "0.0.0.0:5"}) == "http://127.0.0.1:5"
    assert client_url({"HEARTH_HOST": "[::1]:5"}) == "http://[::1]:5"
    assert client_url({}) == "http://127.0.0.1:11434"


def test_registry_settings() -> None:
    found = config(
        HEARTH_PULL_RATE="12.5M",
        HEARTH_PULL_QUIET_HOURS="22:00-06:30",
        HEARTH_REGISTRIES="registry.ollama.ai, *.example.org",
    )
    assert found.pull_bytes_per_second == 12_500_000
    assert found.pull_quiet_hours == QuietHours(22 * 60, 6 * 60 + 30)
    assert found.registries == ("registry.ollama.ai", "*.example.org")
    assert config().registries == ()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HEARTH_PULL_RATE", "fast"),
        ("HEARTH_PULL_RATE", "-1"),
        ("HEARTH_PULL_RATE", "5X"),
        ("HEARTH_PULL_RATE", "nan"),
        ("HEARTH_PULL_QUIET_HOURS", "noon"),
    ],
)
def test_registry_settings_that_are_none(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        config(None, **{variable: text})


def test_other_programs_folders_are_off_until_named() -> None:
    config = load_config({}, {})
    assert (config.foreign, config.foreign_auto, config.create_path) == ((), False, False)
    named = load_config({"HEARTH_FOREIGN": "/a: ~/b :auto", "HEARTH_CREATE_PATH": "1"}, {})
    folders = (pathlib.Path("/a"), pathlib.Path("~/b").expanduser())
    assert (named.foreign, named.foreign_auto, named.create_path) == (folders, True, True)
    assert load_config({"HEARTH_FOREIGN": "off"}, {}).foreign == ()
