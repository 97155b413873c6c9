"""Analytics end to end: a Parquet data set of over 1 GB, written to the store and queried there."""

from pathlib import Path

import pytest
from tests.integration.clients.analytics import Question, ask, write
from tests.integration.clients.conftest import Bucket
from tests.integration.conftest import running_cluster

pytestmark = pytest.mark.verify

ROW_COUNT = 15_000_000


def test_three_engines_read_under_a_hundredth_of_a_gigabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    question = Question(7_120_000, 7_170_000)
    with running_cluster(tmp_path / "cluster") as cluster:
        client = cluster.client()
        client.create_bucket(Bucket="analytics")
        bucket = Bucket("analytics", cluster, client)
        found, total = write(bucket, ROW_COUNT, question)
        answers = ask(bucket, question)
    with capsys.disabled():
        print()
        for answer in answers:
            print(answer.line())
    for answer in answers:
        assert answer.held_bytes >= 1_000_000_000
        assert answer.row_count == found == 50_000
        assert answer.total == pytest.approx(total, rel=1e-9)
        assert 0 < answer.share < 0.01, answer
