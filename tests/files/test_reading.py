"""Laws of reading: a value of the type that was asked for, or one message with file and place."""

import hashlib
import json
import os
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spad.files import (
    file_hash,
    inside,
    json_text,
    parse_json,
    read_bytes,
    read_ids,
    read_json,
    read_json_lines,
    read_lines,
    read_text,
    short,
)
from spad.files.reading import DEEPEST

BOM = b"\xef\xbb\xbf"
ENDLESS = Path("/dev/zero")


@dataclass(frozen=True)
class Frame:
    name: str
    matrix: list[list[float]]


@dataclass(frozen=True)
class Row:
    uid: str
    captions: tuple[str, ...]
    size: tuple[int, int] | None = None
    share: float = 0.5
    kind: Literal["views", "text"] = "views"
    frames: tuple[Frame, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    count: int | str = 0

    def __post_init__(self) -> None:
        if self.share < 0:
            raise ValueError(f"expected share of at least 0, got {self.share}")


@dataclass(frozen=True)
class Open:
    uid: str
    rest: dict[str, Any] = field(default_factory=dict)


def parsed(text: str, kind: Any = Any) -> Any:
    return parse_json(text.encode(), kind, "a.json")


@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_byte_order_mark_changes_nothing(tmp_path, mark):
    path = tmp_path / "a.json"
    path.write_bytes(mark + b'{"uid": "\xc3\xa9"}\n')
    assert read_json(path, dict) == {"uid": "é"}
    assert [row for _, row in read_json_lines(path, dict)] == [{"uid": "é"}]
    assert read_text(path) == '{"uid": "é"}\n'
    assert [line for _, line in read_lines(path)] == ['{"uid": "é"}']


@pytest.mark.parametrize("read", [read_text, read_ids, lambda path: read_json(path, dict)])
@pytest.mark.parametrize("data", ["é".encode("utf-16"), "é".encode("latin-1"), b"\x80"])
def test_other_encodings_are_refused_with_the_file(tmp_path, read, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.txt.*: expected text in UTF-8, got other bytes"):
        read(path)


def test_a_line_of_other_bytes_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{}\n{"uid": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: expected text in UTF-8"):
        list(read_json_lines(path, dict))


@pytest.mark.parametrize("read", [read_bytes, read_text, read_ids])
def test_what_cannot_be_opened_is_named(tmp_path, read):
    for path in (tmp_path / "missing", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match=f"{path.name}: expected a readable file"):
            read(path)


@pytest.mark.skipif(not ENDLESS.exists(), reason="this machine has no endless file")
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_bytes(path, most=1 << 20),
        lambda path: read_text(path, most=1 << 20),
        lambda path: read_json(path, dict, most=1 << 20),
        lambda path: list(read_lines(path)),
        lambda path: list(read_json_lines(path, dict)),
    ],
)
def test_endless_files_are_refused_in_little_memory(read):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="/dev/zero.*: expected at most .* MB, got more"):
            read(ENDLESS)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_files_are_read_up_to_their_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(ValueError, match="a: expected at most"):
        read_bytes(path, most=4)


@pytest.mark.parametrize(
    "text, got",
    [
        ("", "got none"),
        ("  \n", "got none"),
        ('{"a": 1', r"other text in line 1, column 8"),
        ('{"a":\n ?}', r"other text in line 2, column 2"),
        ('{"a": 1, "b": {"c": 2, "c": 2}}', "'c' twice in one object"),
        ("[" + "9" * 5000 + "]", "digits"),
        (r'["\ud800"]', "half of a surrogate pair"),
        ("[" * 100_000, "levels or less, got more"),
        ("[" * 100_000 + "]" * 100_000, "levels or less, got more"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "levels or less, got more"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text, got):
    with pytest.raises(ValueError, match=f"^a.json: expected JSON.*{got}"):
        parsed(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, NaN]", r"expected \[1\] to be finite, got NaN"),
        ('{"a": {"b": [-Infinity]}}', r"expected a.b\[0\] to be finite, got -Infinity"),
        ('{"a": 1e400}', "expected a to be finite, got 1e400"),
        ("[NaN, ?]", "expected every number to be finite, got NaN"),
        ('{"a": NaN, "a": 1}', "expected every number to be finite, got NaN"),
    ],
)
def test_numbers_that_are_not_finite_are_named(text, message):
    with pytest.raises(ValueError, match=f"^a.json: {message}$"):
        parsed(text)


def test_json_of_the_deepest_level_is_read():
    text = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parsed(text)) == text
    assert parsed(json.dumps(["[" * 1000, *[[]] * 1000]))[0] == "[" * 1000
    assert parsed(r'"\ud83d\ude00"') == "😀"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)  # fmt: skip


@given(ANY_JSON)
def test_what_is_written_is_read(value):
    assert parsed(json_text(value)) == value
    assert parsed(json.dumps(value)) == value


@given(
    st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()),
    st.integers(0),
    st.binary(max_size=3),
)
def test_damage_is_either_seen_or_harmless(data, place, damage):
    place %= len(data) + 1
    damaged = data[:place] + damage + data[place + len(damage) :]
    for kind in (Any, Row, list[Open]):
        try:
            found = parse_json(damaged, kind, "a.json")
        except ValueError as error:
            assert str(error).startswith("a.json: expected")
        else:
            assert kind is not Any or parsed(json_text(found)) == found


ROW = {"uid": "a", "captions": ["b"]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"uid": 3}, "expected uid to be text, got 3"),
        ({"captions": "b"}, "expected captions to be a list, got 'b'"),
        ({"captions": ["b", None]}, r"expected captions\[1\] to be text, got None"),
        ({"size": [1]}, "expected size to be a list of 2, got 1"),
        ({"size": [1, 2.5]}, r"expected size\[1\] to be a whole number, got 2.5"),
        ({"size": [1, True]}, r"expected size\[1\] to be a whole number, got True"),
        ({"share": "0.5"}, "expected share to be a finite number, got '0.5'"),
        ({"share": True}, "expected share to be a finite number, got True"),
        ({"share": 10**400}, "expected share to be a finite number, got 1000"),
        ({"share": -1}, "expected share of at least 0, got -1"),
        ({"kind": "pictures"}, "expected kind to be 'views' or 'text', got 'pictures'"),
        ({"frames": [{"name": "x"}]}, r"expected frames\[0\].matrix, got none"),
        ({"frames": [[]]}, r"expected frames\[0\] to be an object, got \[\]"),
        (
            {"frames": [{"name": "x", "matrix": [[1, "2"]]}]},
            r"expected frames\[0\].matrix\[0\]\[1\] to be a finite number, got '2'",
        ),
        ({"notes": {"blank": 1}}, r"expected notes\['blank'\] to be text, got 1"),
        ({"notes": None}, "expected notes to be an object, got None"),
        ({"count": 0.5}, "expected count to be a whole number or text, got 0.5"),
        ({"other": 1}, "expected an object to have uid, .* and no more, got 'other'"),
    ],
)
def test_fields_of_another_type_are_named(change, message):
    with pytest.raises(ValueError, match=f"^a.json: {message}"):
        parsed(json_text(ROW | change), Row)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"'])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="^a.json: expected an object, got"):
        parsed(text, Row)
    with pytest.raises(ValueError, match="^a.json: expected an object, got"):
        parsed(text, dict)


def test_fields_have_their_types():
    frame = {"name": "x", "matrix": [[1, 2.5], []]}
    row = parsed(json_text(ROW | {"size": [4, 5], "share": 1, "frames": [frame]}), Row)
    assert row == Row("a", ("b",), (4, 5), 1.0, frames=(Frame("x", [[1.0, 2.5], []]),))
    assert isinstance(row.share, float) and isinstance(row.frames[0].matrix[0][0], float)
    assert parsed(json_text(ROW | {"size": None, "count": "x"}), Row).count == "x"


def test_missing_fields_take_their_default_or_are_named():
    assert parsed(json_text(ROW), Row) == Row("a", ("b",))
    with pytest.raises(ValueError, match=r"^a.json: expected captions, got none"):
        parsed('{"uid": "a"}', Row)


def test_fields_that_a_class_does_not_name_go_to_its_rest():
    found = parsed('{"uid": "a", "rest": 1, "other": [2]}', Open)
    assert found == Open("a", {"rest": 1, "other": [2]})


def test_lines_are_numbered_and_empty_ones_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"uid": "a"}\r\n\n{"uid": "b"}')
    found = list(read_json_lines(path, Open))
    assert [where for where, _ in found] == [f"{path}, line 1", f"{path}, line 3"]
    assert [row.uid for _, row in found] == ["a", "b"]
    path.write_text('{"uid": "a"}\n{"uid": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: expected uid to be text, got 1"):
        list(read_json_lines(path, Open))


def test_only_the_last_line_of_a_journal_may_be_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"uid": "a"}\n{"uid": "b"')
    assert [row.uid for _, row in read_json_lines(path, Open, is_journal=True)] == ["a"]
    with pytest.raises(ValueError, match="line 2: expected JSON"):
        list(read_json_lines(path, Open))
    path.write_text('{"uid": \n{"uid": "b"}\n')
    with pytest.raises(ValueError, match="line 1: expected JSON"):
        list(read_json_lines(path, Open, is_journal=True))


def test_ids_stand_one_a_line_or_between_spaces(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(BOM + b"a b\r\nc\n\n")
    assert read_ids(path) == {"a", "b", "c"}
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"ids\.txt: expected ids, got none"):
        read_ids(path)


def test_hashes_are_those_of_the_whole_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(os.urandom(3_000_000))
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    begun = hashlib.sha256(b"head")
    assert file_hash(path, begun) == hashlib.sha256(b"head" + path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["a.png", "images/a.png", "./images/a.png", "no/such/file"])
def test_a_name_inside_is_a_path_inside(tmp_path, name):
    assert inside(tmp_path, name, "x") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "images/../../a", "/etc/passwd", "a\\b", "..\\a", "C:a", "C:/a", "a\0b"]
    + ["x" * 256, "é" * 128 + "/a"],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="^list.jsonl, line 2: expected a file inside"):
        inside(tmp_path, name, "list.jsonl, line 2")


def test_a_link_may_not_lead_out(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for each in (folder / "images", outside):
        each.mkdir(parents=True)
    (folder / "in").symlink_to("images")
    (folder / "out").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    (tmp_path / "also").symlink_to(folder)
    assert inside(folder, "in/a.png", "x") == folder / "in/a.png"
    assert inside(tmp_path / "also", "in/a.png", "x")
    with pytest.raises(ValueError, match="expected a file inside"):
        inside(folder, "out/a.png", "x")


def test_values_are_shown_in_one_short_line():
    for value in ("x" * 1000, "a\nb\x1b[2J", list(range(10**5)), {"a": "y" * 99}, b"z" * 99):
        assert len(short(value)) <= 60
        assert short(value).isprintable()
