"""The gateway as a process would run it, without a cluster behind."""

import asyncio
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from prometheus_client import CollectorRegistry

from exastore.deploy.clock import SystemClock
from exastore.gateway.config import GatewayConfig
from exastore.gateway.s3.http import AddressInUse, BadAddress
from exastore.gateway.server import Gateway

pytestmark = pytest.mark.integration

#: Port 1 refuses connections on any machine that runs tests.
CONFIG = GatewayConfig(
    metadata=("127.0.0.1:1",), access_key="ak", secret_key="sk", metadata_deadline_s=0.2
)


def new_gateway(config: GatewayConfig = CONFIG) -> Gateway:
    return Gateway(config, clock=SystemClock(), registry=CollectorRegistry())


def fetch(url: str) -> tuple[int, bytes]:
    aws = AWSRequest("GET", url)
    S3SigV4Auth(Credentials("ak", "sk"), "s3", "us-east-1").add_auth(aws)
    headers = {name: str(value) for name, value in aws.headers.items()}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def test_a_gateway_serves_before_its_cluster_does() -> None:
    gateway = new_gateway()
    address = await gateway.start()
    try:
        healthy = await asyncio.to_thread(fetch, f"http://{address}/-/healthy")
        assert healthy == (200, b"ok\n")
        status, body = await asyncio.to_thread(fetch, f"http://{address}/bucket/key")
        assert (status, b"<Code>ServiceUnavailable</Code>" in body) == (503, True)
    finally:
        await gateway.stop()
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(fetch, f"http://{address}/-/healthy")


async def test_a_taken_port_is_named_and_nothing_is_left_behind() -> None:
    first = new_gateway()
    address = await first.start()
    config = replace(CONFIG, address=address)
    with pytest.raises(AddressInUse, match=address):
        await new_gateway(config).start()
    await first.stop()
    second = new_gateway(config)
    assert await second.start() == address
    await second.stop()


async def test_gateways_that_share_a_port_serve_side_by_side() -> None:
    first = new_gateway(replace(CONFIG, share_port=True))
    address = await first.start()
    second = new_gateway(replace(CONFIG, share_port=True, address=address))
    assert await second.start() == address
    with pytest.raises(AddressInUse, match=address):
        await new_gateway(replace(CONFIG, address=address)).start()
    await first.stop()
    assert await asyncio.to_thread(fetch, f"http://{address}/-/healthy") == (200, b"ok\n")
    await second.stop()


async def test_stopping_twice_or_before_starting_is_fine() -> None:
    gateway = new_gateway()
    await gateway.stop()
    await gateway.start()
    await gateway.stop()
    await gateway.stop()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, metadata=()), "metadata server"),
        (replace(CONFIG, secret_key=""), "secret_key"),
        (replace(CONFIG, address="localhost"), "host:port"),
        (replace(CONFIG, address="127.0.0.1:99999"), "host:port"),
    ],
)
async def test_an_incomplete_configuration_is_refused(config: GatewayConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await new_gateway(config).start()
    assert issubclass(BadAddress, ValueError)
