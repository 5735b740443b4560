"""Damaged reports: read, or refused with a message that names the file."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged, damaged_json
from spad.evaluation.report import (
    Column,
    EvaluationReport,
    ScoredObject,
    read_report,
    write_report,
)

OBJECTS = tuple(
    ScoredObject(name, "text", "a fish", {"a": 0.5, "b": 2.0}, {"a": 0.1}, f"images/{name}.webp")
    for name in ("x", "y")
)
COLUMNS = (Column("a", True, 1.0, "one"), Column("b", False, None, "two"))
REPORT = EvaluationReport("mini", {"seed": 0}, "fixed", COLUMNS, OBJECTS, {"fid": 3.0}, ("note",))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_damaged_report_is_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, REPORT.to_json(), "", "")
    path = folder / "report.json"
    content = damaged_json(data, path.read_text()).encode()
    if data.draw(st.booleans()):
        content = damaged(data, content)
    path.write_bytes(content)
    try:
        report = read_report(folder)
        report.table()
        report.markdown()
        json.dumps(report.to_json(), allow_nan=False)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
