"""A real Ray cluster on this machine: nodes of one core each, which can be killed with all their processes.

As a program (python ray_nodes.py) it holds the cluster: it prints its address, and for each line of stdin it adds a node and
prints the number of the process that all others of the node descend from. The nodes end with it.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

# Detect a lost node within seconds; with the defaults, this takes half a minute.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",
}


class Nodes:
    """A cluster; its first node is the head and has no cores for runs."""

    def __init__(self):
        command = [sys.executable, "-W", "ignore", str(Path(__file__).absolute())]
        # A separate folder, so that no other cluster is found; short, because socket paths are limited.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        environment = os.environ | SETTINGS | {"RAY_TMPDIR": self._folder}
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.address = self._answer()
        self._nodes = []

    def start(self):
        """Add a node."""
        print("node", file=self._holder.stdin, flush=True)
        self._nodes.append(int(self._answer()))

    def lose(self, number):
        """Kill a node with all its processes."""
        kill(self._nodes[number])

    def close(self):
        """Stop the cluster with all its processes."""
        kill(self._holder.pid)
        self._holder.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self):
        answer = self._holder.stdout.readline().strip()
        if not answer:
            self.close()
            pytest.fail("the cluster did not start")
        return answer


def kill(number):
    """Kill a process with all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def hold():
    """Run the cluster; see the module docstring."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    small = {"num_gpus": 0, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    print(cluster.address, file=answers, flush=True)
    for _ in sys.stdin:
        node = cluster.add_node(num_cpus=1, **small)
        (raylet,) = node.all_processes["raylet"]
        print(raylet.process.pid, file=answers, flush=True)


if __name__ == "__main__":
    hold()
