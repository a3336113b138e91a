"""How both clients speak gRPC: where to, and with which channel settings."""

from importlib.metadata import version

DEFAULT_TARGET = "127.0.0.1:50051"
UNARY_SECONDS = 30.0  # for calls that make no image and have no deadline of their own

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.primary_user_agent", f"kleinclient/{version('klein-serve')}"),
    # 44 MiB is what a server takes by default: 4 references of 10 MiB and the rest. Larger fails here, before the wire.
    ("grpc.max_send_message_length", 44 * 1024 * 1024),
    # A dead connection is noticed within half a minute. The server permits one ping in 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Bounds one connection attempt too, so that an address that swallows packets is an error after 5 s, not 20.
    ("grpc.min_reconnect_backoff_ms", 5_000),
]
