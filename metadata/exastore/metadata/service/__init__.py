"""The metadata server: cluster map, liveness, repair and the namespace over gRPC."""
