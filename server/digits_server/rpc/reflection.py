"""Server reflection: v1, and v1alpha for older tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

V1 = "grpc.reflection.v1.ServerReflection"


def add_to_server(names: Sequence[str], server: Any) -> None:
    """Add both versions, which tell of the services named and of themselves.

    The two have the same messages but for the package, which is not on the wire; grpcio ships the older ones only.
    """
    services = (V1, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer([*names, *services])
    handlers = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            ServerReflectionRequest.FromString,
            ServerReflectionResponse.SerializeToString,
        )
    }
    for service in services:
        server.add_registered_method_handlers(service, handlers)
