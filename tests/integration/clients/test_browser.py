"""A page in a browser: what applications do with URLs that their server signed for them."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Error, Page, sync_playwright
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


_POST = """async ([url, fields, text]) => {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("file", new Blob([text], {type: "text/plain"}), "chosen.txt");
    const answer = await fetch(url, {method: "POST", body: form});
    return [answer.status, await answer.text()];
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


# ---- a page of another origin ----


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Tests have no access log."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server of an application: its pages are of another origin than the store."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "index.html").write_text("<!doctype html><title>An application</title>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def foreign_page(browser_page: Page, origin: str) -> Page:
    browser_page.goto(f"{origin}/index.html")
    return browser_page


def allow(bucket: Bucket, origin: str) -> None:
    """Let pages of this origin read and write, and see the ETag."""
    rule: dict[str, Any] = {
        "AllowedOrigins": [origin],
        "AllowedMethods": ["GET", "PUT", "POST"],
        "AllowedHeaders": ["*"],
        "ExposeHeaders": ["ETag", "x-amz-meta-color"],
    }
    bucket.s3.put_bucket_cors(Bucket=bucket.name, CORSConfiguration={"CORSRules": [rule]})


def test_pages_of_other_origins_need_a_cors_rule(
    bucket: Bucket, foreign_page: Page, origin: str
) -> None:
    bucket.s3.put_object(Bucket=bucket.name, Key="text", Body=b"hello", Metadata={"color": "blue"})
    where = {"Bucket": bucket.name, "Key": "text"}
    get = bucket.s3.generate_presigned_url("get_object", Params=where)
    with pytest.raises(Error, match="Failed to fetch"):
        foreign_page.evaluate(_GET, get)
    allow(bucket, origin)
    assert foreign_page.evaluate(_GET, get) == [200, "hello", "blue"]
    put = bucket.s3.generate_presigned_url("put_object", Params={**where, "Key": "put"})
    status, etag = foreign_page.evaluate(_PUT, [put, 1_000])
    assert (status, etag) == (200, bucket.s3.head_object(Bucket=bucket.name, Key="put")["ETag"])
    bucket.s3.delete_bucket_cors(Bucket=bucket.name)
    with pytest.raises(Error, match="Failed to fetch"):
        foreign_page.evaluate(_PUT, [put, 2_000])


def test_a_form_with_a_policy_uploads_a_file(
    bucket: Bucket, foreign_page: Page, origin: str
) -> None:
    allow(bucket, origin)
    form = bucket.s3.generate_presigned_post(
        bucket.name,
        "uploads/${filename}",
        Fields={"success_action_status": "201", "x-amz-meta-color": "blue"},
        Conditions=[
            {"success_action_status": "201"},
            {"x-amz-meta-color": "blue"},
            ["content-length-range", 1, 1_000],
        ],
    )
    text = "a line of text\n" * 20
    status, answer = foreign_page.evaluate(_POST, [form["url"], form["fields"], text])
    assert status == 201, answer
    assert "<Key>uploads/chosen.txt</Key>" in answer
    stored = bucket.s3.get_object(Bucket=bucket.name, Key="uploads/chosen.txt")
    assert (stored["Body"].read().decode(), stored["Metadata"]) == (text, {"color": "blue"})
    refused, answer = foreign_page.evaluate(_POST, [form["url"], form["fields"], 100 * text])
    assert refused == 400
    assert "<Code>EntityTooLarge</Code>" in answer
    assert bucket.keys == ["uploads/chosen.txt"]
