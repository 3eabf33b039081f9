"""gRPC options against malicious peers, for servers and channels."""

from __future__ import annotations

# Enough for a token, a trace and a tenant's name.
MAX_METADATA_BYTES = 16_384
_IDENTITY_ALONE = 1

# gRPC decompresses a whole message before it checks the size limit (1.81: a 0.25 MiB message took 256 MiB before it was
# refused), and 34 MiB of gzip can contain 34 GiB. So compressed messages are refused with UNIMPLEMENTED, as gRPC's
# specification says, and never decompressed.
HARDENED: tuple[tuple[str, int], ...] = (
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
    ("grpc.per_message_decompression", 0),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
)
