"""Server-side encryption as S3 speaks of it: SSE-S3, SSE-C, and the default of a bucket."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from xml.etree.ElementTree import SubElement

from exastore.gateway.encryption.envelopes import (
    ALGORITHM,
    KEY_BYTES,
    open_with_customer,
    open_with_master,
    seal_for_customer,
    seal_for_master,
)
from exastore.gateway.encryption.streams import OpenedReader, SealedBody
from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.bucket_access import ENCRYPTION, change_document
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.message import Response
from exastore.gateway.store import (
    Body,
    Encryption,
    ObjectAttributes,
    ObjectInfo,
    ObjectReader,
    UploadInfo,
)

HEADER = "x-amz-server-side-encryption"
CUSTOMER = "x-amz-server-side-encryption-customer-"
COPY_SOURCE = "x-amz-copy-source-server-side-encryption-customer-"


@dataclass(frozen=True, slots=True)
class CustomerKey:
    """The key that a client sends with a request."""

    key: bytes
    md5: str
    """In base64, as sent."""


@dataclass(frozen=True, slots=True)
class Sealing:
    """How a request's bytes are to be stored."""

    data_key: bytes | None = None
    encryption: Encryption | None = None

    def body(self, body: Body, part_number: int = 0) -> Body:
        """The body as it is to be stored."""
        if self.data_key is None or self.encryption is None:
            return body
        plain_etag = not self.encryption.customer_key_md5
        return SealedBody(body, self.data_key, part_number=part_number, plain_etag=plain_etag)

    def attributes(self, attributes: ObjectAttributes) -> ObjectAttributes:
        """The attributes with the envelope."""
        if self.encryption is None:
            return attributes
        return replace(attributes, encryption=self.encryption)

    @property
    def headers(self) -> dict[str, str]:
        """What the answer to the write says of it."""
        return encryption_headers(self.encryption)


_IN_THE_CLEAR = Sealing()


def encryption_headers(encryption: Encryption | None) -> dict[str, str]:
    """The headers that say how an object is stored."""
    if encryption is None:
        return {}
    if not encryption.customer_key_md5:
        return {HEADER: encryption.algorithm}
    return {
        CUSTOMER + "algorithm": encryption.algorithm,
        CUSTOMER + "key-MD5": encryption.customer_key_md5,
    }


def customer_key_of(headers: Mapping[str, str], prefix: str = CUSTOMER) -> CustomerKey | None:
    """The key that a client sent; None when it sent none.

    Raises:
        RequestError: InvalidEncryptionAlgorithmError, InvalidArgument.
    """
    algorithm = headers.get(prefix + "algorithm")
    encoded, md5 = headers.get(prefix + "key"), headers.get(prefix + "key-md5")
    if algorithm is None and encoded is None and md5 is None:
        return None
    if algorithm is None:
        raise _invalid("a valid encryption algorithm")
    if algorithm != ALGORITHM:
        raise RequestError(
            "InvalidEncryptionAlgorithmError",
            "The encryption request you specified is not valid. Supported value: AES256.",
        )
    if encoded is None:
        raise _invalid("an appropriate secret key")
    if md5 is None:
        raise _invalid("the client calculated MD5 of the secret key")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise RequestError(
            "InvalidArgument", "The secret key was invalid for the specified algorithm."
        )
    if base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode() != md5:
        raise RequestError(
            "InvalidArgument",
            "The calculated MD5 hash of the key did not match the hash that was provided.",
        )
    return CustomerKey(key, md5)


def _invalid(what: str) -> RequestError:
    return RequestError(
        "InvalidArgument",
        "Requests specifying Server Side Encryption with Customer provided keys must provide "
        f"{what}.",
    )


async def sealing_of(call: Call) -> Sealing:
    """How a new object is to be stored: as the request says, else as the bucket does.

    Raises:
        RequestError: InvalidArgument, InvalidEncryptionAlgorithmError, NotImplemented.
    """
    headers = call.request.headers
    customer_key, asked = customer_key_of(headers), headers.get(HEADER)
    if customer_key is not None:
        if asked is not None:
            raise RequestError(
                "InvalidArgument",
                "Server Side Encryption with Customer provided key is incompatible with the "
                "encryption method specified",
            )
        return Sealing(*seal_for_customer(customer_key.key, customer_key.md5))
    if asked is None and call.master_key is not None:
        bucket = await call.guard.buckets.get(call.bucket)
        asked = None if bucket.encryption is None else bucket.encryption.decode()
    if asked is None:
        return _IN_THE_CLEAR
    _check_algorithm(asked, "InvalidArgument")
    if call.master_key is None:
        raise RequestError(
            "NotImplemented", "This gateway has no master key, so it cannot encrypt with its own."
        )
    return Sealing(*seal_for_master(call.master_key))


def _check_algorithm(name: str, code: str) -> None:
    if name in ("aws:kms", "aws:kms:dsse"):
        raise RequestError("NotImplemented", f"Encryption with {name} is not implemented.")
    if name != ALGORITHM:
        raise RequestError(code, "The encryption method specified is not supported")


def sealing_of_part(call: Call, upload: UploadInfo) -> Sealing:
    """How a part is to be stored: as its upload was begun.

    Raises:
        RequestError: InvalidRequest, InvalidArgument.
    """
    customer_key = customer_key_of(call.request.headers)
    encryption = upload.attributes.encryption
    if encryption is None or not encryption.customer_key_md5:
        if customer_key is not None:
            raise RequestError(
                "InvalidRequest",
                "The multipart upload initiate did not request encryption. Please resend the "
                "request without encryption parameters.",
            )
        if encryption is None:
            return _IN_THE_CLEAR
        return Sealing(_open_with_master(call, encryption), encryption)
    if customer_key is None:
        raise RequestError(
            "InvalidRequest",
            "The multipart upload initiate requested encryption. Subsequent part requests must "
            "include the appropriate encryption parameters.",
        )
    data_key = open_with_customer(customer_key.key, encryption)
    if data_key is None:
        raise RequestError(
            "InvalidRequest",
            "The provided encryption parameters did not match the ones used originally.",
        )
    return Sealing(data_key, encryption)


def _open_with_master(call: Call, encryption: Encryption) -> bytes:
    if call.master_key is None:
        raise RequestError(
            "ServiceUnavailable", "The object is encrypted, and this gateway has no master key."
        )
    return open_with_master(call.master_key, encryption)


def data_key_of(call: Call, info: ObjectInfo, prefix: str = CUSTOMER) -> bytes | None:
    """The key that opens an object; None when it is stored in the clear.

    Raises:
        RequestError: InvalidRequest when the client's key is missing or is not wanted, AccessDenied
            when it is another.
    """
    headers, encryption = call.request.headers, info.attributes.encryption
    if prefix == CUSTOMER and HEADER in headers:
        raise RequestError(
            "InvalidArgument", f"{HEADER} header is not supported for this operation."
        )
    customer_key = customer_key_of(headers, prefix)
    if encryption is None or not encryption.customer_key_md5:
        if customer_key is not None:
            raise RequestError(
                "InvalidRequest", "The encryption parameters are not applicable to this object."
            )
        return None if encryption is None else _open_with_master(call, encryption)
    if customer_key is None:
        raise RequestError(
            "InvalidRequest",
            "The object was stored using a form of Server Side Encryption. The correct parameters "
            "must be provided to retrieve the object.",
        )
    data_key = open_with_customer(customer_key.key, encryption)
    if data_key is None:
        raise RequestError("AccessDenied", "Access Denied")
    return data_key


def opened(call: Call, reader: ObjectReader, prefix: str = CUSTOMER) -> ObjectReader:
    """The object in the clear. Raises as `data_key_of`."""
    data_key = data_key_of(call, reader.info, prefix)
    return reader if data_key is None else OpenedReader(reader, data_key)


# ---- the default of a bucket ----


async def put_bucket_encryption(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "ServerSideEncryptionConfiguration")
    algorithms = [
        (element.text or "").strip()
        for element in root.findall("Rule/ApplyServerSideEncryptionByDefault/SSEAlgorithm")
    ]
    if len(algorithms) != 1 or len(root.findall("Rule")) != 1:
        raise xml.malformed()
    _check_algorithm(algorithms[0], "MalformedXML")
    await call.store.get_bucket(call.bucket)
    await change_document(call.store, call.bucket, ENCRYPTION, ALGORITHM.encode())
    call.guard.buckets.forget(call.bucket)
    return Response(200)


async def get_bucket_encryption(call: Call) -> Response:
    await call.store.get_bucket(call.bucket)
    document = await call.store.get_bucket_document(call.bucket, ENCRYPTION)
    if document is None:
        raise RequestError(
            "ServerSideEncryptionConfigurationNotFoundError",
            "The server side encryption configuration was not found",
        )
    root = xml.document("ServerSideEncryptionConfiguration")
    rule = SubElement(root, "Rule")
    default = SubElement(rule, "ApplyServerSideEncryptionByDefault")
    xml.add(default, "SSEAlgorithm", document.decode())
    xml.add(rule, "BucketKeyEnabled", False)
    return xml.xml_response(root)


async def delete_bucket_encryption(call: Call) -> Response:
    await call.store.get_bucket(call.bucket)
    await change_document(call.store, call.bucket, ENCRYPTION, None)
    call.guard.buckets.forget(call.bucket)
    return Response(204)


ENCRYPTION_OPERATIONS: dict[str, Operation] = {
    "PutBucketEncryption": put_bucket_encryption,
    "GetBucketEncryption": get_bucket_encryption,
    "DeleteBucketEncryption": delete_bucket_encryption,
}
