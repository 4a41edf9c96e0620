"""The deployed engine: hospitals and server on machines of their own, by NVIDIA FLARE over gRPC with mutual TLS."""
