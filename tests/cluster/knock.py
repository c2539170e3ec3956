"""Knocks at doors: what a stranger on the network finds. `knock.py ADDRESS...` prints JSON.

For each address: its open TCP ports, and what each answered to a request without credentials.
"""

import errno
import http.client
import json
import socket
import sys
from contextlib import closing

import grpc

__all__ = ["refused"]

_ANSWER_S = 60.0
_CONNECT_S = 2.0
_CALLS = {
    6379: "NodeInfoGcsService/GetAllNodeInfo",
    6700: "NodeManagerService/GetNodeStats",
    6701: "ObjectManagerService/Pull",
    6702: "ReporterService/ReportOCMetrics",
    10001: "RayletDriver/ListNamedActors",
}
_OF_WORKERS = "CoreWorkerService/GetCoreWorkerStats"
_WORKERS = range(11000, 12000)
_PAGES = {
    5000: "/api/2.0/mlflow/experiments/search?max_results=1",
    6703: "/get_or_create_runtime_env",
    7070: "/ablation",
    8265: "/api/jobs/",
    52365: "/api/job_agent/jobs/",
}


def _open_ports(address: str) -> list[int]:
    found = []
    for port in range(1, 65536):
        with socket.socket() as knocking:
            knocking.settimeout(_CONNECT_S)
            if knocking.connect_ex((address, port)) in (0, errno.EAGAIN):
                found.append(port)
    return found


def _called(address: str, port: int) -> str:
    method = _OF_WORKERS if port in _WORKERS else _CALLS[port]
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"{address}:{port}", options=options) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=_ANSWER_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "answered"


def _got(address: str, port: int) -> int:
    headers = {"Host": "mlflow:5000"} if port == 5000 else {}
    with closing(http.client.HTTPConnection(address, port, timeout=_ANSWER_S)) as asked:
        asked.request("POST" if port in (6703, 52365) else "GET", _PAGES[port], headers=headers)
        return asked.getresponse().status


def refused(answer: str | int | None) -> bool:
    """Whether an answer sent a stranger away."""
    return answer in ("UNAUTHENTICATED", 401, 403)


def _knocked(address: str, port: int) -> str | int | None:
    if port in _PAGES:
        return _got(address, port)
    return _called(address, port) if port in _CALLS or port in _WORKERS else None


if __name__ == "__main__":
    _found = {
        each: {port: _knocked(each, port) for port in _open_ports(each)} for each in sys.argv[1:]
    }
    print(json.dumps(_found))
