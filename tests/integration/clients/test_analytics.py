"""Parquet straight on the store: three engines read a small part of it and agree."""

import pytest
from tests.integration.clients.analytics import Question, ask, write
from tests.integration.clients.conftest import MIB, Bucket

pytestmark = pytest.mark.integration


def test_engines_push_predicates_down_to_a_small_part_of_a_data_set(bucket: Bucket) -> None:
    question = Question(121_000, 123_000)
    found, total = write(bucket, 300_000, question)
    for answer in ask(bucket, question):
        print(answer.line())
        assert answer.held_bytes > 18 * MIB
        assert answer.row_count == found == 2_000
        assert answer.total == pytest.approx(total, rel=1e-9)
        assert 0 < answer.share < 0.1, answer
