"""The page as files: policy and hashes, what it contains, where it is written, how it is served, what is refused."""

import base64
import gzip
import hashlib
import http.client
import json
import re
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_mdnrnn, make_vae
from worldmodels.cli import main
from worldmodels.models.weights import save_model
from worldmodels.pipeline.config import Config
from worldmodels.pipeline.dream_page import make_page
from worldmodels.support.files import write_json
from worldmodels.web import page as pages
from worldmodels.web.embedding import embed
from worldmodels.web.film import Film, write_film
from worldmodels.web.page import ASSETS, WASM, WEIGHTS, Page, check_folder, write_page
from worldmodels.web.server import PageServer

WEIGHT_BYTES = np.random.default_rng(0).integers(0, 256, 1_000_001, np.uint8).tobytes()
DATA = {WASM: b"\0asm", WEIGHTS: WEIGHT_BYTES, "agent.webp": b"RIFF"}
TITLE = "A </script><b>game</b>"


@pytest.fixture(scope="module")
def page():
    return Page(TITLE, {"description": "</script><script>alert(1)</script>"}, DATA)


def policy(text):
    (found,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    return {
        name: value.split()
        for name, *value in [part.split(" ", 1) for part in found.replace("&#x27;", "'").split("; ")]
        for value in [" ".join(value)]
    }


def digest(content):
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def test_one_file_allows_its_own_script_and_style_alone(page):
    text = page.single().decode()
    (style,), (script,) = (
        re.findall(r"<style>(.*?)</style>", text, re.S),
        re.findall(r'<script id="app">(.*?)</script>', text, re.S),
    )
    rules = policy(text)
    assert rules == {
        "default-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "script-src": [digest(script), "'wasm-unsafe-eval'"],
        "style-src": [digest(style)],
        "worker-src": ["blob:"],
        "img-src": ["blob:", "data:"],
    }
    assert text.index("Content-Security-Policy") < text.index("<style")
    scripts = re.findall(r"<script([^>]*)>", text)
    executed = [one for one in scripts if "type=" not in one]
    assert executed == [' id="app"']


def test_folder_has_external_files_alone(page):
    files = page.folder()
    index = files["index.html"].decode()
    assert set(files) == {"index.html", "style.css", *pages._MODULES, *DATA}
    rules = policy(index)
    assert rules["script-src"] == ["'self'", "'wasm-unsafe-eval'"] and rules["style-src"] == rules["connect-src"] == [
        "'self'"
    ]
    assert not re.findall(r"<style", index)
    assert re.findall(r"<script([^>]*)>", index) == [
        ' type="application/json" id="about"',
        ' type="module" src="app.js"',
    ]
    about = json.loads(re.search(r'id="about">(.*?)</script>', index)[1])
    assert about["files"] == {name: len(content) for name, content in DATA.items()}


def test_titles_and_settings_are_escaped(page):
    for text in (page.single().decode(), page.folder()["index.html"].decode()):
        assert TITLE not in text and "alert(1)</script>" not in text
        assert "A &lt;/script&gt;" in text


def test_template_has_no_inline_code_and_asks_nobody():
    template = (ASSETS / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", template)
    sources = [template, *((ASSETS / name).read_text() for name in (*pages._MODULES, "style.css"))]
    addresses = {found for text in sources for found in re.findall(r"https?://[^\s\"'`)]+", text)}
    assert addresses == {"https://worldmodels.github.io", "http://www.w3.org/2000/svg"}
    for text in sources[1:]:
        assert "</script" not in text and "<!--" not in text and "eval(" not in text
    assert not re.search(r"@import|url\(", sources[-1])


def test_one_script_imports_and_exports_nothing():
    script = pages._one_script()
    assert not re.search(r"^\s*(import|export)\b", script, re.M)
    for name in pages._MODULES:
        imported = re.findall(r'^import .* from "\./([\w.]+)";$', (ASSETS / name).read_text(), re.M)
        assert len(imported) == len(re.findall(r"^import ", (ASSETS / name).read_text(), re.M))
        assert all(pages._MODULES.index(other) < pages._MODULES.index(name) for other in imported)


def extract(text, size):
    """Bytes of an embedded text, by the arithmetic of one large integer."""
    groups = []
    for code in map(ord, text):
        groups += [code] if code < 128 else [[0, 10, 13, 60][(code - 256) // 128], code % 128]
    number = int("".join(f"{group:07b}" for group in groups), 2) if groups else 0
    return (number >> (7 * len(groups) - 8 * size)).to_bytes(size, "big")


@given(st.binary(max_size=200) | st.lists(st.sampled_from([0, 1, 10, 60, 120, 255])).map(bytes))
def test_embedded_bytes_are_extracted(content):
    text = embed(content)
    assert extract(text, len(content)) == content
    assert not set(text) & set("\0\n\r<") and len(text.encode()) <= -(-8 * len(content) // 7) + 1


def test_embedded_text_is_an_eighth_longer():
    content = np.random.default_rng(0).bytes(70_000)
    assert len(embed(content).encode()) in (80_000, 80_001)


def test_blocks_hold_the_files(page):
    text = page.single().decode()
    about = json.loads(re.search(r'id="about">(.*?)</script>', text)[1])
    for name, content in DATA.items():
        parts = re.findall(rf'class="block" data-file="{name}">(.*?)</script>', text)
        assert len(parts) == about["blocks"][name]["count"] and about["blocks"][name]["size"] == len(content)
        found = extract("".join(parts), about["blocks"][name]["packedSize"])
        if not name.endswith(".webp"):
            found = gzip.decompress(found)
        if name == WEIGHTS:
            planes = np.frombuffer(found, np.uint8)
            joined = np.empty(len(planes), np.uint8)
            joined[::2], joined[1::2] = np.split(planes, [(len(planes) + 1) // 2])
            found = joined.tobytes()
        assert found == content
    assert text.rstrip().endswith("</html>") and page.single() == page.single()


def test_pages_are_written(tmp_path, page):
    out = tmp_path / "dream.html"
    assert write_page(page, out, split=False) == out.stat().st_size
    check_folder("--out", tmp_path / "split")
    write_page(page, tmp_path / "split", split=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "split").iterdir()} == page.folder()
    check_folder("--out", tmp_path / "split")  # again
    (tmp_path / "split" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"--out: expected a new folder or one of a page, got .* with thesis.tex"):
        check_folder("--out", tmp_path / "split")


def test_film_is_a_sheet_of_frames(tmp_path):
    from PIL import Image

    frames = np.zeros((130, 64, 64, 3), np.uint8)
    frames += (np.arange(130, dtype=np.uint8) + 60)[:, None, None, None]
    film = write_film(tmp_path / "film.webp", frames, 100, first=10, seconds=1.1, note="A note.")
    assert film == Film.read(tmp_path / "film.json")
    assert film == Film(frames=55, columns=24, steps_per_frame=2, steps=110, first=10, complete=False, note="A note.")
    sheet = np.array(Image.open(tmp_path / "film.webp"))
    assert sheet.shape == (3 * 64, 24 * 64, 3)
    shown = [sheet[64 * row + 32, 64 * column + 32, 0] for row, column in (divmod(k, 24) for k in range(55))]
    assert np.abs(np.array(shown, int) - (70 + 2 * np.arange(55))).max() <= 3
    assert write_film(tmp_path / "film.webp", frames[:5], 35).complete
    with pytest.raises(ValueError, match="frames: expected"):
        write_film(tmp_path / "film.webp", frames[:10], 35, first=10)


@pytest.fixture(scope="module")
def server(page):
    with PageServer(page.folder(), page.policy) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(server, path, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_server_serves_the_page(server, page):
    files = page.folder()
    for name, content in files.items():
        status, headers, body = ask(server, f"/{name}")
        assert (status, body) == (200, content)
        assert headers["Content-Security-Policy"] == page.policy and headers["X-Content-Type-Options"] == "nosniff"
    assert ask(server, "/")[2] == ask(server, "/?x=1")[2] == files["index.html"]
    assert ask(server, "/app.js")[1]["Content-Type"].startswith("text/javascript")
    status, headers, body = ask(server, "/dream.wasm", "HEAD")
    assert (status, headers["Content-Type"], headers["Content-Length"], body) == (200, "application/wasm", "4", b"")


PATHS = ("/etc/passwd", "/../page.py", "/..%2fpage.py", "//etc/passwd", "/assets/app.js", "/app.js/", "/%61pp.js", "*")


@pytest.mark.parametrize("path", PATHS)
def test_server_has_no_other_path(server, path):
    status, _, body = ask(server, path)
    assert status == 404 and b"root:" not in body


def test_server_is_of_this_machine(server):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", host="evil.example")[0] == 421
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, "/", "POST")[0] == 501


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run with V and M, without C; the compiled core is a stand-in."""
    monkeypatch.setattr(pages, "ASSETS", tmp_path / "assets")
    shutil.copytree(ASSETS, tmp_path / "assets")
    (tmp_path / "assets" / WASM).write_bytes(b"\0asm")
    folder = tmp_path / "run"
    model = make_mdnrnn()
    save_model(folder / "vae" / "vae.safetensors", make_vae())
    save_model(folder / "rnn" / "rnn.safetensors", model)
    import torch

    from worldmodels.models.weights import save_tensors

    states = {name: torch.zeros(2, model.latent_size) for name in ("mu", "logvar")}
    save_tensors(folder / "rnn" / "initial.safetensors", states, {})
    from dataclasses import asdict

    write_json(folder / "config.json", asdict(Config(task="takecover")))
    return folder


def refusal(capsys, *arguments):
    assert main(["web", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_a_run_without_c_has_a_page(run_folder, tmp_path, capsys):
    assert main(["web", str(run_folder), "--out", str(tmp_path / "dream.html")]) == 0
    assert "dream.html (" in capsys.readouterr().out
    about = json.loads(re.search(r'id="about">(.*?)</script>', (tmp_path / "dream.html").read_text())[1])
    assert about["films"] == {} and about["exploited"] is None and about["scores"] == {}
    assert about["keys"] == {"left": [-1.0], "right": [1.0]} and about["evolution"]["maxSteps"] == 700
    assert set(about["blocks"]) == {WASM, WEIGHTS}


def test_keys_and_lengths_are_those_of_the_task(run_folder):
    about = make_page(run_folder, Config(task="pendulum")).about
    assert about["keys"] == {"left": (1.0,), "right": (-1.0,)}
    assert about["evolution"]["maxSteps"] == 200


@pytest.mark.parametrize(("name", "file"), [("V", "vae/vae.safetensors"), ("M", "rnn/rnn.safetensors")])
def test_missing_models_are_named(run_folder, tmp_path, capsys, name, file):
    (run_folder / file).unlink()
    error = refusal(capsys, run_folder, "--out", tmp_path / "dream.html")
    assert f"expected a run with {name}, got one without {file}" in error
    assert not (tmp_path / "dream.html").exists()


def test_other_models_are_named(run_folder, tmp_path, capsys):
    shutil.copy(run_folder / "rnn" / "rnn.safetensors", run_folder / "vae" / "vae.safetensors")
    error = refusal(capsys, run_folder, "--out", tmp_path / "dream.html")
    assert "vae.safetensors: expected a ConvVAE, got 'MDNRNN'" in error


def test_missing_core_is_named(run_folder, tmp_path, capsys):
    (tmp_path / "assets" / WASM).unlink()
    assert "pip install ziglang" in refusal(capsys, run_folder, "--out", tmp_path / "dream.html")


def test_outputs_are_checked_before_any_work(run_folder, tmp_path, capsys):
    assert "--split: expected --out" in refusal(capsys, run_folder, "--split")
    assert "ends in .html" in refusal(capsys, run_folder, "--out", tmp_path / "dream.htm")
    assert "no such folder" in refusal(capsys, run_folder, "--out", tmp_path / "none" / "dream.html")
    assert "got a file" in refusal(capsys, run_folder, "--split", "--out", run_folder / "config.json")
    assert "with config.json" in refusal(capsys, run_folder, "--split", "--out", run_folder)
    assert "expected a run folder or one of carracing, takecover" in refusal(
        capsys, "takeover", "--out", tmp_path / "x.html"
    )
