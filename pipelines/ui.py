"""`make ui`: MLflow's page on this machine, for the store that the runs of this checkout are recorded in.

One worker answers all requests: on a busy machine, MLflow's four end one another by a time-out.
"""

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from urllib.parse import urlencode

from pipelines import tracking
from pipelines.stage import run
from pipelines.views import VIEW


def addresses(server: str) -> list[str]:
    """A line per experiment of the store: its name, and the address of its runs. Others open MLflow's GenAI pages."""
    found = tracking.client().search_experiments(filter_string="name != 'Default'", order_by=["experiment_id"])
    width = max((len(experiment.name) for experiment in found), default=0)
    return [f"{e.name:{width}}  {server}/#/experiments/{e.experiment_id}/runs?{_query(e.tags)}" for e in found]


def _query(tags: Mapping[str, str]) -> str:
    view = {"viewStateShareKey": VIEW} if tracking.VIEW + VIEW in tags else {}
    return urlencode({"workflowType": "machine_learning"} | view)


def check_free(port: str) -> None:
    """Raises `ValueError` for a port on 127.0.0.1 that cannot be listened on."""
    try:
        socket.create_server(("127.0.0.1", int(port))).close()
    except (OSError, OverflowError, ValueError):
        raise ValueError(f"port {port}: taken, or no port: name another, such as make ui PORT=5001") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="5000", help="port on 127.0.0.1 (default: 5000)")
    port = parser.parse_args().port
    store = tracking.store_address()[0]
    remote = store.startswith("http")
    if not remote:
        check_free(port)
    print("Open the runs of:", *addresses(store if remote else f"http://127.0.0.1:{port}"), sep="\n", flush=True)
    if not remote:
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # of its chat pages: three more processes
        options = ["--host", "127.0.0.1", "--port", port, "--workers", "1", "--backend-store-uri", store]
        os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *options])


if __name__ == "__main__":
    run(main)
