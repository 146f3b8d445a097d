"""Workers, publishers and compactors that are killed at random, for test_chaos.py.

    python chaos_worker.py ROOT SECONDS SEED

forks groups of processes that score shards, publish and compact, each of which kills itself
(SIGKILL) before or after a file system call now and then, and is killed from outside in the end.
Prints the number of kills. Forking after the imports makes a new worker cost milliseconds.
"""

import os
import random
import signal
import sys
import time

import fakes

from pixelmill.tasks.store import Store, publish, swap
from pixelmill.tasks.store.compact import compact

KILL_CHANCE = 0.0015
NUM_SCORERS, NUM_PUBLISHERS = 3, 2
GROUP_SECONDS = 3.0


def deadly(call, chance):
    def wrapped(*args, **kwargs):
        if chance.random() < KILL_CHANCE:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if chance.random() < KILL_CHANCE:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def score(root, chance):
    store = Store(root)
    shards = [(run, k) for run in map(store.run, store.runs()) for k in range(run.num_shards)]
    # Not only what is missing: two workers on one shard, or one on a committed shard, must not hurt
    chance.shuffle(shards)
    todo = [(r, k) for r, k in shards if k not in store.committed_shards(r.run_id)]
    for run, index in (todo + shards)[:12]:
        fakes.score_shard(store, run, index)


def publish_often(root, chance):
    while True:
        publish(Store(root))
        time.sleep(chance.random() / 10)


def compact_often(root, chance):
    while True:
        compact(Store(root))
        time.sleep(chance.random() / 5)


def spawn(work, root, seed):
    child = os.fork()
    if child == 0:
        chance = random.Random(seed)
        for name in ("link", "replace", "rename", "fsync"):
            setattr(os, name, deadly(getattr(os, name), chance))
        swap._exchange = deadly(swap._exchange, chance)
        try:
            work(root, chance)
        except BaseException as err:
            print("ERROR", repr(err), flush=True)
            os._exit(1)
        os._exit(0)
    return child


def main(root, seconds, seed):
    kills, deadline = 0, time.monotonic() + seconds
    seeds = random.Random(seed)
    while time.monotonic() < deadline:
        work = [score] * NUM_SCORERS + [publish_often] * NUM_PUBLISHERS + [compact_often]
        children = {spawn(job, root, seeds.random()) for job in work}
        until = time.monotonic() + GROUP_SECONDS * seeds.random()
        while children and time.monotonic() < until:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                children.discard(child)
                kills += os.WIFSIGNALED(status)
            else:
                time.sleep(0.01)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
    print(kills)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
