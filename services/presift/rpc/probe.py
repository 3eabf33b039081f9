"""`python -m presift.rpc.probe HOST:PORT`: ask grpc.health.v1 once, for a container's HEALTHCHECK.

Imports only gRPC, so that it starts fast.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main(arguments: list[str] | None = None) -> int:
    """0 if the service serves, 1 if not or if it does not answer, 2 for bad flags. Prints one line to stdout."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.ca is None and (options.cert or options.key or options.name):
        parser.error("--cert, --key and --name need --ca: without it the probe does not use TLS")
    try:
        status = health_status(options)
    except grpc.RpcError as error:
        print(f"{options.address}: {error.code().name}: {error.details()}")
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}")
        return 1
    print(f"{options.address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")
    return 0 if status == health_pb2.HealthCheckResponse.SERVING else 1


def health_status(options: argparse.Namespace) -> int:
    """The health status. Raises grpc.RpcError, and OSError for an unreadable file."""
    with _channel(options) as channel:
        request = health_pb2.HealthCheckRequest(service=options.service)
        response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=options.timeout_s)
    return int(response.status)


def _channel(options: argparse.Namespace) -> grpc.Channel:
    direct = [("grpc.enable_http_proxy", 0)]
    if options.ca is None:
        return grpc.insecure_channel(options.address, direct)
    ca, cert, key = (None if file is None else file.read_bytes() for file in (options.ca, options.cert, options.key))
    names = [("grpc.ssl_target_name_override", options.name)] if options.name else []
    return grpc.secure_channel(options.address, grpc.ssl_channel_credentials(ca, key, cert), [*direct, *names])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m presift.rpc.probe", description="Ask a service whether it serves.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="service name in grpc.health.v1; the whole server if unset")
    parser.add_argument("--timeout-s", type=float, default=3.0, help="seconds; default 3")
    parser.add_argument("--ca", type=Path, help="PEM: use TLS and trust this authority")
    parser.add_argument("--cert", type=Path, help="PEM: client certificate, for mutual TLS")
    parser.add_argument("--key", type=Path, help="PEM: key of --cert")
    parser.add_argument("--name", default="", help="name in the server's certificate, if it is not HOST")
    return parser


if __name__ == "__main__":
    sys.exit(main())
