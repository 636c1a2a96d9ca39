# SPDX-License-Identifier: Apache-2.0
import hashlib
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from vllm_epd.demo import FAMILIES, demo_image, ensure_model, serve_args, store
from vllm_epd.errors import ConfigError

ROOT = Path(__file__).parents[2]
MAKE = "import sys; from pathlib import Path; from vllm_epd.demo import ensure_model;"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    root = tmp_path_factory.mktemp("models")
    return {family: ensure_model(family, root) for family in FAMILIES}


def start_python(code, *args, **env):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_python(code, *args, **env):
    process = start_python(code, *args, **env)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def tensors(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def read_json(folder, name):
    return json.loads((folder / name).read_text())


def test_import_is_free():
    heavy = "torch transformers vllm numpy PIL safetensors tokenizers"
    code = f"import sys, vllm_epd.demo; print([n for n in '{heavy}'.split() if n in sys.modules])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("call", [ensure_model, serve_args])
def test_unknown_family_names_the_known_ones(call):
    with pytest.raises(ConfigError, match=r"'gpt-9'.*qwen2\.5-vl, internvl2, minicpm-v-2\.6"):
        call("gpt-9")


def test_serve_args_are_the_callers_to_change():
    serve_args("internvl2").append("--port")
    assert serve_args("internvl2") == ["--trust-remote-code"]
    assert serve_args("qwen2.5-vl") == []


@pytest.mark.parametrize("family", FAMILIES)
def test_second_call_makes_nothing(models, family):
    folder = models[family]
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    assert ensure_model(family, folder.parent) == folder
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_same_seed_gives_same_files_in_another_process(models, tmp_path):
    code = f"{MAKE} [ensure_model(f, Path(sys.argv[1])) for f in sys.argv[2:]]"
    run_python(code, tmp_path, *FAMILIES, PYTHONHASHSEED="7")
    for folder in models.values():
        assert digests(tmp_path / folder.name) == digests(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_seed_gives_other_weights_only(models, family, tmp_path):
    one, two = models[family], ensure_model(family, tmp_path, seed=1)
    assert one.name != two.name
    differing = {name for name, digest in digests(one).items() if digests(two)[name] != digest}
    assert differing == {"model.safetensors"}
    ours, theirs = tensors(one), tensors(two)
    assert {name: values.shape for name, values in ours.items()} == {
        name: values.shape for name, values in theirs.items()
    }
    assert not any((values == theirs[name]).all() for name, values in ours.items())


def test_processes_may_make_the_same_model_at_once(models, tmp_path):
    code = f"{MAKE} print(ensure_model('internvl2', Path(sys.argv[1])))"
    makers = [start_python(code, tmp_path) for _ in range(4)]
    outputs = {maker.communicate()[0].strip() for maker in makers}
    folder = models["internvl2"]
    assert outputs == {str(tmp_path / folder.name)}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert digests(tmp_path / folder.name) == digests(folder)


@pytest.fixture
def family_of(monkeypatch):
    """Registers a family `mine` whose folder is made by a function of the test's."""

    def register(build):
        module = types.ModuleType("family_of_the_test")
        module.build = build
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(store, "_FAMILIES", {"mine": store._Family(module.__name__)})

    return register


def test_first_to_finish_wins(family_of, tmp_path):
    def build(folder, seed):
        (folder / "who").write_text("late")
        first = tmp_path / folder.name
        first.mkdir()
        (first / "who").write_text("first")

    family_of(build)
    folder = ensure_model("mine", tmp_path)
    assert (folder / "who").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_failed_making_leaves_nothing(family_of, tmp_path):
    def build(folder, seed):
        (folder / "half").write_text("done")
        raise RuntimeError("no space")

    family_of(build)
    with pytest.raises(RuntimeError, match="no space"):
        ensure_model("mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_recipe_version_is_part_of_the_name(family_of, monkeypatch, tmp_path):
    family_of(lambda folder, seed: None)
    old = ensure_model("mine", tmp_path)
    monkeypatch.setattr(store, "RECIPE_VERSION", store.RECIPE_VERSION + 1)
    assert ensure_model("mine", tmp_path) != old


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/vllm_epd/demo"),
        ({"XDG_CACHE_HOME": "", "HOME": "{}/home"}, "home/.cache/vllm_epd/demo"),
    ],
)
def test_default_root(family_of, monkeypatch, tmp_path, environment, expected):
    family_of(lambda folder, seed: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert ensure_model("mine").parent == tmp_path / expected


def test_relative_root_gives_an_absolute_folder(family_of, monkeypatch, tmp_path):
    family_of(lambda folder, seed: None)
    monkeypatch.chdir(tmp_path)
    assert ensure_model("mine", Path("here")).parent == tmp_path / "here"


@pytest.mark.parametrize("family", FAMILIES)
def test_vocabulary_is_that_of_the_tokenizer(models, family):
    from tokenizers import Tokenizer

    folder = models[family]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = read_json(folder, "config.json")
    config = config.get("llm_config", config)
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["max_position_embeddings"] >= 8192
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"]
    text = "Wie schön — 3 images, <image> and 文字!\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) in (
        text,
        text.replace("<image>", ""),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_readable(models, family):
    from tokenizers import Tokenizer

    folder = models[family]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (head,) = [values for name, values in tensors(folder).items() if name.endswith("lm_head.weight")]
    texts = {number: tokenizer.decode([number]) for number, row in enumerate(head) if row.any()}
    assert len(texts) > 250
    assert all(text.isascii() and text.isprintable() and text for text in texts.values())


def test_qwen_loads_in_transformers(models):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        models["qwen2.5-vl"], output_loading_info=True
    )
    assert not any(report.values()), report


@pytest.mark.parametrize(
    ("family", "module", "name"),
    [
        ("internvl2", "configuration_internvl_chat", "InternVLChatConfig"),
        ("minicpm-v-2.6", "configuration_minicpm", "MiniCPMVConfig"),
    ],
)
def test_remote_configuration_reads_its_own_output(models, family, module, name, tmp_path):
    pytest.importorskip("transformers")
    written = read_json(models[family], "config.json")
    assert written["auto_map"]["AutoConfig"] == f"{module}.{name}"
    assert (models[family] / f"{module}.py").is_file()
    config_class = getattr(__import__(f"vllm_epd.demo.remote_code.{module}", fromlist=[name]), name)
    config_class.from_pretrained(models[family]).save_pretrained(tmp_path)
    again = config_class.from_pretrained(tmp_path)
    assert again.vision_config.hidden_size == written["vision_config"]["hidden_size"]
    assert getattr(again, "llm_config", again).vocab_size == written.get("llm_config", written)["vocab_size"]


def test_chat_template_of_qwen_places_the_media(models):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(models["qwen2.5-vl"])
    parts = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Compare."}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    assert text.splitlines() == [
        "<|im_start|>system",
        "Be brief.<|im_end|>",
        "<|im_start|>user",
        f"{image}{video}Compare.<|im_end|>",
        "<|im_start|>assistant",
    ]
    assert text.endswith("\n")


def test_demo_image_is_seeded():
    image = pytest.importorskip("PIL.Image")
    png = demo_image(3, 64, 48)
    assert image.open(io.BytesIO(png)).size == (64, 48)
    assert demo_image(3, 64, 48) == png
    assert len({demo_image(seed, 64, 48) for seed in range(20)}) == 20
