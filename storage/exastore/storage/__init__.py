"""Storage nodes: the chunk store on a device, rebuild, scrub, and the gRPC server over them."""
