"""gRPC options against peers that mean harm, for servers and channels alike."""

from __future__ import annotations

# Callers send a token, a trace and a tenant's name.
MAX_METADATA_BYTES = 16_384
_IDENTITY_ALONE = 1

# gRPC holds a message against its limit before it decompresses it, not after: 64 MiB of gzip may become 64 GiB. So
# nothing compressed is taken (UNIMPLEMENTED, as gRPC's specification says), nor ever unpacked.
HARDENED: tuple[tuple[str, int], ...] = (
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
    ("grpc.per_message_decompression", 0),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
)
