"""The process of a contender: one line of JSON for each line that it reads.

`ready` comes by itself once the contender is built; `score` plays a round, `results PATH` writes
what the last one found; the end of the input ends it.
"""

import json
import os
import pickle
import sys
import time
from pathlib import Path

from pixelbench.contenders import CONTENDERS, Setting
from pixelbench.workloads import Workload


def main(kind_name: str, workload_path: str, part: str, device: str, scratch: str) -> None:
    """Serve one contender until the input ends."""
    # What libraries print is not ours to parse
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kind = CONTENDERS[kind_name]
    workload = Workload.load(Path(workload_path))
    workload = workload.variant(kind.variant)
    setting = Setting(
        workload=workload,
        paths=kind.parts(workload.paths)[int(part)],
        num_cores=kind.num_cores // kind.num_processes,
        device=device,
        scratch=Path(scratch),
    )
    contender = kind.build(setting)
    print(json.dumps({"ready": True}), file=replies)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "results":
            Path(argument).write_bytes(pickle.dumps(contender.results()))
            print(json.dumps({"written": argument}), file=replies)
            continue
        started = time.monotonic()
        inside = contender.score()
        ended = time.monotonic()
        print(json.dumps({"started": started, "ended": ended} | inside), file=replies)
    contender.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
