"""gRPC options against peers that mean harm, for servers and channels alike."""

from __future__ import annotations

# Callers send a token, a trace and a tenant's name.
MAX_METADATA_BYTES = 16_384
_IDENTITY_ALONE = 1

# gRPC unpacks a message whole before it holds it against its limit (1.81: 256 MiB of a quarter of one, then the
# refusal), and 64 MiB of gzip may hold 64 GiB. So nothing compressed is taken (UNIMPLEMENTED, as gRPC's specification
# says), nor ever unpacked.
HARDENED: tuple[tuple[str, int], ...] = (
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
    ("grpc.per_message_decompression", 0),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
)
