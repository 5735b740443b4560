"""`spad filter`: what it keeps, what it says, and what it refuses."""

import gzip
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet")
trimesh = pytest.importorskip("trimesh")

from spad.cli import main  # noqa: E402
from spad.curation import filter as filter_module  # noqa: E402
from spad.curation.annotations import read_annotations  # noqa: E402
from spad.curation.config import FILTER_PRESETS, FilterConfig  # noqa: E402
from spad.curation.external_sort import SortedRuns, join  # noqa: E402
from spad.curation.filter import RULES, filter_objects, license_slug  # noqa: E402
from spad.meshes.measure import measure_model  # noqa: E402

GOOD = {
    "name": "Red chair",
    "tags": [{"name": "furniture", "slug": "furniture", "uri": "x"}],
    "categories": [{"name": "Furniture & Home"}],
    "likeCount": 9,
    "viewCount": 900,
    "commentCount": 1,
    "faceCount": 5000,
    "vertexCount": 2600,
    "animationCount": 0,
    "license": "by",
    "thumbnails": {"images": [{"url": "x"}]},
}


def write(path: Path, objects: dict[str, dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(objects).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(folder: Path) -> dict[str, dict]:
    return {row["uid"]: row for row in pq.read_table(folder / "table.parquet").to_pylist()}


def ids(folder: Path) -> list[str]:
    return (folder / "ids.txt").read_text().splitlines()


@pytest.fixture
def judge(tmp_path):
    """Filters objects given as changes to a good one; returns the report and the table."""
    count = 0

    def run(objects: dict[str, dict], **settings):
        nonlocal count
        count += 1
        source = write(tmp_path / f"{count}.json", {uid: GOOD | o for uid, o in objects.items()})
        report = filter_objects(FilterConfig(source, tmp_path / f"out{count}", **settings))
        return report, table(report.folder)

    return run


def random_objects(number: int) -> dict[str, dict]:
    rng = random.Random(0)
    kinds = ("by", "by-nc", "cc0", "by-nd", "")
    objects = {}
    for index in range(number):
        objects[hashlib.md5(str(index).encode()).hexdigest()] = GOOD | {
            "name": f"thing {rng.randrange(60)}",
            "likeCount": rng.randrange(12),
            "viewCount": rng.choice([None, 5, 500, 50_000]),
            "faceCount": int(10 ** rng.uniform(0, 7)),
            "vertexCount": rng.randrange(40, 60),
            "animationCount": rng.choice([0, 0, 0, 1]),
            "license": rng.choice(kinds),
            "tags": [{"name": rng.choice(["chair", "3d-scan", "pointcloud", "mushroom"])}],
        }
    return objects


REJECTED = (
    ({"likeCount": 2}, "popularity", "2 likes, expected at least 3"),
    ({"viewCount": 99}, "popularity", "99 views"),
    ({"faceCount": 99}, "polygons", "99 faces, expected 100 to 500,000"),
    ({"faceCount": 500_001}, "polygons", "500001 faces"),
    ({"vertexCount": 49}, "vertices", "49 vertices"),
    ({"license": "by-nc"}, "license", "'by-nc'"),
    ({"license": "by-nd"}, "license", "'by-nd'"),
    ({"license": None}, "license", "no license"),
    ({"animationCount": 1}, "animation", "1 animations, expected at most 0"),
    ({"tags": [{"name": "3D_Text"}]}, "text", "'3d text'"),
    ({"tags": ["photogrammetry"]}, "scan", "'photogrammetry'"),
    ({"name": "My Point-Cloud 7"}, "point-cloud", "'point cloud'"),
    ({"categories": [{"name": "Interior"}]}, "scene", "'interior'"),
    ({"faceCount": "many"}, "readable", "faceCount is 'many'"),
    ({"likeCount": -1}, "readable", "likeCount is '-1'"),
    ({"viewCount": 10**30}, "readable", "viewCount"),
    ({"viewCount": float("nan")}, "readable", "viewCount"),
    ({"tags": 7}, "readable", "tags are not a list"),
)


def test_every_rule_rejects_and_says_why(judge):
    bad = {f"bad{number}": change for number, (change, _, _) in enumerate(REJECTED)}
    report, rows = judge({"good": {}} | bad, preset="clean", duplicates=())
    assert ids(report.folder) == ["good"]
    assert rows["good"]["kept"] and rows["good"]["rejected_by"] is None
    for name, (change, rule, words) in zip(bad, REJECTED, strict=True):
        assert rows[name]["rejected_by"] == rule and not rows[name]["kept"], change
        assert words in rows[name]["reasons"][0], change
    lost = Counter(rule for _, rule, _ in REJECTED)
    assert {step.rule: step.lost for step in report.steps if step.lost} == lost


def test_words_are_matched_whole(judge):
    innocent = {"name": "mushroom", "tags": ["texture", "scanner", "scenery", "context"]}
    assert judge({"a": innocent}, preset="clean")[0].kept == 1


def test_what_is_unknown_passes_but_for_the_license(judge):
    unknown = dict.fromkeys(GOOD, None)
    report, rows = judge({"a": unknown})
    assert report.kept == 1 and rows["a"]["likes"] is None
    assert dict(report.unknown)["views"] == 1 and "views of 1" in str(report)
    assert judge({"a": unknown}, preset="commercial")[0].kept == 0


def test_flags_win_over_the_preset(judge):
    objects = {"a": {"likeCount": 0, "faceCount": 10}}
    assert judge(objects)[0].kept == 0
    assert judge(objects, min_likes=0, min_faces=10)[0].kept == 1
    assert judge(objects, preset="none")[0].kept == 1
    assert judge(objects, preset="none", min_comments=2)[0].kept == 0
    assert judge({"a": {"license": "by-nc"}}, preset="commercial", licenses=())[0].kept == 1


def test_all_failures_are_recorded_and_the_first_counts(judge):
    report, rows = judge({"a": {"likeCount": 0, "faceCount": 1, "vertexCount": 1}})
    assert rows["a"]["failed"] == ["popularity", "polygons", "vertices"]
    assert len(rows["a"]["reasons"]) == 3 and rows["a"]["rejected_by"] == "popularity"
    steps = {step.rule: (step.lost, step.failing) for step in report.steps}
    assert steps["popularity"] == (1, 1) and steps["polygons"] == (0, 1)


def test_the_best_of_duplicates_that_pass_stays(judge):
    objects = {
        "a": {"name": "Cup!", "likeCount": 5},
        "b": {"name": "cup", "likeCount": 7, "viewCount": 200},
        "c": {"name": "CUP", "likeCount": 7, "viewCount": 300},
        "d": {"name": "cup", "likeCount": 99, "faceCount": 1},  # rejected: hides nobody
        "e": {"name": "cup", "faceCount": 777},
        "f": {"name": "!"},
        "g": {"name": "?"},
    }
    report, rows = judge(objects, duplicates=("name-and-counts",))
    assert ids(report.folder) == ["c", "e", "f", "g"]
    assert rows["a"]["reasons"] == ["same name-and-counts as c"]
    assert rows["d"]["failed"] == ["polygons"]
    assert ids(judge(objects, duplicates=("name",))[0].folder) == ["e", "f", "g"]


def test_the_result_depends_on_the_objects_only(tmp_path, monkeypatch):
    objects = random_objects(700)
    settings = {"preset": "clean", "duplicates": ("name", "name-and-counts")}
    one = write(tmp_path / "one.json", objects)
    first = filter_objects(FilterConfig(one, tmp_path / "first", **settings))

    uids = list(objects)
    random.Random(1).shuffle(uids)
    for part in range(3):
        path = tmp_path / f"many/metadata/000-{part:03d}.json.gz"
        write(path, {uid: objects[uid] for uid in uids[part::3]})
    write(tmp_path / "many/object-paths.json.gz", {"a": "glbs/a.glb"})
    # Many runs on disk, merged more than once, and objects cut by the end of what is read at once.
    monkeypatch.setattr("spad.curation.external_sort._MOST_RUNS", 4)
    monkeypatch.setattr("spad.curation.annotations._PIECE", 100)
    monkeypatch.setattr(SortedRuns.__init__, "__defaults__", (30,))
    second = filter_objects(FilterConfig(tmp_path / "many", tmp_path / "second", **settings))

    assert 10 < first.kept < 600 and str(first).replace("first", "second") == str(second)
    assert sum(step.lost for step in first.steps) == first.total - first.kept
    names = {path.name for path in first.folder.iterdir()}
    assert names == {"ids.txt", "table.parquet", "histograms.png", "run.json"}
    for name in names - {"run.json"}:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    rows = pq.read_table(first.folder / "table.parquet").to_pylist()
    assert [row["uid"] for row in rows] == sorted(objects)
    assert ids(first.folder) == [row["uid"] for row in rows if row["kept"]]
    assert all(row["kept"] == (not row["failed"]) for row in rows)


def test_the_table_has_row_groups(judge, monkeypatch):
    monkeypatch.setattr(filter_module, "ROWS_PER_GROUP", 10)
    report, rows = judge({f"id{index:02d}": {} for index in range(25)})
    assert pq.ParquetFile(report.folder / "table.parquet").num_row_groups == 3
    assert list(rows) == sorted(rows) and report.kept == 25


def test_captions(judge, tmp_path):
    captions = tmp_path / "cap3d.csv"
    captions.write_text('z,"other, object"\nb,"a chair, red"\nc,\na,first\na,second\n')
    report, rows = judge({"a": {}, "b": {}, "c": {}, "d": {}}, captions=captions)
    assert ids(report.folder) == ["a", "b"]
    assert [rows[uid]["caption"] for uid in "abc"] == ["first", "a chair, red", ""]
    assert rows["d"]["reasons"] == ["no caption in cap3d.csv"]


@pytest.mark.parametrize(
    ("written", "slug"),
    [("by", "by"), ("CC-BY-4.0", "by"), ("cc by-sa 3.0", "by-sa"), ("CC0-1.0", "cc0"),
     ("CC0", "cc0"), ("by-nc-sa", "by-nc-sa"), ("CC-BY-NC-4.0", "by-nc"), ("", "")],
)  # fmt: skip
def test_licenses_have_one_spelling(written, slug):
    assert license_slug(written) == slug


def test_unknown_licenses_are_refused(judge):
    with pytest.raises(ValueError, match="expected --licenses among cc0, by, .* got bsd, mit"):
        judge({"a": {}}, licenses=("MIT", "CC-BY-4.0", "bsd"))


def test_presets_are_settings_and_rules_have_one_name():
    for preset in FILTER_PRESETS:
        FilterConfig(Path("a"), Path("b"), preset=preset).with_preset()
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))


def test_sorted_runs_match_sorted(tmp_path):
    rows = [(random.Random(i).randrange(100), i) for i in range(1000)]
    runs = SortedRuns(tmp_path / "runs", key=lambda row: row, run_rows=7)
    for row in rows:
        runs.add(row)
    assert list(runs) == sorted(rows) and list(runs) == sorted(rows) and len(runs) == 1000


def test_join_takes_the_first_of_each_id():
    joined = list(join([("a",), ("b",), ("d",)], [("0",), ("b", 1), ("b", 2), ("c",), ("e",)]))
    assert joined == [(("a",), None), (("b",), ("b", 1)), (("d",), None)]


def test_a_folder_of_models_is_counted(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.export(models / "ball.glb")
    shuffled = trimesh.Trimesh(ball.vertices, ball.faces[::-1], process=False)
    shuffled.visual.face_colors = [255, 0, 0, 255]
    shuffled.export(models / "red_ball.ply")
    ball.apply_scale(2).export(models / "large_ball.glb")
    (models / "broken.glb").write_bytes(b"glTF\2\0\0\0\xff\0\0\0")
    config = FilterConfig(models, tmp_path / "out", duplicates=("geometry",))
    rows = table(filter_objects(config).folder)
    assert rows["ball"]["faces"] == len(ball.faces) and rows["ball"]["animations"] == 0
    assert rows["ball"]["vertices"] == len(ball.vertices)
    assert rows["red_ball"]["reasons"] == ["same geometry as ball"]
    assert ids(tmp_path / "out") == ["ball", "large_ball"]
    assert rows["broken"]["rejected_by"] == "readable" and rows["broken"]["faces"] is None
    assert "cannot read broken.glb" in rows["broken"]["reasons"][0]


def test_an_index_gives_ids_names_and_licenses(tmp_path):
    trimesh.creation.icosphere().export(tmp_path / "a.glb")
    lines = [
        {"file": "a.glb", "uid": "one", "license": "CC0-1.0", "caption": "a ball", "likeCount": 4,
         "faceCount": 1},
        {"file": "gone.glb", "uid": "two", "license": "by-nc"},
    ]  # fmt: skip
    index = tmp_path / "index.jsonl"
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = filter_objects(FilterConfig(index, tmp_path / "out", preset="commercial"))
    rows = table(report.folder)
    assert ids(report.folder) == ["one"]
    one = rows["one"]
    assert (one["name"], one["caption"], one["likes"], one["file"]) == ("a", "a ball", 4, "a.glb")
    assert one["faces"] == 1280, "counts are the file's"
    assert rows["two"]["failed"] == ["readable", "license"]


def test_instances_count_and_animations_are_found(tmp_path):
    scene = trimesh.Scene()
    box = trimesh.creation.box()
    scene.add_geometry(box, geom_name="box")
    moved = np.eye(4)
    moved[0, 3] = 3
    scene.graph.update(frame_to="again", matrix=moved, geometry="box")

    def animate(tree: dict) -> None:
        tree["animations"] = [{"channels": [], "samplers": []}]

    path = tmp_path / "two.glb"
    path.write_bytes(trimesh.exchange.gltf.export_glb(scene, tree_postprocessor=animate))
    found = measure_model(path)
    assert (found.faces, found.animations) == (24, 1)


def test_counts_agree_with_an_index(shared_dir, shared_models):
    lines = (shared_dir / "assets/assets.jsonl").read_text(encoding="utf-8").splitlines()
    faces = {Path(row["file"]).name: row["faceCount"] for row in map(json.loads, lines)}
    for path in shared_models(12):
        assert measure_model(path).faces == faces[path.name], path.name


def bad_sources(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    good = json.dumps({"a": GOOD, "b": GOOD})
    texts = {
        "list.json": "[1, 2]",
        "values.json": '{"a": "glbs/a.glb"}',
        "cut.json": good[:-30],
        "after.json": good + "more",
        "empty.json": "",
        "deep.json": '{"a": {"b": ' + "[" * 100_000,
        "none.json": "{}",
        "bad-id.json": json.dumps({"../a": GOOD}),
        "twice.json": good[:-1] + ", " + good[1:],
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(good.encode())[:-20])
    (tmp_path / "plain.json.gz").write_text(good)
    (tmp_path / "latin.json").write_bytes(b'{"a": {"name": "\xe9"}}')
    (tmp_path / "table.xml").write_text("")
    (tmp_path / "nothing").mkdir()
    return {
        "list.json": "keyed by uid", "values.json": "keyed by uid",
        "cut.json": "after the object a", "after.json": "after the object b",
        "empty.json": "at its start", "deep.json": "nested too deeply", "none.json": "got none",
        "bad-id.json": "'../a'", "twice.json": "a twice", "cut.json.gz": "keyed by uid",
        "plain.json.gz": "Not a gzipped file", "latin.json": "utf-8",
        "nothing": "expected models", "missing": "or a .jsonl index",
        "table.xml": "or a .jsonl index",
    }  # fmt: skip


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    for name, words in bad_sources(tmp_path).items():
        before = sorted(tmp_path.iterdir())
        code = main(["filter", str(tmp_path / name), "--output", str(tmp_path / "out")])
        message = capsys.readouterr().err
        assert code == 2 and message.count("\n") == 1, message
        assert words in message, (name, message)
        assert sorted(tmp_path.iterdir()) == before


def test_impossible_thresholds_are_refused():
    with pytest.raises(ValueError, match="min_likes of at least 0, got -1"):
        FilterConfig(Path("a"), Path("b"), min_likes=-1)
    with pytest.raises(ValueError, match="min_faces of at most max_faces, got 9 and 3"):
        FilterConfig(Path("a"), Path("b"), min_faces=9, max_faces=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-faces", "3"], "got 100 and 3"),
        (["--captions", "gone.csv"], "gone.csv"),
        (["--captions", "three.csv"], "line 2: expected uid,caption, got 3 cells"),
        (["--root", "."], "--root"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", {"a": GOOD})
    (tmp_path / "three.csv").write_text("a,b\na,b,c\n")
    assert main(["filter", "a.json", "--output", "out", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1, message
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_funnel_and_keeps_an_older_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json.gz", {"a": GOOD, "b": GOOD | {"likeCount": 0}})
    command = ["filter", "a.json.gz", "--output", "out"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "popularity     1     1" in printed and "1 of 2 objects kept" in printed
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["settings"]["min_likes"] == 3 and record["kept"] == 1
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--min-likes", "0"]) == 0
    assert ids(tmp_path / "out") == ["a", "b"]


def test_annotations_survive_half_a_surrogate(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"name": "half \\ud83d", "tags": [null, {"slug": "x"}]}}')
    (row,) = read_annotations(path)
    assert row.name == "half ?" and row.tags == ("", "")
