"""A page in a browser: what applications do with URLs that their server signed for them."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright
from tests.integration.clients.conftest import Bucket, some_bytes
from tests.support.programs import program

pytestmark = pytest.mark.integration

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

_PUT = """async ([url, size]) => {
    const body = new Uint8Array(size).map((_, index) => index % 251);
    const answer = await fetch(url, {method: "PUT", body});
    return [answer.status, answer.headers.get("etag")];
}"""

_GET = """async url => {
    const answer = await fetch(url);
    return [answer.status, await answer.text(), answer.headers.get("x-amz-meta-color")];
}"""


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    executable = program("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield launched.new_page()
        launched.close()


@pytest.fixture
def page(browser_page: Page, bucket: Bucket) -> Page:
    """A page of the gateway's own origin."""
    browser_page.goto(f"{bucket.endpoint}/-/healthy")
    return browser_page


def test_a_page_puts_and_gets_with_presigned_urls(bucket: Bucket, page: Page) -> None:
    where = {"Bucket": bucket.name, "Key": "from a page+1.bin"}
    put = bucket.s3.generate_presigned_url("put_object", Params=where)
    status, etag = page.evaluate(_PUT, [put, 100_000])
    assert status == 200
    assert bucket.get(where["Key"]) == bytes(index % 251 for index in range(100_000))
    assert etag == bucket.s3.head_object(**where)["ETag"]
    bucket.put("text", b"r\xc3\xa4ksm\xc3\xb6rg\xc3\xa5s")
    get = bucket.s3.generate_presigned_url("get_object", Params={**where, "Key": "text"})
    assert page.evaluate(_GET, get)[:2] == [200, "räksmörgås"]
    stale = get.replace("X-Amz-Signature=", "X-Amz-Signature=0")
    assert page.evaluate(_GET, stale)[0] == 403


def test_a_page_downloads_under_the_name_that_was_signed(bucket: Bucket, page: Page) -> None:
    data = some_bytes(200_000, 4)
    bucket.put("stored", data)
    url = bucket.s3.generate_presigned_url(
        "get_object",
        Params={
            "Bucket": bucket.name,
            "Key": "stored",
            "ResponseContentDisposition": 'attachment; filename="report.bin"',
        },
    )
    with page.expect_download() as expected:
        page.evaluate("url => { location.href = url }", url)
    assert expected.value.suggested_filename == "report.bin"
    assert expected.value.path().read_bytes() == data
