"""A configuration of Envoy before several servers, as `kleinserve envoy-config` prints it.

In JSON, which is YAML too. What each setting is for, and what was measured without it: docs/OPERATIONS.md.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from kleinserve.errors import BadConfig, quoted

KEY_HEADER = "klein-idempotency-key"
REQUEST_BYTES = 44 * 1024 * 1024 + 5  # the server's `request_bytes_max` by default, and gRPC's frame around it
_EXPOSED = "grpc-status,grpc-message,grpc-status-details-bin,grpc-retry-pushback-ms,klein-request-id"
_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_TYPES}.filters.http"
_POLICIES = f"{_TYPES}.load_balancing_policies"


def main(
    replicas: Sequence[str],
    port: int,
    tls_certificate: str | None,
    tls_key: str | None,
    origins: Sequence[str] = (),
) -> int:
    """Print it. Raises: BadConfig.

    `replicas`: HOST:PORT of each; a name that has several addresses is several servers. `origins`: pages whose scripts
    may call.
    """
    if bool(tls_certificate) != bool(tls_key):
        raise BadConfig("--tls-certificate and --tls-key are needed together")
    certificate = (tls_certificate, tls_key) if tls_certificate and tls_key else None
    json.dump(configuration([_address(each) for each in replicas], port, certificate, origins), sys.stdout, indent=2)
    print()
    return 0


def configuration(
    replicas: Sequence[tuple[str, int]],
    port: int,
    certificate: tuple[str, str] | None = None,
    origins: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole bootstrap."""
    clusters = [_cluster("servers", replicas, _least_request()), _cluster("owners", replicas, _ring_hash())]
    return {"static_resources": {"listeners": [_listener(port, certificate, origins)], "clusters": clusters}}


def _address(replica: str) -> tuple[str, int]:
    """Raises: BadConfig."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\s/\[\]]+)):(\d{1,5})", replica)
    if found is None or not 0 < int(found[3]) < 65536:
        raise BadConfig(f"--replica {quoted(replica)} is not HOST:PORT")
    return found[1] or found[2], int(found[3])


def _listener(port: int, certificate: tuple[str, str] | None, origins: Sequence[str]) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "klein",
        "codec_type": "AUTO",  # HTTP/2, and HTTP/1.1 for gRPC-Web
        "http2_protocol_options": {"max_concurrent_streams": 1024},
        "stream_idle_timeout": "300s",  # a stream says something every 10 s
        "route_config": {"name": "klein", "virtual_hosts": [_host(origins)]},
        "http_filters": [
            {"name": "grpc_web", "typed_config": {"@type": f"{_HTTP}.grpc_web.v3.GrpcWeb"}},
            {"name": "cors", "typed_config": {"@type": f"{_HTTP}.cors.v3.Cors"}},
            {"name": "router", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}},
        ],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if certificate is not None:
        chain["transport_socket"] = _tls(*certificate)
    return {"name": "klein", "address": _socket("0.0.0.0", port), "filter_chains": [chain]}


def _tls(certificate: str, key: str) -> dict[str, Any]:
    context = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}],
    }
    kind = f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": context}}


def _host(origins: Sequence[str]) -> dict[str, Any]:
    cors = {
        "@type": f"{_HTTP}.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "POST",
        "allow_headers": "*",
        "expose_headers": _EXPOSED,
        "max_age": "600",
    }
    keyed = {
        "match": {"prefix": "/", "headers": [{"name": KEY_HEADER, "present_match": True}]},
        "route": _route("owners") | {"hash_policy": [{"header": {"header_name": KEY_HEADER}}]},
    }
    other = {"match": {"prefix": "/"}, "route": _route("servers")}
    return {
        "name": "klein",
        "domains": ["*"],
        "routes": [keyed, other],
        "request_body_buffer_limit": REQUEST_BYTES,  # kept to be sent again; what is longer is not tried again
        "typed_per_filter_config": {"cors": cors},
    }


def _route(cluster: str) -> dict[str, Any]:
    """No timeout; tried on another server where one refuses before its first event."""
    another = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    retries = {
        "retry_on": "unavailable,connect-failure,refused-stream",
        "num_retries": 3,
        "retry_host_predicate": [{"name": "another", "typed_config": {"@type": another}}],
        "host_selection_retry_max_attempts": 5,
    }
    return {"cluster": cluster, "timeout": "0s", "retry_policy": retries}


def _cluster(name: str, replicas: Sequence[tuple[str, int]], policy: dict[str, Any]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _socket(host, port)}} for host, port in replicas]
    http2 = {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}  # a server permits a ping in 10 s
    protocol = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "ignore_health_on_host_removal": True,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [_health()],
        "circuit_breakers": {
            "thresholds": [{"max_requests": 100_000, "max_pending_requests": 10_000, "max_retries": 1000}]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": protocol,
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        },
    }


def _health() -> dict[str, Any]:
    """NOT_SERVING counts at once; a refused connection or no answer the third time, since a busy server may be late and
    the last one that is left must not be given up."""
    often = dict.fromkeys(("interval", "no_traffic_interval", "unhealthy_interval"), "0.5s")
    thresholds = {"timeout": "2s", "healthy_threshold": 1, "unhealthy_threshold": 3}
    return often | thresholds | {"grpc_health_check": {}}


def _least_request() -> dict[str, Any]:
    kind = f"{_POLICIES}.least_request.v3.LeastRequest"
    return {"name": "least_request", "typed_config": {"@type": kind, "selection_method": "FULL_SCAN"}}


def _ring_hash() -> dict[str, Any]:
    """The same key goes to the same server, unless that one has a quarter more requests than the mean."""
    config = {"hash_balance_factor": 125}
    kind = f"{_POLICIES}.ring_hash.v3.RingHash"
    return {"name": "ring_hash", "typed_config": {"@type": kind, "consistent_hashing_lb_config": config}}


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
