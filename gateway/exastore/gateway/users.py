"""Users as gateways know them: their keys, looked up at the metadata servers and opened here."""

import logging
from collections.abc import Mapping

from exastore.gateway.errors import MasterKeyError, RequestError
from exastore.gateway.master_key import MasterKey
from exastore.gateway.metadata_client import MetadataClient
from exastore.gateway.s3.guard import RecordAct
from exastore.gateway.s3.identity import Credential, Kind, Principal
from exastore.gateway.s3.policy import parse_user_policy
from exastore.proto.v1 import access_pb2

logger = logging.getLogger(__name__)


def purpose_of(access_key: str) -> str:
    """What the secret of an access key is sealed for."""
    return f"access key {access_key}"


def resealed(master: MasterKey, key: access_pb2.AccessKey) -> access_pb2.AccessKey:
    """The access key with its secret sealed by the newest master key.

    Raises:
        MasterKeyError: It was sealed with a key that is not in the file.
    """
    purpose = purpose_of(key.id)
    secret = master.open(key.sealed_secret, purpose)
    return access_pb2.AccessKey(id=key.id, sealed_secret=master.seal(secret, purpose))


def recorder(metadata: MetadataClient) -> RecordAct:
    """Puts administrative acts into the audit log of a metadata server."""

    async def record(actor: str, action: str, target: str, details: Mapping[str, str]) -> None:
        entry = access_pb2.AuditEntry(actor=actor, action=action, target=target, details=details)
        await metadata.call_access(lambda stub: stub.RecordAct, entry)

    return record


class Users:
    """Finds the keys of users."""

    def __init__(self, metadata: MetadataClient, master_key: MasterKey) -> None:
        self._metadata = metadata
        self._master_key = master_key

    async def look_up(self, access_key: str) -> Credential | None:
        """The key's secret and user; None: there is no such key, or it does not count.

        Raises:
            ServiceError: No metadata server answers.
        """
        request = access_pb2.FindKeyRequest(id=access_key)
        try:
            user = await self._metadata.call_access(lambda stub: stub.FindKey, request)
            if user.disabled:
                return None
            sealed = user.keys[0].sealed_secret
            secret = self._master_key.open(sealed, purpose_of(access_key)).decode()
            policy = parse_user_policy(user.policy.encode()) if user.policy else None
        except RequestError as error:
            if error.code not in ("InvalidAccessKeyId", "InvalidArgument"):
                logger.error("the policy of access key %s cannot be used: %s", access_key, error)
            return None
        except MasterKeyError as error:
            logger.error("access key %s cannot be used: %s", access_key, error)
            return None
        return Credential(secret, Principal(Kind.USER, user.tenant, user.name, policy))
