"""An S3 server of the tests' own, on loopback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

KEY, SECRET = "AKIATESTTESTTESTTEST", "a-secret-key-that-nothing-may-show"


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and what a process needs to reach it."""

    url: str
    endpoint: str
    environ: Mapping[str, str]


@contextmanager
def s3(bucket: str) -> Iterator[Bucket]:
    """A server that speaks S3, with one bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        httpx.put(f"{endpoint}/{bucket}").raise_for_status()
        environ = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield Bucket(f"s3://{bucket}/team", endpoint, environ)
    finally:
        server.stop()
