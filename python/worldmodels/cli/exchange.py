"""Commands that exchange models with others: ``import``, ``export`` and ``push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldmodels.cli.types import parse_path, parse_source

#: Commands with their help.
COMMANDS = {
    "import": "read the original code's weights (JSON) into a run folder",
    "export": "write V, M and C of an agent as ONNX files, or its episodes as a Minari data set",
    "push": "upload a run to the Hugging Face Hub, with a model card",
}


def add_arguments(target: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of a command."""
    if name == "import":
        target.add_argument(
            "folder", type=parse_path, help="folder of an experiment of the original code: carracing or doomrnn"
        )
        target.add_argument("--out", type=parse_path, metavar="FOLDER", required=True, help="new run folder")
    elif name == "export":
        target.add_argument("agent", type=parse_source, help="pretrained agent (takecover, carracing) or run folder")
        where = target.add_mutually_exclusive_group(required=True)
        where.add_argument("--out", type=parse_path, metavar="FOLDER", help="folder of the ONNX files")
        where.add_argument("--minari", metavar="ID", help="Minari data set of the run's episodes, such as mine/run-v0")
    else:
        target.add_argument("run", type=parse_path, help="run folder with an agent")
        target.add_argument("repo_id", metavar="REPO", help="repository: user/name; created if necessary")
        target.add_argument("--private", action="store_true", default=None, help="make a new repository private")
        target.add_argument("--license", default="mit", help="license of the weights, an identifier of the Hub")


def exchange_models(options: argparse.Namespace) -> None:
    """Run one of the commands and print what it wrote."""
    {"import": _import, "export": _export, "push": _push}[options.command](options)


def _import(options: argparse.Namespace) -> None:
    from worldmodels.pipeline.importing import import_original

    found = import_original(options.folder, options.out)
    score = "" if found.score is None else f", {found.score:.0f} in its evolution"
    print(
        f"{options.out}: {found.task}, z {found.vae.latent_size}, h {found.mdnrnn.hidden_size}, C of "
        f"{found.controller.size} parameters{score}"
    )


def _export(options: argparse.Namespace) -> None:
    if options.minari:
        from worldmodels.hub.minari import export_minari

        count = export_minari(Path(options.agent) / "episodes", options.minari)
        print(f"{options.minari}: {count} episodes")
        return
    from worldmodels.hub.onnx import export_onnx
    from worldmodels.models.agent import Agent
    from worldmodels.pipeline.run import Run

    folder, _ = Run.agent(options.agent)
    for path in export_onnx(Agent.load(folder), options.out):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _push(options: argparse.Namespace) -> None:
    from worldmodels.pipeline.sharing import push

    print(push(options.run, options.repo_id, private=options.private, license_id=options.license))
