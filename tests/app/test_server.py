"""The server: who may ask, what is refused and how, what a request gives."""

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from app_server import serving
from spad.app.guard import MOST_BODY_BYTES, TOKEN
from spad.app.messages import camera_fields, image_text
from spad.cameras import Cameras, load_cameras, save_colmap, save_transforms

SIZE = 128
CAMERAS = Cameras.ring(4, 20, -60, height=SIZE, width=SIZE)
DRAW = {"prompt": "a blue fish", "cameras": camera_fields(CAMERAS), "steps": 2}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture(scope="module")
def drawn(served) -> dict:
    messages = served.messages("api/draw", DRAW)
    assert messages[-1]["kind"] == "done", messages
    return {"messages": messages, **messages[-1]}


# Who may ask


def test_the_page_has_the_token_and_its_files(served):
    status, page, headers = served.ask("", headers={TOKEN: ""})
    assert status == 200 and served.server.token.encode() in page
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for name in re.findall(rb'(?:src|href)="(static/[^"]+)"', page):
        assert served.ask(name.decode())[0] == 200
    assert b"MIT" in served.ask("static/three-license.txt")[1]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("", {"host": "example.org"}, 400),
        ("", {"host": "127.0.0.1.example.org:80"}, 400),
        ("api/model", {"origin": "https://example.org"}, 403),
        ("api/model", {"origin": "null"}, 403),
        ("api/model", {TOKEN: "wrong"}, 403),
        ("api/model", {TOKEN: ""}, 403),
        ("static/../server.py", {}, 404),
        ("static/%2e%2e%2fserver.py", {}, 404),
        ("static/index.html", {}, 404),
        ("api/nothing", {}, 404),
        ("api/model", {}, 200),
    ],
)
def test_foreign_requests_are_refused(served, path, headers, status):
    # urllib would tidy the path.
    connection = http.client.HTTPConnection(served.host, timeout=10)
    connection.request("GET", f"/{path}", headers={TOKEN: served.server.token, **headers})
    assert connection.getresponse().status == status
    connection.close()


def test_a_password_is_asked_for(tiny_pipeline_folder):
    with serving(model=str(tiny_pipeline_folder), password="sesame") as served:
        status, _, headers = served.ask("")
        assert status == 401 and headers["www-authenticate"].startswith("Basic")
        for given, expected in (("any:sesame", 200), (":sesame", 200), ("any:no", 401), ("é", 401)):
            secret = "Basic " + encoded(given.encode())
            assert served.ask("", headers={"authorization": secret})[0] == expected, given
        assert served.ask("", headers={"authorization": "Basic !"})[0] == 401


def test_large_bodies_are_not_read(served):
    connection = http.client.HTTPConnection(served.host, timeout=10)
    headers = {TOKEN: served.server.token, "content-length": str(MOST_BODY_BYTES + 1)}
    connection.putrequest("POST", "/api/zip")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "expected a prompt, got an empty one"),
        ({"prompt": "a" * 2000}, "a prompt of up to 1000 letters, got 2000"),
        ({"prompt": 3}, "prompt"),
        ({"seed": -1}, "expected seed of at least 0"),
        ({"steps": 0}, "expected steps of at least 1"),
        ({"guidance_scale": float("inf")}, "guidance_scale to be finite"),
        ({"cameras": {}}, "cameras.height"),
        ({"more": 1}, "more"),
        ({"cameras": {**DRAW["cameras"], "height": 10**9}}, "height"),
        ({"cameras": {**DRAW["cameras"], "world_from_cam": []}}, "world_from_cam"),
        ({"cameras": {**DRAW["cameras"], "world_from_cam": [[[1.0]]] * 4}}, "world_from_cam"),
        ({"cameras": {**DRAW["cameras"], "intrinsics": [[[1.0], [1.0, 2.0]]] * 4}}, "unequal"),
        ({"cameras": camera_fields(Cameras.ring(65, height=8, width=8))}, "up to 64 cameras"),
        ({"held": {"4": "x"}}, "a held view below 4"),
        ({"held": {"0": "not base64"}}, "held view 0 in base64"),
        ({"held": {"0": encoded(b"GIF89a")}}, "held view 0 as a PNG image"),
    ],
)
def test_wrong_requests_get_a_sentence(served, change, message):
    status, data, _ = served.ask("api/draw", {**DRAW, **change})
    if status == 200:
        # Found out when its turn came.
        status, data = 400, data.splitlines()[-1]
        assert json.loads(data)["kind"] == "error"
    text = json.loads(data)["message"]
    assert status == 400 and message in text and "\n" not in text


def test_text_that_is_no_json_is_refused(served):
    for body in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000):
        status, data, _ = served.ask("api/draw", body)
        assert status == 400 and json.loads(data)["message"], body[:10]


def test_an_image_is_measured_before_it_is_decoded(served):
    # A PNG that says it has 30,000 x 30,000 pixels.
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    side = (30_000).to_bytes(4, "big")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    bomb += chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    last = served.messages("api/draw", {**DRAW, "held": {"1": encoded(bomb)}})[-1]
    assert last["kind"] == "error" and "held view 1" in last["message"]


# What a request gives


def test_views_are_drawn_with_previews_of_all(drawn):
    steps = [message for message in drawn["messages"] if message["kind"] == "step"]
    assert [(m["step"], m["steps"]) for m in steps] == [(1, 2), (2, 2)]
    assert len(steps[0]["images"]) == 4
    assert image_of(steps[0]["images"][3]).size == (SIZE, SIZE)
    assert len(drawn["images"]) == 4
    assert image_of(drawn["images"][0]).size == (SIZE, SIZE)
    run = drawn["run"]
    assert run["prompt"] == "a blue fish" and run["num_inference_steps"] == 2


def test_the_same_request_gives_the_same_views(served, drawn):
    assert served.messages("api/draw", DRAW)[-1]["images"] == drawn["images"]
    other = served.messages("api/draw", {**DRAW, "seed": 1})[-1]["images"]
    assert all(a != b for a, b in zip(other, drawn["images"], strict=True))


def test_what_is_odd_about_a_request_is_said(served, drawn):
    assert drawn["notes"] == []
    inside = Cameras.orbit(20, [0, 90, 180], [3.5, 0.6, 3.5], height=SIZE, width=SIZE)
    odd = {**DRAW, "prompt": "a violet fish", "cameras": camera_fields(inside)}
    notes = " ".join(served.messages("api/draw", odd)[-1]["notes"])
    assert "camera 1 is inside the object" in notes and "violet" in notes


def test_held_views_come_back_as_they_were(served, drawn):
    held = {"0": drawn["images"][0], "2": drawn["images"][2]}
    done = served.messages("api/draw", {**DRAW, "seed": 5, "held": held})[-1]
    assert done["run"]["held"] == [0, 2]
    for view in range(4):
        assert (done["images"][view] == drawn["images"][view]) == (view in (0, 2))


def test_prompts_are_read_in_the_words_of_the_model(served):
    status, data, _ = served.ask("api/read", {"prompt": "two green dragons"})
    read = json.loads(data)
    assert status == 200 and "dragon" in read["read_as"] and read["notes"]


def test_a_model_is_built_and_its_files_open(served, finished, tmp_path):
    import trimesh

    messages = served.messages("api/build", finished)
    assert [m["kind"] for m in messages if m["kind"] != "queued"] == ["started", "building", "done"]
    done = messages[-1]
    for kind in ("glb", "ply"):
        (tmp_path / f"m.{kind}").write_bytes(base64.b64decode(done[kind]))
        assert len(trimesh.load(tmp_path / f"m.{kind}", force="mesh").faces) > 100
    assert len(done["views"]) == 4 and any("agrees" in note for note in done["notes"])


def test_views_that_show_nothing_build_nothing(served, finished):
    white = image_text(Image.new("RGB", (48, 48), "white"))
    last = served.messages("api/build", {**finished, "images": [white] * 4})[-1]
    assert last["kind"] == "error" and "expected" in last["message"]


def test_the_zip_opens_with_its_cameras(served, finished, tmp_path):
    status, data, _ = served.ask("api/zip", finished)
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
    loaded = load_cameras(tmp_path)
    given = finished["cameras"]["world_from_cam"]
    assert np.allclose(loaded.cameras.world_from_cam, given, atol=1e-6)
    assert Image.open(tmp_path / loaded.image_paths[2]).size == (48, 48)
    assert "nerfstudio" in (tmp_path / "HOW-TO-OPEN.txt").read_text(encoding="utf-8")
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["seed"] == 3 and run["prompts"] == ["a table"]


# Cameras in and out


@pytest.mark.parametrize("kind", ["transforms.json", "cameras.json", "colmap.zip"])
def test_exported_cameras_come_back(served, kind):
    status, data, _ = served.ask("api/export", {"cameras": DRAW["cameras"], "format": kind})
    assert status == 200
    status, data, _ = served.ask("api/import", {"files": {kind: encoded(data)}})
    back = json.loads(data)
    assert (back["height"], back["width"]) == (SIZE, SIZE)
    for name in ("world_from_cam", "intrinsics"):
        assert np.allclose(back[name], DRAW["cameras"][name], atol=1e-4), name


def test_the_files_of_colmap_are_read_together(served, tmp_path):
    save_colmap(tmp_path, CAMERAS.resized(100, 50), [f"{i}.png" for i in range(4)])
    files = {path.name: encoded(path.read_bytes()) for path in tmp_path.iterdir()}
    status, data, _ = served.ask("api/import", {"files": files})
    back = json.loads(data)
    # The longer side becomes the model's, in whole latents.
    assert status == 200 and (back["height"], back["width"]) == (128, 64)


def archive(**files: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return memory.getvalue()


def transforms(tmp_path) -> bytes:
    save_transforms(tmp_path / "t.json", CAMERAS, [f"{i}.png" for i in range(4)])
    return (tmp_path / "t.json").read_bytes()


def test_names_in_a_zip_lead_nowhere(served, tmp_path):
    data = archive(**{"../../transforms.json": transforms(tmp_path), "/etc/x": b"no"})
    status, data, _ = served.ask("api/import", {"files": {"a.zip": encoded(data)}})
    assert status == 200 and len(json.loads(data)["world_from_cam"]) == 4


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.json", b"{}", "frames"),
        ("notes.json", b"{", "notes.json"),
        ("a.zip", archive(readme=b"hello"), "a.zip: expected transforms.json"),
        ("a.zip", archive(**{"transforms.json": bytes(40 * 2**20)}), "a.zip: expected up to"),
        ("a.zip", b"PK\x03\x04broken", "expected"),
        ("../../x", b"1", "expected"),
    ],
)
def test_files_without_cameras_are_named(served, name, data, message):
    status, answer, _ = served.ask("api/import", {"files": {name: encoded(data)}})
    text = json.loads(answer)["message"]
    assert status == 400 and message in text and "/tmp" not in text


# Several at once


def test_one_that_leaves_frees_its_place(tiny_pipeline_folder):
    with serving(model=str(tiny_pipeline_folder), waiting=2) as served:
        slow = {**DRAW, "steps": 200}

        def ask(body) -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection(served.host, timeout=60)
            headers = {TOKEN: served.server.token}
            connection.request("POST", "/api/draw", json.dumps(body), headers)
            return connection

        first = ask(slow)
        answer = first.getresponse()
        while b'"step"' not in answer.readline():
            pass
        waiting = [ask(DRAW), ask(DRAW)]
        answers = [one.getresponse() for one in waiting]
        assert [one.status for one in answers] == [200, 200]
        status, data, headers = served.ask("api/draw", DRAW)
        assert status == 429 and "wait" in json.loads(data)["message"]
        assert headers["retry-after"]
        # A closed tab: the next one gets its turn long before 200 steps are drawn.
        answer.close()
        first.close()
        for one in answers:
            assert json.loads(one.read().splitlines()[-1])["kind"] == "done"
        for one in waiting:
            one.close()
        assert served.ask("api/model")[0] == 200


def test_the_command_serves_until_ctrl_c(tiny_pipeline_folder):
    command = [sys.executable, "-m", "spad", "app", "--no-browser", "--port", "0"]
    with subprocess.Popen(
        [*command, "--model", str(tiny_pipeline_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            line = process.stdout.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            connection.close()
            again = subprocess.run(
                [*command[:-1], str(port), "--model", str(tiny_pipeline_folder)],
                capture_output=True,
                text=True,
            )
            assert again.returncode == 1 and "try another --port" in again.stderr
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
