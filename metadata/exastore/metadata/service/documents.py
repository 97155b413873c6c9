"""The documents of buckets: DocumentService, free of gRPC."""

from exastore.metadata.namespace import documents
from exastore.metadata.service.partitions import Partitions
from exastore.proto.v1 import documents_pb2


class DocumentService:
    """Errors are those of the namespace and the engine."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions

    async def get_documents(
        self, request: documents_pb2.GetDocumentsRequest
    ) -> documents_pb2.GetDocumentsResponse:
        found = await self._partitions.read(
            request.bucket, lambda txn: documents.get_documents(txn, request.bucket)
        )
        return documents_pb2.GetDocumentsResponse(documents=found)

    async def put_document(
        self, request: documents_pb2.PutDocumentRequest
    ) -> documents_pb2.PutDocumentResponse:
        await self._partitions.transact(
            request.bucket,
            lambda txn: documents.put_document(txn, request.bucket, request.name, request.content),
        )
        return documents_pb2.PutDocumentResponse()

    async def delete_document(
        self, request: documents_pb2.DeleteDocumentRequest
    ) -> documents_pb2.DeleteDocumentResponse:
        await self._partitions.transact(
            request.bucket,
            lambda txn: documents.delete_document(txn, request.bucket, request.name),
        )
        return documents_pb2.DeleteDocumentResponse()
