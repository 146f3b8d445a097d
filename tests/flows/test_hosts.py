"""Several hosts: a scheduler, a store on S3, two workers, and the one where the command runs."""

import contextlib
import logging
import runpy
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from pixelmill.tasks.store import Store
from pixelmill.tasks.store.audit import audit_store
from pixelmill.tasks.store.backend import ObjectBackend

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_IMAGES, NUM_SHARDS = 48, 12
SCHEDULER, STORE, A, B, CLIENT = "scheduler", "store", "worker-a", "worker-b", "client"
HOSTS = (SCHEDULER, STORE, A, B, CLIENT)
# A connection on which nothing was heard for so long is dead to the scheduler: Dask takes no less
GIVEN_UP_S = 11
BRIEFLY_S = 3


@pytest.fixture(scope="module")
def hosts() -> SimpleNamespace:
    """hosts.py: tests are not a package."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hosts.py"))))


class Lab:
    """A cluster on five hosts, for one bucket after the other.

    Attributes:
        workers: the newest one of each host.
    """

    def __init__(self, network, objects, tell, launch, wait_for, **settings: str) -> None:
        self.network, self.objects, self.tell, self.wait_for = network, objects, tell, wait_for
        self._launch = launch
        self.environment = {"AWS_ENDPOINT_URL": objects.url}
        self.address = f"tcp://{network.hosts[SCHEDULER].address}:8786"
        self.scheduler = self._start(SCHEDULER, "scheduler", "--port", 8786, **settings)
        self.workers = {name: self.start_worker(name) for name in (A, B)}

    def start_worker(self, host: str):
        one = ("--nthreads", 1, "--memory-limit", 0, "--name", host)
        return self._start(host, "worker", self.address, *one, **self.environment)

    def _start(self, host: str, *arguments, **environment: str):
        before = self.network.hosts[host].before
        local = ("--dashboard-address", "127.0.0.1:0")
        return self._launch("dask", *arguments, *local, before=before, **environment)

    def in_work(self, host: str) -> set[str]:
        """Shards that a host has begun and nobody has committed."""
        begun = {shard for shard, by in self.objects.attempts() if by == host}
        return begun - {shard for shard, _ in self.objects.commits()}

    def hold_in_a_shard(self, host: str) -> str:
        """Have a host wait in the next shard that it begins, and return that."""
        self.objects.hold(host)
        self.wait_for(
            lambda: self.objects.is_waiting(host) and len(self.in_work(host)) == 1,
            f"shard of {host}",
        )
        return self.in_work(host).pop()


@pytest.fixture(scope="module")
def lab(hosts, launch, s3_server, wait_for):
    requests = logging.getLogger("werkzeug")
    with contextlib.ExitStack() as stack:
        stack.callback(requests.setLevel, requests.level)
        requests.setLevel(logging.WARNING)
        try:
            network = hosts.Network(HOSTS)
        except OSError as err:
            pytest.skip(f"no network namespaces here: {err}")
        stack.callback(network.close)
        tell = hosts.Diary()
        listening = network.hosts[STORE].listen(9000)
        objects = hosts.ObjectStore(listening, network.hosts.values(), tell)
        stack.callback(objects.close)
        settings = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{GIVEN_UP_S}s"}
        yield Lab(network, objects, tell, launch, wait_for, **settings)


@pytest.fixture
def score(launch_score, images, s3_root):
    """The command, on a host of its own, from a bucket to a bucket."""

    def score(lab: Lab):
        lab.objects.requests.clear()
        bucket = s3_root.rpartition("/")[0]
        for path in images.iterdir():
            ObjectBackend(bucket).put(f"camera/{path.name}", path.read_bytes())
        lab.tell(f"{NUM_IMAGES} images in {NUM_SHARDS} shards")
        there = {"before": lab.network.hosts[CLIENT].before, **lab.environment}
        run = launch_score(f"{bucket}/camera", s3_root, "--scheduler", lab.address, **there)

        def have_committed() -> bool:
            assert run.is_running(), run.stderr()
            return {host for _, host in lab.objects.commits()} == {A, B}

        lab.wait_for(have_committed, "commit of each worker")
        return run

    return score


@pytest.fixture
def assert_all_is_there(s3_root, reference, assert_same_predictions):
    """Every image is scored, by one commit, and the store is sound."""

    def check(lab: Lab) -> None:
        committed = Counter(shard for shard, _ in lab.objects.commits())
        assert len(committed) == committed.total() == NUM_SHARDS
        assert_same_predictions(s3_root, reference)
        store = Store(s3_root)
        (run_id,) = store.runs()
        end = store.run_end(run_id)
        assert end is not None
        assert end.state == "complete"
        assert {n.scored + n.scored_empty for n in end.ledger.values()} == {NUM_IMAGES}
        assert not audit_store(store, grace_s=0).of("damage")

    return check


def test_a_host_that_is_cut_off_briefly_keeps_its_shards(lab, score, assert_all_is_there):
    run = score(lab)
    lab.objects.hold(A)  # what is left has to last
    network = lab.network
    for what, cut, heal in (
        ("all", (network.cut, B), (network.heal, B)),
        ("the store", (network.cut_between, B, STORE), (network.heal_between, B, STORE)),
    ):
        shard = lab.hold_in_a_shard(B)
        lab.tell(f"{B} is cut off from {what}, in {shard}")
        cut[0](*cut[1:])
        lab.objects.let_go(B)
        time.sleep(BRIEFLY_S)
        heal[0](*heal[1:])
        lab.tell("and is back")
        lab.wait_for(lambda shard=shard: (shard, B) in lab.objects.commits(), f"commit of {shard}")
    lab.objects.let_go(A)
    assert run.wait() == 0, run.stderr()
    lab.tell("exit code 0")
    assert "Traceback" not in run.stderr()
    attempts = Counter(shard for shard, _ in lab.objects.attempts())
    assert len(attempts) == attempts.total() == NUM_SHARDS, "a shard was begun again"
    assert all(worker.is_running() for worker in lab.workers.values())
    assert_all_is_there(lab)


def test_a_host_that_was_given_up_comes_back_and_doubles_nothing(lab, score, assert_all_is_there):
    lab.network.resend_within(1)
    objects, tell = lab.objects, lab.tell
    run = score(lab)
    shard = lab.hold_in_a_shard(B)
    tell(f"{B} is cut off in {shard}")
    lab.network.cut(B)
    objects.let_go(B)
    objects.hold(A)  # what is left has to last until worker-b is back
    told = len(lab.scheduler.stderr())
    lab.wait_for(lambda: "Remove worker" in lab.scheduler.stderr()[told:], "end of Dask's patience")
    tell(f"the scheduler has given {B} up")
    objects.let_go(A)
    lab.wait_for(lambda: (shard, A) in objects.commits(), f"commit of {shard} by {A}")
    objects.hold(A)
    lab.network.heal(B)
    tell(f"{B} is back")
    lab.wait_for(lambda: not lab.workers[B].is_running(), f"end of the worker on {B}")
    tell("its worker has ended; it is started again, as a service manager does")
    done = len(objects.commits())
    lab.workers[B] = lab.start_worker(B)
    lab.wait_for(lambda: B in {host for _, host in objects.commits()[done:]}, f"commit by {B}")
    objects.let_go(A)
    assert run.wait() == 0, run.stderr()
    tell("exit code 0")
    assert "Traceback" not in run.stderr()
    assert [host for each, host in objects.attempts() if each == shard] == [B, A]
    assert_all_is_there(lab)
