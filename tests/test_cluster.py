"""Jobs spread over the machines of a Ray cluster: here two nodes on one machine, whose GPUs are only claimed."""

import signal
import sys
from pathlib import Path

import pytest

from pipelines import flows
from upsr.config import Jobs

MEET = """
import os, pathlib, sys, time
there = pathlib.Path({there!r})
(there / str(os.getpid())).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
until = time.monotonic() + 120
while len(list(there.iterdir())) < 2:
    if time.monotonic() > until: sys.exit("alone")
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_jobs_are_spread_over_the_nodes(tmp_path: Path, api) -> None:
    """Each node has one GPU: the first two jobs, which wait for each other, can only end on both."""
    pytest.importorskip("ray", reason="the extra `cluster` is not installed here")
    import ray
    from ray.cluster_utils import Cluster

    (tmp_path / "there").mkdir()
    (tmp_path / "job.py").write_text(MEET.format(there=str(tmp_path / "there")))
    command = [sys.executable, str(tmp_path / "job.py")]
    jobs = [flows.Job(f"job{i}", command) for i in range(3)]
    jobs.append(flows.Job("broken", [sys.executable, "-c", "raise SystemExit('out of memory')"]))
    handler = signal.getsignal(signal.SIGTERM)  # a cluster of this process puts its own there
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        cluster.add_node(num_cpus=1, num_gpus=1)
        assert flows.fan_out("jobs", jobs, tmp_path, Jobs(devices=None, cluster=cluster.address)) == ["broken"]
    finally:
        ray.shutdown()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)
    assert [path.read_text() for path in (tmp_path / "there").iterdir()] == ["0", "0", "0"]
    tasks = {run.name: run.state for run in api.read_task_runs()}
    assert tasks["job0"].is_completed() and "out of memory" in tasks["broken"].message
