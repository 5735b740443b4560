"""Annotations of Objaverse: read with or without compression, or refused with their file."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged, damaged_json
from spad.curation.annotations import read_annotations

OBJECTS = {
    "a" * 32: {"name": "a chair", "likeCount": 3, "license": "by", "tags": [{"name": "wood"}]},
    "b" * 32: {"name": "a lamp", "faceCount": 12.0, "viewCount": None, "categories": []},
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["one.json", "one.json.gz"])
def test_compression_and_byte_order_marks_make_no_difference(tmp_path, name, mark):
    content = mark + json.dumps(OBJECTS).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    read = list(read_annotations(tmp_path / name))
    assert [one.uid for one in read] == list(OBJECTS)
    assert [one.name for one in read] == ["a chair", "a lamp"]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_file_is_named(tmp_path_factory, data):
    content = damaged_json(data, json.dumps(OBJECTS)).encode()
    if data.draw(st.booleans()):
        content = damaged(data, content)
    is_compressed = data.draw(st.booleans())
    path = tmp_path_factory.mktemp("annotations") / ("a.json.gz" if is_compressed else "a.json")
    if is_compressed:
        content = gzip.compress(content, 1)
        if data.draw(st.booleans()):
            content = damaged(data, content)
    path.write_bytes(content)
    try:
        list(read_annotations(path))
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_a_bomb_is_refused_before_it_is_in_memory(tmp_path):
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"' + b"a" * (10 << 20))
    with pytest.raises(ValueError, match=r"bomb\.json\.gz .*no object within"):
        list(read_annotations(path))
