"""The version of this build."""

from importlib import metadata


def version() -> str:
    """The version of the installed distribution, for example "0.1.0"."""
    try:
        return metadata.version("exastore")
    except metadata.PackageNotFoundError:
        return "unknown"
