"""Logs: one line per event on stderr."""

import logging
import sys
from time import gmtime

LEVELS = ("debug", "info", "warning", "error")


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO exastore.storage.server message`, tracebacks folded in."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message} exception={self.formatException(record.exc_info)!r}"
        stamp = self.formatTime(record, self.default_time_format)
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {record.name} {message}"
        return line.replace("\n", "\\n")


def set_up_logging(level: str) -> None:
    """Send everything at `level` (one of LEVELS) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = LineFormatter()
    formatter.converter = gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("asyncio", "numba", "botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
