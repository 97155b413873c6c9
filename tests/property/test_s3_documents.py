"""Documents of clients: rules survive being written and read, and what is wrong is only refused."""

from xml.etree.ElementTree import Element, SubElement, tostring

from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.lifecycle import add_rule, parse_lifecycle
from exastore.gateway.s3.tagging import parse_tagging
from exastore.gateway.store import LifecycleRule

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
NAMES = WORDS.filter(bool)
DAYS = st.integers(1, 2**31 - 1)

NAMES_OF_ELEMENTS = [
    *("LifecycleConfiguration", "Rule", "ID", "Status", "Prefix", "Filter", "And", "Tag", "Key"),
    *("Value", "Expiration", "Days", "Date", "ExpiredObjectDeleteMarker", "TagSet", "Tagging"),
    *("NoncurrentVersionExpiration", "NoncurrentDays", "NewerNoncurrentVersions"),
    *("AbortIncompleteMultipartUpload", "DaysAfterInitiation", "ObjectSizeGreaterThan"),
]
TEXTS = st.sampled_from(
    ["", "Enabled", "Disabled", "1", "0", "-1", "9" * 30, "true", "x", "2040-01-01T00:00:00Z", "٣"]
)


@st.composite
def rules(draw: st.DrawFn, rule_id: str) -> LifecycleRule:
    """A rule that S3 takes."""
    tags = draw(st.dictionaries(NAMES, WORDS, max_size=3))
    larger = draw(st.one_of(st.none(), st.integers(0, 99)))
    smaller = draw(st.sampled_from([0, 1000]))
    is_plain = larger is None and not (tags or smaller)
    kinds = ["days", "date", "marker", "none"] if is_plain else ["days", "date"]
    kind = draw(st.sampled_from(kinds))
    noncurrent = draw(DAYS) if kind == "none" else draw(st.one_of(st.just(0), DAYS))
    return LifecycleRule(
        rule_id,
        disabled=draw(st.booleans()),
        prefix=draw(WORDS),
        legacy_prefix=is_plain and draw(st.booleans()),
        tags=tags,
        larger_than_bytes=larger,
        smaller_than_bytes=smaller,
        expire_days=draw(DAYS) if kind == "days" else 0,
        expire_at_s=86_400.0 * draw(st.integers(1, 50_000)) if kind == "date" else 0.0,
        noncurrent_days=noncurrent,
        newer_noncurrent_count=draw(st.integers(0, 100)) if noncurrent else 0,
        abort_upload_days=draw(st.one_of(st.just(0), DAYS)) if is_plain else 0,
        drop_lone_markers=kind == "marker",
    )


@settings(max_examples=60)
@given(st.data())
def test_rules_are_shown_as_they_were_given(data: st.DataObject) -> None:
    ids = data.draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    wanted = [data.draw(rules(rule_id)) for rule_id in ids]
    root = xml.document("LifecycleConfiguration")
    for rule in wanted:
        add_rule(root, rule)
    assert parse_lifecycle(xml.render(root)) == wanted


def trees(root: str) -> st.SearchStrategy[Element]:
    """Documents of elements that S3 knows, put together wrongly."""

    def grown(drawn: tuple[list[int], list[str], list[str]]) -> Element:
        parents, names, texts = drawn
        elements = [Element(root)]
        for parent, name, text in zip(parents, names, texts, strict=False):
            child = SubElement(elements[parent % len(elements)], name)
            child.text = text
            elements.append(child)
        return elements[0]

    return st.tuples(
        st.lists(st.integers(0, 30), max_size=14),
        st.lists(st.sampled_from(NAMES_OF_ELEMENTS), max_size=14),
        st.lists(TEXTS, max_size=14),
    ).map(grown)


@settings(max_examples=150)
@given(trees("LifecycleConfiguration"), trees("Tagging"))
def test_whatever_is_sent_is_taken_or_refused(lifecycle: Element, tagging: Element) -> None:
    for parse in (
        lambda: parse_lifecycle(tostring(lifecycle)),
        lambda: parse_tagging(tostring(tagging), 10),
    ):
        try:
            parse()
        except RequestError as error:
            assert error.code in (
                *("MalformedXML", "InvalidArgument", "InvalidRequest", "NotImplemented"),
                *("InvalidTag", "BadRequest"),
            )
