"""multipart/form-data as browsers send it to upload a file, read as it arrives.

Fields come first and are small; then the file, which is handed on in pieces and never kept. What
follows the file is read and ignored, as S3 does. At most one piece of the stream is in memory.
"""

import re

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.message import RequestStream

MAX_FIELDS_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 8 * 1024
_NAME = re.compile(rb'[;\s]name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILENAME = re.compile(rb'[;\s]filename="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;",]{1,70}))', re.IGNORECASE)
_ESCAPED = re.compile(rb"\\(.)")


def boundary_of(content_type: str) -> bytes:
    """The boundary that a form's Content-Type names. Raises RequestError: MalformedPOSTRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise _malformed()
    return (found[1] or found[2]).encode("latin-1")


class FormReader:
    """Reads one form: `fields()` once, then `read()` until it gives None.

    It is a `RequestStream` of the file's bytes.
    """

    def __init__(self, stream: RequestStream, boundary: bytes) -> None:
        self._stream = stream
        self._delimiter = b"\r\n--" + boundary
        #: Received and not yet consumed. The first boundary may open the body.
        self._buffer = bytearray(b"\r\n")
        self._file_ended = False
        self.file_name = ""
        self.file_type = ""
        #: Bytes of the form that were consumed before the file.
        self.received_bytes = 0

    @property
    def started(self) -> bool:
        return self._stream.started

    async def fields(self) -> dict[str, str]:
        """The fields before the file, by lower-case name; the first of equal names wins.

        Raises:
            RequestError: MalformedPOSTRequest, MaxPostPreDataLengthExceededError, InvalidArgument
                (there is no file), IncompleteBody.
        """
        found: dict[str, str] = {}
        await self._until(self._delimiter, _MAX_HEAD_BYTES)
        left_bytes = MAX_FIELDS_BYTES
        while True:
            if await self._exactly(2) != b"\r\n":
                raise RequestError(
                    "InvalidArgument", "POST requires exactly one file upload per request."
                )
            head = await self._until(b"\r\n\r\n", _MAX_HEAD_BYTES)
            name = _header_value(_NAME, head).lower()
            if name == "file":
                self.file_name = _header_value(_FILENAME, head)
                self.file_type = _content_type(head)
                return found
            value = await self._until(self._delimiter, left_bytes)
            left_bytes -= len(value)
            try:
                found.setdefault(name, value.decode())
            except UnicodeDecodeError:
                raise RequestError("InvalidArgument", f"The field {name} is not UTF-8.") from None

    async def read(self) -> bytes | None:
        """The next piece of the file."""
        keep = len(self._delimiter) - 1
        while not self._file_ended:
            end = self._buffer.find(self._delimiter)
            if end >= 0:
                self._file_ended = True
                piece = bytes(self._buffer[:end])
                self._buffer.clear()
                while await self._stream.read() is not None:
                    pass
            else:
                piece = bytes(self._buffer[: max(0, len(self._buffer) - keep)])
                del self._buffer[: len(piece)]
            if piece:
                return piece
            if not self._file_ended:
                await self._more()
        return None

    async def _until(self, mark: bytes, limit_bytes: int) -> bytes:
        """What comes before a mark, which is consumed, too."""
        searched = 0
        while (at := self._buffer.find(mark, searched)) < 0:
            searched = max(0, len(self._buffer) - len(mark) + 1)
            if searched > limit_bytes:
                break
            await self._more()
        if at < 0 or at > limit_bytes:
            raise RequestError(
                "MaxPostPreDataLengthExceededError",
                "Your POST request fields preceding the upload file were too large.",
            )
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    async def _more(self) -> None:
        piece = await self._stream.read()
        if piece is None:
            raise RequestError("IncompleteBody", "The form ends before its last boundary.")
        self._buffer += piece
        self.received_bytes += len(piece)


def _header_value(pattern: re.Pattern[bytes], head: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-disposition:"):
            found = pattern.search(line)
            value = b"" if found is None else _ESCAPED.sub(rb"\1", found[1])
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value.decode("latin-1")
    raise _malformed()


def _content_type(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-type":
            return value.strip().decode("latin-1")
    return ""


def _malformed() -> RequestError:
    return RequestError(
        "MalformedPOSTRequest", "The body of your POST request is not well-formed form data."
    )
