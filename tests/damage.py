"""Damage to files, for tests that readers name what is wrong: bytes cut, replaced and put in, and
fields of JSON that become something else."""

import json

from hypothesis import strategies as st

VALUES = [
    None, True, 0, -1, 2, 10**30, 0.5, 1e300, "", "x", "..", "../x", "/etc/passwd", "a\nb",
    "\x1b[2J", [], [0], [[]], ["x"], {}, {"a": 1},
]  # fmt: skip
TEXTS = [
    b"",
    b" ",
    b"\n",
    b"-",
    b"nan",
    b"NaN",
    b"1e999",
    b"9" * 30,
    b"\xff",
    b"\0",
    b'"',
    b"[" * 99,
]


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """`content` with one to three changes that are drawn."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        taken = data.draw(st.sampled_from([0, 1, 4, 50, len(content)]))
        put_in = data.draw(st.sampled_from(TEXTS) | st.binary(max_size=4))
        content = content[:at] + put_in + content[at + taken :]
    return content


def damaged_json(data: st.DataObject, text: str) -> str:
    """JSON in which one or two fields that are drawn are others, gone or new."""
    content = {"": json.loads(text)}
    for _ in range(data.draw(st.integers(1, 2))):
        part, key = data.draw(st.sampled_from(_places(content)))
        change = data.draw(st.sampled_from(["replace", "remove", "double"]))
        if change == "remove" and part is not content:
            del part[key]
        elif change == "double" and isinstance(part, list):
            part.append(part[key])
        else:
            part[key] = data.draw(st.sampled_from(VALUES))
    return json.dumps(content[""])


def _places(value: dict | list) -> list[tuple]:
    """Every place in a JSON value, as what it is in and its key there."""
    found = []
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            found += _places(inner)
    return found
