"""A daemon with a certificate of its own: who trusts it is served, and a renewed one is taken up."""

from __future__ import annotations

import datetime
import ipaddress
import os
import pathlib
import ssl
import subprocess
import sys

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from daemon.config import ConfigError
from daemon.tls import Certificate
from tests.e2e.daemon_process import ROOT, DaemonProcess

_PLAIN = serialization.NoEncryption()


class Pair:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.certificate = folder / "box.pem"
        self.key = folder / "box.key"
        self.renew()

    def renew(
        self, encryption: serialization.KeySerializationEncryption = _PLAIN
    ) -> x509.Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "box")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        form = serialization.PrivateFormat.PKCS8
        self.key.write_bytes(key.private_bytes(pem, form, encryption))
        self.key.chmod(0o600)
        self.certificate.write_bytes(made.public_bytes(pem))
        return made


@pytest.fixture
def pair(tmp_path: pathlib.Path) -> Pair:
    return Pair(tmp_path)


def test_https_and_nothing_else(tmp_path: pathlib.Path, pair: Pair) -> None:
    daemon = DaemonProcess(
        tmp_path / "home", HEARTH_TLS_CERT=str(pair.certificate), HEARTH_TLS_KEY=str(pair.key)
    )
    daemon.url = daemon.url.replace("http://", "https://")
    trusted = ssl.create_default_context(cafile=str(pair.certificate))
    daemon.verify = trusted
    with daemon:
        answer = httpx.get(f"{daemon.url}/api/version", verify=trusted, trust_env=False)
        assert answer.status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{daemon.url}/api/version", trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{daemon.port}/api/version", trust_env=False)
        environment = {**os.environ, "HEARTH_HOST": daemon.url}
        command = [sys.executable, "-m", "daemon", "list"]
        listed = subprocess.run(
            command,
            cwd=ROOT,
            env=environment | {"HEARTH_CA": str(pair.certificate)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert "ember" in listed.stdout
        refused = subprocess.run(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
        assert refused.returncode == 1 and "certificate" in refused.stderr


def test_a_renewed_pair_is_taken_up_and_a_broken_one_is_not(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(pair.certificate, pair.key)
    pair.renew()
    with caplog.at_level("INFO"):
        certificate.refresh()
    assert "renewed certificate is in use" in caplog.text
    pair.certificate.write_text("not a certificate")
    certificate.refresh()
    assert "old certificate stays" in caplog.text
    pair.certificate.unlink()
    certificate.refresh()
    assert caplog.text.count("old certificate stays") == 2


def test_a_key_that_needs_a_password_is_refused(pair: Pair) -> None:
    pair.renew(serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(ConfigError, match="encrypted"):
        Certificate(pair.certificate, pair.key)


def test_files_of_two_pairs_are_refused(tmp_path: pathlib.Path, pair: Pair) -> None:
    (tmp_path / "other").mkdir()
    other = Pair(tmp_path / "other")
    with pytest.raises(ConfigError, match="mismatch"):
        Certificate(pair.certificate, other.key)
    with pytest.raises(ConfigError, match="No such file"):
        Certificate(tmp_path / "none.pem", None)
