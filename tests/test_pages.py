"The pages on how to do things do what they say: every line of Python and of the console on them runs, in a folder of its own"
import re, shlex, shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import loragrass as lg
from loragrass.cli import app

PAGES = Path(__file__).resolve().parent.parent/"docs"/"pages"

def blocks(text, language): return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)

def commands(text):
    "Arguments of each call of loragrass"
    return [shlex.split(line[2:], comments=True)[1:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ loragrass ")]

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A place with the adapters of the first page"
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(blocks((PAGES/"start.md").read_text(encoding="utf-8"), "python")[0], {})
    assert len(list((place/"adapters").iterdir())) == 12
    modules = [f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn2.to_q" for i in (0, 1)]
    ink = lg.LoRA({m: lg.LoRAUpdate(torch.randn(320, 4), torch.randn(4, 320), 1.0, (320, 320)) for m in modules}, arch="sd15")
    lg.save(ink, place/"ink.safetensors", format="kohya") # somebody's adapter for Stable Diffusion
    return place

@pytest.mark.parametrize("page", sorted(p.name for p in PAGES.glob("*.md")))
def test_a_page_does_what_it_says(page, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    text, namespace = (PAGES/page).read_text(encoding="utf-8"), {"lg": lg, "a": lg.load("adapters/rot90-0")}
    for block in blocks(text, "python"): exec(block, namespace)
    for arguments in commands(text):
        said = CliRunner().invoke(app, arguments)
        assert said.exit_code == 0, (arguments, said.output)

def test_every_command_is_on_a_page():
    told = {arguments[0] for page in PAGES.glob("*.md") for arguments in commands(page.read_text(encoding="utf-8"))}
    assert {command.name or command.callback.__name__ for command in app.registered_commands} - told == {"ablate", "demo", "report", "subspaces", "topics"} # that need labels, a base or a language model, or do less than one that is told
