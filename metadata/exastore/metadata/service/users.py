"""Users, traffic and the audit log: AccessService, free of gRPC. All is in the first engine."""

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine
from exastore.metadata.namespace import traffic, users
from exastore.metadata.service.audit import AuditLog
from exastore.proto.v1 import access_pb2


class AccessService:
    """Errors are those of the namespace, the engine and the audit log."""

    def __init__(self, engine: Engine, clock: Clock, audit: AuditLog) -> None:
        self._engine = engine
        self._clock = clock
        self._audit = audit

    async def create_user(self, request: access_pb2.CreateUserRequest) -> access_pb2.User:
        now_s = self._clock.now_s()
        user = await self._engine.transact(lambda txn: users.create_user(txn, request.user, now_s))
        await self._audit.record(request.actor, "CreateUser", user.name, {"tenant": user.tenant})
        return user

    async def get_user(self, request: access_pb2.GetUserRequest) -> access_pb2.User:
        return await self._engine.read(lambda txn: users.get_user(txn, request.name))

    async def list_users(
        self, request: access_pb2.ListUsersRequest
    ) -> access_pb2.ListUsersResponse:
        return await self._engine.read(
            lambda txn: users.list_users(
                txn, request.tenant, request.start_after, request.max_count
            )
        )

    async def change_user(self, request: access_pb2.ChangeUserRequest) -> access_pb2.User:
        now_s = self._clock.now_s()
        user = await self._engine.transact(lambda txn: users.change_user(txn, request, now_s))
        details = {"new_key": request.new_key.id}
        if request.HasField("disabled"):
            details["disabled"] = str(request.disabled).lower()
        if request.HasField("policy"):
            details["policy"] = request.policy or "none"
        if request.resealed_key.id:
            details["resealed_key"] = request.resealed_key.id
        if request.drop_other_keys:
            details["other_keys"] = "dropped"
        await self._audit.record(request.actor, "ChangeUser", user.name, details)
        return user

    async def delete_user(
        self, request: access_pb2.DeleteUserRequest
    ) -> access_pb2.DeleteUserResponse:
        await self._engine.transact(lambda txn: users.delete_user(txn, request.name))
        await self._audit.record(request.actor, "DeleteUser", request.name)
        return access_pb2.DeleteUserResponse()

    async def find_key(self, request: access_pb2.FindKeyRequest) -> access_pb2.User:
        return await self._engine.read(lambda txn: users.find_key(txn, request.id))

    async def add_traffic(
        self, request: access_pb2.AddTrafficRequest
    ) -> access_pb2.AddTrafficResponse:
        now_s = self._clock.now_s()
        await self._engine.transact(lambda txn: traffic.add(txn, request, now_s))
        return access_pb2.AddTrafficResponse()

    async def get_traffic(
        self, request: access_pb2.GetTrafficRequest
    ) -> access_pb2.GetTrafficResponse:
        return await self._engine.read(lambda txn: traffic.read(txn, request))

    async def record_act(self, entry: access_pb2.AuditEntry) -> access_pb2.RecordActResponse:
        await self._audit.record(entry.actor, entry.action, entry.target, entry.details)
        return access_pb2.RecordActResponse()
