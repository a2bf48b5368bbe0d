"""A training of the tiny ATD in a process of its own: `train_worker.py STORE FOLDER CHANGES`, CHANGES in JSON.

For the tests that kill it, or start several by torchrun. UPSR_TEST_DIE="RANK STEP": that process kills itself before
the step, the first time.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from test_training import Run, atd_objective


def main() -> None:
    torch.set_num_threads(1)
    run = Run(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
    objective = atd_objective(run.params, run.pool)
    rank, when = map(int, os.environ.get("UPSR_TEST_DIE", "-1 -1").split())
    draw = objective.draw

    def draw_or_die(hr, seed, first):
        if seed[1] == when and os.environ.get("RANK") == str(rank) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(hr, seed, first)

    objective.draw = draw_or_die
    run(objective=objective)


if __name__ == "__main__":
    main()
