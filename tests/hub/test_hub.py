"""Pushing to the Hugging Face Hub and loading from it, with a server on the loopback interface."""

import os
import subprocess
import sys

import numpy as np
import pytest
from fake_hub import FakeHub

import worldmodels as wm
from conftest import TOY, make_vae, toy_config, write_world
from worldmodels.analysis.stats import describe
from worldmodels.data.records import EnvironmentRecord, PlayerScores, Results, Seeds
from worldmodels.pipeline.evolution import save_controller
from worldmodels.pipeline.run import Run
from worldmodels.pipeline.sharing import model_card, push


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as running:
        yield running


@pytest.fixture
def client(hub, tmp_path):
    """Runs Python that talks to the server; what it prints. The address is read when huggingface_hub is imported."""

    def run(code, *arguments, command=("-c",)):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        line = [sys.executable, *command, code, *map(str, arguments)]
        return subprocess.run(line, env=environment, text=True, capture_output=True, timeout=200)

    return run


def make_run(folder, *, results=True):
    """A run folder with random models, and results of 100 episodes."""
    with Run(folder, toy_config()) as run:
        write_world(run)
        controller = wm.Controller(4, 8, 1)
        save_controller(run, controller, np.linspace(-1, 1, controller.size), {"score": 1.0})
        if results:
            rng = np.random.default_rng(6)
            made = {
                name: PlayerScores(**vars(describe(rng.integers(100, 900, 100))), policy=policy)
                for name, policy in (("before", "first generation"), ("random", "uniform"), ("collecting", "left"))
            }
            Results(
                agent=describe([float(score) for score in range(1, 101)]),
                players=made,
                environment=EnvironmentRecord(id="worldmodels/TakeCover-v0", variant="paper", resolution="160x120"),
                versions={"worldmodels": "0.1.0", "torch": "2.13.0"},
                seeds=Seeds(seed=0, episodes=[1]),
            ).write(run.path("results.json"))
    return folder


ROUND_TRIP = """
import sys, numpy as np, torch, worldmodels as wm
agent = wm.Agent.load(sys.argv[1])
world = wm.load_world_model(sys.argv[1])
print(agent.push_to_hub("tester/agent"))
world.push_to_hub("tester/agent", card="mine")
agent.vae.push_to_hub("tester/vae", private=True)
loaded, other = wm.Agent.from_pretrained("tester/agent"), wm.WorldModel.from_pretrained("tester/agent")
vae, mdnrnn = wm.ConvVAE.from_pretrained("tester/vae"), wm.MDNRNN.from_pretrained("tester/agent")
for one, two in ((agent.vae, loaded.vae), (agent.vae, vae), (agent.mdnrnn, loaded.mdnrnn), (world.mdnrnn, mdnrnn)):
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
assert all(np.array_equal(one, two) for one, two in zip(world[1:], other[1:]))
frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
assert np.array_equal(agent.act(frames[:1]), loaded.act(frames[:1]))
x = torch.rand(2, 3, 64, 64)
assert torch.equal(agent.vae.encode(x)[0], vae.encode(x)[0])
assert wm.Agent.from_pretrained("tester/agent", local_files_only=True)
"""


def test_round_trip(hub, client, tmp_path):
    done = client(ROUND_TRIP, make_run(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.address}/tester/agent/commit/")
    assert hub.files("tester/agent")["README.md"] == b"mine"
    assert "`ConvVAE`" in hub.files("tester/vae")["README.md"].decode()
    assert sorted(hub.files("tester/vae")) == ["README.md", "vae/vae.json", "vae/vae.safetensors"]
    assert {name.rpartition(".")[2] for name in hub.downloaded} == {"safetensors"}
    assert set(hub.unexpected) <= {"GET /api/agent-harnesses"}  # asked for by some versions of huggingface_hub


REFUSALS = """
import sys, worldmodels as wm
for kind, repo_id in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        getattr(wm, kind).from_pretrained(repo_id)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_repositories_of_others_are_refused_by_name(hub, client, tmp_path):
    make_vae().save_pretrained(tmp_path)
    weights = (tmp_path / "vae" / "vae.safetensors").read_bytes()
    hub.add("tester/pickled", {"pytorch_model.bin": b"\x80\x04.", "config.json": b"{}"})
    hub.add("tester/damaged", {"vae/vae.safetensors": weights[:-7]})
    hub.add("tester/other", {"rnn/rnn.safetensors": weights})
    expected = {
        ("ConvVAE", "tester/pickled"): "FileNotFoundError: tester/pickled: expected vae/vae.safetensors for ConvVAE, "
        "got config.json, pytorch_model.bin; pickled files are not read",
        ("ConvVAE", "tester/damaged"): "vae.safetensors: expected safetensors written by worldmodels",
        ("MDNRNN", "tester/other"): "rnn.safetensors: expected a MDNRNN, got 'ConvVAE'",
        ("MDNRNN", "tester/nothing"): "tester/nothing",
    }
    done = client(REFUSALS, *(word for pair in expected for word in pair))
    for text in expected.values():
        assert text in done.stdout, (done.stdout, done.stderr)
    assert "pytorch_model.bin" not in hub.downloaded


def test_the_command_pushes_a_run(hub, client, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "episodes").mkdir()
    (folder / "episodes" / "0.h5").write_bytes(b"large")
    (folder / "README.md").write_text("notes")
    done = client("push", folder, "tester/run", "--license", "apache-2.0", command=("-m", "worldmodels"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.address}/tester/run/commit/")
    pushed = hub.files("tester/run")
    assert {"config.json", "results.json", "rnn/initial.safetensors", "evolve/controller.json"} < set(pushed)
    assert not any(name.startswith(("episodes", "stages", ".")) for name in pushed)
    assert pushed["README.md"].decode() == model_card(folder, "tester/run", "apache-2.0")
    assert (folder / "README.md").read_text() == "notes"
    downloaded = tmp_path / "downloaded"
    for name, data in pushed.items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(data)
    assert Run.agent(str(downloaded))[1] == toy_config()
    assert wm.Agent.load(downloaded) and wm.Dream.load(downloaded, controller=wm.Controller(4, 8, 1))


def test_the_card_has_scores_command_and_limits(tmp_path):
    folder = make_run(tmp_path / "run")
    card = model_card(folder, "tester/run")
    metadata, text = card.removeprefix("---\n").split("\n---\n", 1)
    assert 'library_name: worldmodels-rl\nlicense: "mit"\npipeline_tag: reinforcement-learning\ntags:\n' in metadata
    agent = describe([float(score) for score in range(1, 101)])
    low, high = agent.ci95
    assert f'value: 50.50\n      name: "mean_reward, 100 episodes, 95 % interval {low:.2f} to {high:.2f}"' in metadata
    assert f"| agent | 50.5 | {agent.std:.1f} | {low:.1f} to {high:.1f} | 100 |" in text
    assert (
        f"--train-vae.steps {TOY['train_vae']['steps']} " in text and "worldmodels run takecover --preset paper" in text
    )
    assert "## Limits" in text and "not that of the training seed" in text
    assert 'wm.Agent.from_pretrained("tester/run")' in text


def test_the_metadata_of_the_card_is_yaml(tmp_path):
    yaml = pytest.importorskip("yaml")
    metadata = model_card(make_run(tmp_path / "run"), "tester/run").split("---\n")[1]
    found = yaml.safe_load(metadata)
    (metric,) = found["model-index"][0]["results"][0]["metrics"]
    assert found["tags"] == ["world-model", "reinforcement-learning", "takecover", "cma-es"]
    assert metric["value"] == 50.5 and metric["type"] == "mean_reward"
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == "worldmodels/TakeCover-v0"


def test_a_run_without_results_says_so(tmp_path):
    card = model_card(make_run(tmp_path / "run", results=False), "tester/run")
    assert "model-index" not in card and "The run has no results" in card


def test_an_invalid_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not an id"):
        push(make_run(tmp_path / "run"), "not an id")


def test_only_runs_with_an_agent_are_pushed(tmp_path):
    for folder in ("takecover", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected a run folder with config\.json"):
            push(folder, "tester/run")
    with Run(tmp_path / "run", toy_config()):
        pass
    with pytest.raises(FileNotFoundError, match=r"expected a run with an agent, got one without vae/vae\.safetensors"):
        push(tmp_path / "run", "tester/run")
