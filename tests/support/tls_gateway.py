"""A gateway over TLS with buckets as host names, and the name service that clients need for it.

Clients reach `BUCKET.s3.test` through a proxy of their environment, which knows one address for all
names. What is encrypted stays so through it: the clients check the gateway's certificate.
"""

import json
import socket
import socketserver
import threading
import tomllib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.integration.conftest import EXASTORE, wait_until

from exastore.deploy.config import render_table

DOMAIN = "s3.test"
ENDPOINT = f"https://{DOMAIN}"


@dataclass(frozen=True)
class TlsGateway:
    """How clients reach it."""

    proxy: str
    """URL of the proxy that knows its names."""
    authority: Path
    """PEM file of the certificate authority."""

    @property
    def environment(self) -> dict[str, str]:
        """For programs."""
        return {
            "HTTPS_PROXY": self.proxy,
            "https_proxy": self.proxy,
            "NO_PROXY": "",
            "no_proxy": "",
            "AWS_CA_BUNDLE": str(self.authority),
            "SSL_CERT_FILE": str(self.authority),
        }


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority, and a certificate of `DOMAIN` and all below it with its key; their files."""
    now = datetime.now(UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "exastore tests")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName(DOMAIN), x509.DNSName(f"*.{DOMAIN}")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DOMAIN)])
    certificate = (
        _builder(subject, authority_name, key.public_key(), now)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files = folder / "authority.pem", folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(authority.public_bytes(pem))
    files[1].write_bytes(certificate.public_bytes(pem))
    files[2].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


class _Tunnel(socketserver.StreamRequestHandler):
    """Answers CONNECT for any name below the domain with one address."""

    def handle(self) -> None:
        line = self.rfile.readline().decode("latin-1").split()
        while self.rfile.readline().strip():
            pass
        name = line[1].rpartition(":")[0] if len(line) == 3 else ""
        if line[0] != "CONNECT" or not f".{name}".endswith(f".{DOMAIN}"):
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        server = cast(_Proxy, self.server)
        with socket.create_connection(server.target) as upstream:
            server.names.add(name)
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(upstream, self.connection))
            back.start()
            _copy(self.connection, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _Proxy(socketserver.ThreadingTCPServer):
    """A proxy that remembers which names it was asked for."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.target = target
        self.names = set[str]()


@contextmanager
def proxy_to(address: str) -> Generator[tuple[str, set[str]]]:
    """A proxy for all names below the domain; gives its URL and the names asked for."""
    host, _, port = address.rpartition(":")
    with _Proxy((host, int(port))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.names
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def tls_gateway_of(cluster: Path, folder: Path) -> Generator[tuple[TlsGateway, set[str]]]:
    """One more gateway of a running local cluster: over TLS, with host names for buckets."""
    authority, certificate, key = make_certificates(folder)
    config = tomllib.loads((cluster / "conf" / "gateway.toml").read_text())
    ready = folder / "ready.json"
    values = {
        **config["gateway"],
        "address": "127.0.0.1:0",
        "share_port": False,
        "domain": DOMAIN,
        "tls_certificate": str(certificate),
        "tls_key": str(key),
    }
    process = {"ready_file": str(ready), "metrics_address": "127.0.0.1:0"}
    file = folder / "gateway.toml"
    file.write_text(f"{render_table('process', process)}\n{render_table('gateway', values)}")
    with (folder / "log").open("wb") as log:
        command = [*EXASTORE, "gateway", "run", "--config", str(file)]
        with Popen(command, stdout=log, stderr=log) as running:
            try:
                wait_until(lambda: ready.exists() or running.poll() is not None, "the gateway")
                assert running.poll() is None, (folder / "log").read_text()
                address = json.loads(ready.read_text())["address"]
                with proxy_to(address) as (proxy, names):
                    yield TlsGateway(proxy, authority), names
            finally:
                running.terminate()
