"""The configuration: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from db.engine import Database
from flows.deployments import read_deployments
from pipeline.config import ClassConfig
from pipeline.config.starter import read_label_map, starter_config
from pipeline.data.project import Project, load_project
from pipeline.errors import ConfigError, DataError

MINIMAL: dict[str, Any] = {"name": "streets", "data": {"images": "images", "classes": ["road", "car"]}}


def write(folder: Path, document: object) -> Path:
    path = folder / "segcurate.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def rejection(folder: Path, **changes: object) -> str:
    with pytest.raises(ConfigError) as error:
        load_project(write(folder, {**MINIMAL, **changes}))
    return str(error.value)


def test_a_minimal_file_is_enough(tmp_path: Path) -> None:
    project = load_project(write(tmp_path, MINIMAL))
    assert project.root == tmp_path
    assert project.config.data.images == ["images"]
    assert [item.id for item in project.config.data.classes] == [0, 1]
    assert project.config.selection.strategy == "stratified"


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    message = rejection(tmp_path, scoring={"sampels": 8})
    assert "scoring.sampels" in message
    assert "`samples`" in message
    assert "`training`" in rejection(tmp_path, trainning={})
    assert "`cell`" in rejection(tmp_path, scoring={"regions": {"cel": 8}})


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {**MINIMAL, "scoring": {"samples": 8, "seed": 3}})
    monkeypatch.setenv("SEGCURATE_DATABASE__URL", "sqlite:///elsewhere.db")
    monkeypatch.setenv("SEGCURATE_SCORING__SAMPLES", "12")
    project = load_project(path)
    assert project.database_url == f"sqlite:///{tmp_path}/elsewhere.db"
    assert (project.config.scoring.samples, project.config.scoring.seed) == (12, 3)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, MINIMAL)
    monkeypatch.chdir("/")
    project = load_project(path)
    assert project.database_url == f"sqlite:///{tmp_path}/.segcurate/segcurate.db"
    assert project.path("images/a.png") == tmp_path / "images" / "a.png"
    assert project.uri(tmp_path / "images" / "a.png") == "images/a.png"
    assert project.uri(Path("/elsewhere/a.png")) == "/elsewhere/a.png"
    assert project.path("/elsewhere/a.png") == Path("/elsewhere/a.png")


def test_an_absolute_database_path_stays_as_it_is(tmp_path: Path) -> None:
    project = load_project(write(tmp_path, {**MINIMAL, "database": {"url": "sqlite:////data/store.db"}}))
    assert project.database_url == "sqlite:////data/store.db"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"images": "i", "classes": ["road", "road"]}}, "same name: road"),
        ({"data": {"images": "i", "classes": [{"name": "a", "id": 1}, "b"]}}, "same id: 1"),
        ({"data": {"images": "i", "classes": ["a", "b"], "ignore_index": 1}}, "also the id of a class"),
        ({"data": {"images": "i", "classes": ["a", "b"], "group_regex": "("}}, "Not a regular expression"),
        ({"data": {"images": "i", "classes": ["a"]}}, "data.classes"),
        ({"splits": {"test": {"fraction": 0.2, "list": "a.txt"}}}, "exactly one"),
        ({"splits": {"test": {"fraction": 1.2}}}, "less than 1"),
        ({"scoring": {"tile": 128, "overlap": 100}}, "more than half"),
        ({"model": {"architecture": "unnet"}}, "model.architecture"),
        ({"model": {"mean": [0.5]}}, "1 numbers for 3 channels"),
        ({"training": {"loss": {"class_weights": [1.0]}}}, "1 numbers for 2 classes"),
        ({"training": {"loss": {"cross_entropy": 0}}}, "there is no loss"),
        ({"evaluation": {"bins": 16}}, "divisor of 150"),
        (
            {"scoring": {"sampler": "none"}, "selection": {"strategy": "mutual_information"}},
            "needs a `scoring.sampler`",
        ),
        (
            {"calibration": {"source": "audit"}, "selection": {"audit_training": "always"}},
            "needs audit regions that no model is trained on",
        ),
        (
            {"scoring": {"heatmaps": {"measures": ["max_logit_norm"]}}},
            "the same at every pixel of two classes",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_words(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    assert words in rejection(tmp_path, **changes)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"annotators": "soft", "loss": {"dice": 1}}, "`annotators: soft` gives a pixel shares"),
        ({"mix": "mixup", "loss": {"dice": 0.5}}, "would learn the largest share as certain"),
        ({"mix": "cutmix", "batch_size": 1}, "`mix: cutmix` needs two crops in a batch: raise `batch_size`"),
        ({"vote_prior": 1}, "`vote_prior` smooths the shares of `annotators: soft`, not `latest`"),
        ({"loss": {"cross_entropy": 0, "dice": 1, "focal_gamma": 2}}, "raise `cross_entropy`"),
    ],
)
def test_training_options_that_do_not_go_together_are_refused_in_words(
    tmp_path: Path, training: dict[str, object], words: str
) -> None:
    assert words in rejection(tmp_path, training=training)


def test_training_options_that_do_go_together_are_taken(tmp_path: Path) -> None:
    together = {"annotators": "soft", "vote_prior": 1, "mix": "mixup", "loss": {"label_smoothing": 0.05}}
    pasted = {"mix": "cutmix", "loss": {"dice": 1, "focal_gamma": 2}}
    for training in (together, pasted):
        assert load_project(write(tmp_path, {**MINIMAL, "training": training}))


def test_a_missing_or_broken_file_names_itself_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="segcurate init"):
        load_project(tmp_path / "segcurate.yaml")
    path = tmp_path / "segcurate.yaml"
    path.write_text("name: [unclosed", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_project(path)
    path.write_text("- just\n- a list", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no settings"):
        load_project(path)


def test_the_hash_of_a_section_follows_its_content(tmp_path: Path) -> None:
    one = load_project(write(tmp_path, MINIMAL)).config.scoring
    same = load_project(write(tmp_path, {**MINIMAL, "scoring": {"samples": 20}})).config.scoring
    other = load_project(write(tmp_path, {**MINIMAL, "scoring": {"samples": 21}})).config.scoring
    assert one.content_hash() == same.content_hash() != other.content_hash()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '[{"name": "road", "id": 3, "color": [1, 2, 3]}, {"name": "car", "id": 7}]'),
        ("map.json", '{"road": 3, "car": 7}'),
        ("map.yaml", "classes:\n  - {name: road, id: 3}\n  - {name: car, id: 7}\n"),
        ("map.csv", "name,id,r,g,b\nroad,3,1,2,3\ncar,7,4,5,6\n"),
        ("map.json", '\ufeff{"road": 3, "car": 7}'),
        ("map.yaml", '{"3": road, 7: car}'),
        ("map.csv", "\ufeff# my classes\nname,id\nroad,3\ncar,7\n"),
    ],
)
def test_label_maps_of_every_form_give_names_and_ids(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [(item.name, item.id) for item in read_label_map(tmp_path / name)] == [("road", 3), ("car", 7)]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffroad\nmy:car\n",
        "# my classes\nroad\n\nmy:car\n",
        "# label:color_rgb:parts:actions\nroad:128,64,128::\nmy:car:64,0,128:a,b:c\n",
        "# label:color_rgb:parts:actions\nroad:::\nmy:car:::\n",
    ],
)
def test_lines_of_names_with_a_mark_comments_or_cvats_fields_give_the_names(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    found = read_label_map(path)
    assert [item.name for item in found] == ["road", "my:car"]
    assert [item.color for item in found] == (
        [(128, 64, 128), (64, 0, 128)] if "128,64" in text else [None] * 2
    )


def test_a_label_map_of_colours_and_names(tmp_path: Path) -> None:
    path = tmp_path / "colors.txt"
    path.write_text("128 64 128 road marking\n\n64 0 128 car\n", encoding="utf-8")
    assert [(item.name, item.color) for item in read_label_map(path)] == [
        ("road marking", (128, 64, 128)),
        ("car", (64, 0, 128)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "map.json",
            '[{"name": "road", "id": 3}, {"name": "car", "id": 3}]',
            "same id twice: in the classes 1 and",
        ),
        ("map.txt", "1 2 3 road\n1 2 3 car\n", "same color twice"),
        ("map.txt", "road\nroad\n", "same name twice: in the classes 1 and 2"),
        ("map.json", "{broken", "an unknown format"),
        ("map.json", f'{{"a": 0, "b": {2**70}}}', "not valid, in its `id`: "),
        ("map.csv", "label\nroad\n", "an unknown format"),
        ("map.json", '["road"]', "names fewer than two classes"),
        ("map.json", "3", "an unknown format"),
    ],
)
def test_a_bad_label_map_is_refused_with_its_name(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words) as error:
        read_label_map(tmp_path / name)
    assert name in str(error.value)


def test_the_starter_is_a_valid_configuration_with_odd_names_in_it(tmp_path: Path) -> None:
    classes = read_label_map_from(tmp_path, '[{"name": "a: \\"b\\" #c", "color": [1, 2, 3]}, "straße"]')
    text = starter_config(
        name="it's: odd",
        images=["my images/**/*.png"],
        masks="my masks",
        classes=classes,
        architecture="unet",
        encoder="resnet18",
        encoder_weights="none",
        cell=48,
    )
    path = tmp_path / "segcurate.yaml"
    path.write_text(text, encoding="utf-8")
    project: Project = load_project(path)
    assert project.config.name == "it's: odd"
    assert project.config.data.class_names == ['a: "b" #c', "straße"]
    assert project.config.data.masks == "my masks"
    assert project.config.scoring.regions.cell == 48


def starter(classes: list[Any], **options: Any) -> str:
    named = [
        ClassConfig.model_validate(item if isinstance(item, dict) else {"name": item}) for item in classes
    ]
    model = {"architecture": "unet", "encoder": "resnet18", "encoder_weights": "none", "cell": 48}
    return starter_config(name="p", images=["a"], masks="b", classes=named, **model, **options)


def test_a_class_of_the_id_255_leaves_nothing_ignored(tmp_path: Path) -> None:
    path = tmp_path / "segcurate.yaml"
    path.write_text(starter(["background", {"name": "crack", "id": 255}]), encoding="utf-8")
    assert load_project(path).config.data.ignore_index == []


def test_colours_without_a_class_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "segcurate.yaml"
    path.write_text(starter(["background", "crack"], ignore_color=[(224, 224, 192)]), encoding="utf-8")
    assert load_project(path).config.data.ignore_color == [(224, 224, 192)]


def test_the_encoding_of_masks_is_the_one_that_was_found(tmp_path: Path) -> None:
    path = tmp_path / "segcurate.yaml"
    for options, encoding in (({}, "auto"), ({"mask_encoding": "rgb"}, "rgb")):
        path.write_text(starter(["background", "crack"], **options), encoding="utf-8")
        assert load_project(path).config.data.mask_encoding == encoding


def test_classes_that_cannot_be_make_no_configuration() -> None:
    with pytest.raises(ConfigError, match="Two classes have the same id"):
        starter(["background", {"name": "crack", "id": 0}])


@pytest.mark.parametrize("template", ["{stem[:-12]}", "{stem!r}", "{stem:>9}", "{0}", "{", "{stem.x}"])
def test_a_template_with_other_fields_says_how_a_suffix_is_left_out(tmp_path: Path, template: str) -> None:
    data = {**MINIMAL["data"], "mask_template": template}
    with pytest.raises(ConfigError, match="image_suffix: _leftImg8bit"):
        load_project(write(tmp_path, {**MINIMAL, "data": data}))


def read_label_map_from(folder: Path, text: str):
    (folder / "labels.json").write_text(text, encoding="utf-8")
    return read_label_map(folder / "labels.json")


@pytest.mark.parametrize(
    "text",
    [
        "root:\n  secret: x\nroot:*:19000:0:99999\n",
        "root:*:19000:0:99999:secret:\ndaemon:*:19000:0:99999:secret:\n",
        "a: *secret\n",
        "the secret line 17: x\n",
        "'secret",
    ],
)
def test_no_line_of_a_file_that_is_no_configuration_is_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "shadow"
    file.write_text(text)
    for read in (load_project, lambda path: read_deployments(path, config=path)):
        with pytest.raises(ConfigError) as caught:
            read(file)
        assert "secret" not in str(caught.value)
        assert "19000" not in str(caught.value)
        assert str(caught.value).count("is no key of the configuration") <= 1


def test_home_and_variables_are_replaced_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("FRAMES", "/mnt/frames")
    document = {
        "name": "streets",
        "workdir": "~/work",
        "database": {"url": "sqlite:///~/a.db"},
        "data": {
            "images": ["$FRAMES/new", "s3://bucket/${FRAMES}/x", "cost$$"],
            "masks": "${FRAMES}/masks",
            "group_csv": "~/groups.csv",
            "classes": ["road", "car"],
        },
        "splits": {"test": {"list": "~/test.txt"}, "calibration": {"folder": "$FRAMES/val/*"}},
        "model": {"encoder_weights": "~/weights.safetensors"},
        "scoring": {"ensemble": ["~/r01"], "regions": {"kind": "file", "folder": "~/maps"}},
        "export": {"folder": "$FRAMES/queues"},
        "labeling": {"label_studio": {"document_root": "~/served"}},
    }
    project = load_project(write(tmp_path, document))
    config = project.config
    assert project.workdir == Path("/home/ada/work")
    assert project.database_url == "sqlite:////home/ada/a.db"
    assert config.data.images == ["/mnt/frames/new", "s3://bucket//mnt/frames/x", "cost$"]
    assert (config.data.masks, config.data.group_csv) == ("/mnt/frames/masks", "/home/ada/groups.csv")
    assert (config.splits.test.list, config.splits.calibration.folder) == (
        "/home/ada/test.txt",
        "/mnt/frames/val/*",
    )
    assert config.model.encoder_weights == "/home/ada/weights.safetensors"
    assert config.scoring.ensemble == ["/home/ada/r01"]
    assert config.scoring.regions.folder == "/home/ada/maps"
    assert config.export.folder == "/mnt/frames/queues"
    assert config.labeling.label_studio.document_root == "/home/ada/served"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("$NOWHERE/x", "The environment variable NOWHERE is not set"),
        ("a/$", "$$ is a dollar sign"),
        ("~nobody.at.all/x", "There is no home folder ~nobody.at.all"),
    ],
)
def test_a_path_that_names_no_place_is_refused(tmp_path: Path, path: str, words: str) -> None:
    assert words in rejection(tmp_path, workdir=path)


@pytest.mark.parametrize("name", ["cracks? north", "50% #1", "a%3Fb", "plain"])
def test_the_database_lies_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    database = Database(load_project(write(folder, MINIMAL)).database_url)
    database.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / ".segcurate" / "segcurate.db").is_file()


def test_a_section_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "segcurate.yaml"
    path.write_text("name: a\ntraining: {batch_size: 2}\ndata: {images: x, classes: [a, b]}\ntraining: {}\n")
    with pytest.raises(ConfigError, match="line 4, column 1: `training` is there already, in line 2"):
        load_project(path)


def test_a_wrong_override_is_blamed_on_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {**MINIMAL, "scoring": {"samples": 1}})
    monkeypatch.setenv("SEGCURATE_TRAINING__ITERATIONS", "many")
    monkeypatch.setenv("segcurate_scoring__sampels", "3")
    with pytest.raises(ConfigError) as error:
        load_project(path)
    of_file, of_environment = str(error.value).split("The environment overrides the settings wrongly:")
    assert str(path) in of_file
    assert "scoring.samples" in of_file
    assert "SEGCURATE_TRAINING__ITERATIONS (training.iterations)" in of_environment
    assert "segcurate_scoring__sampels (scoring.sampels): there is no such key" in of_environment


def test_an_override_that_is_no_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, MINIMAL)
    monkeypatch.setenv("SEGCURATE_DATA", "[secret")
    with pytest.raises(ConfigError, match="variable SEGCURATE_DATA is not valid JSON") as error:
        load_project(path)
    assert "secret" not in str(error.value)


def test_keeping_the_maps_of_an_encoder_that_learns_is_refused(tmp_path: Path) -> None:
    message = rejection(tmp_path, model={"cache_features": "always"})
    assert "freeze_encoder: true" in message
    assert "cache_features: auto" in message


def test_settings_of_the_cache_change_no_hash_where_nothing_is_cached(tmp_path: Path) -> None:
    model = load_project(write(tmp_path, MINIMAL)).config.model
    assert not {"cache_features", "cache_gib"} & model.provenance().keys()
    size = model.model_copy(update={"freeze_encoder": True, "cache_features": "auto"})
    assert size.provenance()["cache_features"] == "auto"
    assert size.model_copy(update={"cache_gib": 1.0}).provenance() == size.provenance()
