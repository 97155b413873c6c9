"""S3 over HTTP, in front of an `exastore.gateway.store.ObjectStore`."""
