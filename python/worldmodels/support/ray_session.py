"""Ray session of this process: on this machine, or in a running cluster of which this machine is a node."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from worldmodels.support.cluster import ClusterAddress
from worldmodels.support.reaper import Reaper

_OBJECT_STORE = 256 * 2**20  # bytes on this machine; models and work units take far less
_CONNECT_TIMEOUT = 5.0  # seconds for a connection to the head
_REPLY_TIMEOUT = 60.0  # seconds for the head's reply to the probe
_PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"


class RaySession:
    """Ray session of this process.

    A session on this machine listens on the loopback interface only and ends with this process.

    Args:
        address: Address of the cluster.
        count: Number of CPUs of a session on this machine.

    Attributes:
        is_local: Whether the session runs on this machine only.
        name: Address of the cluster in messages.

    Raises:
        RuntimeError: The cluster cannot be reached or does not start, or this process already has a Ray session.
    """

    def __init__(self, address: ClusterAddress, count: int) -> None:
        if ray.is_initialized():
            raise RuntimeError("--cluster: expected a process without a session of Ray, got one: call ray.shutdown()")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its developers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self.is_local = address.workers is not None
        self.name = "this machine" if self.is_local else address.address
        self._is_open = True
        self._print = ray._private.worker.print_to_stdstream
        self._reaper: Reaper | None = None
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            self._start(count) if self.is_local else self._join()
            ray._private.worker.print_to_stdstream = _discard  # Ray prints the logs of lost nodes to stdout
        except BaseException:
            self.close()
            raise
        finally:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, terminate)  # Ray installs its own handler

    def _start(self, count: int) -> None:
        """Start a cluster on this machine.

        Raises:
            RuntimeError: Ray does not start, or it would listen on an interface other than loopback.
        """
        node = ray.util.get_node_ip_address()
        if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0" and not ipaddress.ip_address(node).is_loopback:
            raise RuntimeError(
                f"--cluster: expected Ray to listen on the loopback interface alone, got {node}, as it was imported "
                "before the cluster was opened; set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before its import"
            )
        log("starting Ray on this machine ...")
        place = "/tmp" if os.access("/tmp", os.W_OK) else None  # a socket's path has at most 107 characters
        folder = Path(tempfile.mkdtemp(prefix="wm", dir=place))
        self._reaper = Reaper(folder)  # two Ray processes outlive a killed driver for a minute
        try:
            with self._reaper.marked():
                ray.init(
                    address="local",  # not that of RAY_ADDRESS
                    num_cpus=count,
                    num_gpus=0,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=_OBJECT_STORE,
                    _temp_dir=str(folder),
                )
        except Exception as error:  # Ray raises Exception itself too
            raise RuntimeError(f"--cluster: Ray does not start on this machine: {error}") from error

    def _join(self) -> None:
        """Join a running cluster.

        Raises:
            RuntimeError: There is no cluster at the address, or this machine is not one of its nodes.
        """
        address = self.name
        if address != "auto":
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
                line = [sys.executable, "-c", _PROBE, address]  # ray.init would wait for minutes
                probe = subprocess.run(line, capture_output=True, text=True, timeout=_REPLY_TIMEOUT, check=False)
                if probe.returncode:
                    raise ConnectionError(probe.stderr.strip().rpartition("\n")[2])
            except (OSError, OverflowError, subprocess.TimeoutExpired) as error:
                raise RuntimeError(
                    f"--cluster: expected the head of a Ray cluster at {address}, got none: {error}; start it with "
                    "`ray start --head`"
                ) from error
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            text = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"--cluster: cannot join the Ray cluster {address}: {text}; this machine must be one of its nodes: "
                "`ray start --head`, or `ray start --address HOST:PORT`"
            ) from error

    def close(self) -> None:
        """End the session, and with it a cluster on this machine."""
        if self._is_open:  # otherwise the session of this process belongs to another caller
            self._is_open = False
            ray._private.worker.print_to_stdstream = self._print
            with contextlib.suppress(RayError):
                ray.shutdown()
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None


def log(text: str) -> None:
    """Print a line about the cluster to stderr."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def _discard(*_: Any, **__: Any) -> None:
    pass
