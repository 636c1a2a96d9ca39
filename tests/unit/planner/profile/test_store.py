# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.profile import FORMAT
from vllm_epd.planner.profile.store import encode_profile, file_name, known_profiles, load_profile, save_profile


def test_a_profile_survives_its_file(tmp_path):
    profile = load_profile("internvl2-8b@h100")
    save_profile(profile, tmp_path / "mine.json")
    assert load_profile(tmp_path / "mine.json") == profile
    assert load_profile(str(tmp_path / "mine.json")) == profile


def test_every_ready_profile_can_be_read():
    assert known_profiles()
    for name in known_profiles():
        profile = load_profile(name)
        assert profile.format == FORMAT
        hardware = "cpu" if profile.hardware.device == "cpu" else profile.hardware.name
        assert name.startswith(file_name(profile.model, hardware).removesuffix(".json"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown profile 'llava@h100'.*internvl2-8b@h100, internvl2-8b@h200"):
        load_profile("llava@h100")


def test_another_format_is_refused_with_both_named(tmp_path):
    content = json.loads(encode_profile(load_profile("internvl2-8b@h100"))) | {"format": FORMAT + 1, "new": True}
    (tmp_path / "new.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"new.json is a profile of format {FORMAT + 1}, but .* format {FORMAT}"):
        load_profile(tmp_path / "new.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "1"}', f'{{"format": {FORMAT}, "model": "x"}}'])
def test_what_is_no_profile_is_refused(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ConfigError, match="bad.json holds no profile"):
        load_profile(tmp_path / "bad.json")


def test_a_misspelt_field_is_refused(tmp_path):
    content = encode_profile(load_profile("internvl2-8b@h100")).replace(b'"notes"', b'"note"')
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ConfigError, match="note"):
        load_profile(tmp_path / "bad.json")


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot write"):
        save_profile(load_profile("internvl2-8b@h100"), tmp_path / "missing" / "x.json")


def test_names_of_files():
    assert file_name("OpenGVLab/InternVL2 8B", "A100-80GB") == "opengvlab-internvl2-8b@a100-80gb.json"
