"""A task that was accepted ends once and is billed once, in its turn."""

import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select

from lora_runtime.backends.bfl_words import Status
from lora_runtime.errors import OutOfCredits, TooManyTasks
from lora_runtime.registry.accounts import Accounts
from lora_runtime.server.claims import LEASE_S, Claims
from lora_runtime.server.tasks import KEPT_S, MAX_ATTEMPTS, RESULT_TTL_S, NewTask, Task, Tasks
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.storage.rows import DeliveryRow, TaskRow
from lora_runtime.values import LoraRef, Reference, RenderRequest

REQUEST = RenderRequest(
    weights="pocket", precision="fp32", prompt="a cat", seed=2**32 - 1, width=64, height=80, steps=4, guidance=1.0
)


class Clock:
    """Seconds since 1970, as a test wants them."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tasks(database: Database, clock: Clock) -> Tasks:
    return Tasks(database, max_active=24, clock=clock)


def new_task(organization: str = "acme", **fields: str | None) -> NewTask:
    return NewTask(
        organization=organization,
        endpoint="flux-2-klein-pocket",
        request=REQUEST,
        millicredits=1400,
        output_format="png",
        base_url="http://127.0.0.1",
        **fields,
    )


def claim(tasks: Tasks) -> Task:
    (task,) = tasks.claim()
    return task


def test_a_task_comes_back_as_it_was_submitted(tasks: Tasks, tmp_path: Path) -> None:
    lora = LoraRef(name="acme/x", path=tmp_path / "x.safetensors", sha256="ab" * 32, trigger_phrase="TOK")
    reference = Reference(sha256="cd" * 32, path=tmp_path / "r.reference")
    request = replace(REQUEST, lora=lora, strength=Decimal("0.70"), references=(reference,))
    new = replace(new_task(lora_blob="x.safetensors", webhook_url="http://x/", webhook_secret="s"), request=request)
    task = tasks.find(tasks.submit(new))
    assert task is not None
    assert task.request == request
    assert {name: getattr(task, name) for name in new.__dataclass_fields__} == vars(new)
    assert (task.status, task.attempts) == (Status.PENDING, 0)
    assert tasks.needed_blobs() == {"x.safetensors", "r.reference"}
    assert tasks.find("another") is None


def test_a_task_ends_once_and_is_billed_once(tasks: Tasks, database: Database, clock: Clock) -> None:
    task_id = tasks.submit(new_task())
    task = claim(tasks)
    assert task.id == task_id
    assert not tasks.claim()
    clock.now += 3
    assert tasks.finish(task, blob="b.png", started=clock.now - 2)
    assert not tasks.finish(task, blob="c.png", started=clock.now)
    assert not tasks.fail(task, Status.ERROR, {})
    done = tasks.find(task_id)
    assert done is not None
    assert (done.status, done.result_blob) == (Status.READY, "b.png")
    assert (done.started, done.ended, done.expires) == (clock.now - 2, clock.now, clock.now + RESULT_TTL_S)
    assert Accounts(database).spent("acme") == (1, Decimal("1.4"))


def test_what_is_rendered_here_or_has_ended_is_known_without_the_database(
    tasks: Tasks, database: Database, clock: Clock
) -> None:
    task_id = tasks.submit(new_task())
    assert tasks.recall(task_id) is None
    task = claim(tasks)
    assert tasks.recall(task_id) == task
    tasks.finish(task, blob="b.png", started=clock.now)
    assert tasks.recall(task_id) is None
    done = tasks.find(task_id)
    assert done is not None
    assert tasks.recall(task_id) == done
    assert Tasks(database, max_active=24).recall(task_id) is None
    clock.now += RESULT_TTL_S
    assert (tasks.recall(task_id), tasks.find(task_id)) == (None, None)


def test_processes_that_claim_at_once_take_each_task_once(database: Database) -> None:
    processes = [Tasks(database, max_active=24) for _ in range(4)]
    submitted = {processes[0].submit(new_task()) for _ in range(20)}
    taken: list[str] = []

    def work(own: Tasks) -> None:
        while claimed := own.claim(3):
            taken.extend(task.id for task in claimed)
            assert all(own.finish(task, blob="b.png", started=0.0) for task in claimed)

    threads = [threading.Thread(target=work, args=(own,)) for own in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), set(taken)) == (20, submitted)
    assert Accounts(database).spent("acme")[0] == 20


def test_a_failed_task_is_not_billed(tasks: Tasks, database: Database) -> None:
    task_id = tasks.submit(new_task())
    assert tasks.fail(claim(tasks), Status.CONTENT_MODERATED, {"Moderation Reasons": ["NSFW"]})
    ended = tasks.find(task_id)
    assert ended is not None
    assert (ended.status, ended.details) == (Status.CONTENT_MODERATED, {"Moderation Reasons": ["NSFW"]})
    assert Accounts(database).spent("acme") == (0, Decimal(0))


@pytest.mark.parametrize("most", [1, 2, 4, 6])
def test_in_order_within_an_organization_and_in_turns_between_them(tasks: Tasks, clock: Clock, most: int) -> None:
    names = {}
    for name in ("a1", "a2", "a3", "z1", "z2", "t1"):
        organization = {"a": "acme", "z": "zenith", "t": "third"}[name[0]]
        names[tasks.submit(new_task(organization))] = name
    order = []
    while claimed := tasks.claim(most):
        clock.now += 1
        order += [names[task.id] for task in claimed]
    assert order == ["a1", "z1", "t1", "a2", "z2", "a3"]


def test_the_tasks_of_a_killed_process_are_claimed_again(database: Database, clock: Clock) -> None:
    killed, heir = (Tasks(database, max_active=24, clock=clock) for _ in range(2))
    task_id = killed.submit(new_task())
    stale = claim(killed)
    clock.now += LEASE_S - 1
    killed.renew()
    clock.now += LEASE_S - 1
    assert not heir.claim()
    clock.now += 1
    again = claim(heir)
    assert (again.id, again.attempts) == (task_id, 0), "it had not begun to render"
    # The first one was not dead, only slow: it comes too late.
    assert not killed.finish(stale, blob="late.png", started=0.0)
    assert heir.finish(again, blob="b.png", started=0.0)
    assert Accounts(database).spent("acme")[0] == 1


def test_what_is_held_here_is_not_claimed_twice_however_slow_it_is(tasks: Tasks, clock: Clock) -> None:
    tasks.submit(new_task())
    claim(tasks)
    clock.now += 10 * LEASE_S
    assert not tasks.claim()


def test_what_is_submitted_at_the_same_time_is_accepted_up_to_the_limit_and_the_credits(
    database: Database, tasks: Tasks
) -> None:
    Accounts(database).add_credits("zenith", Decimal("7.0"))  # five of them
    ids: list[str] = []
    refused: list[type[Exception]] = []
    together = threading.Barrier(40)

    def submit(organization: str) -> None:
        together.wait()
        try:
            ids.append(tasks.submit(new_task(organization)))
        except (TooManyTasks, OutOfCredits) as error:
            refused.append(type(error))

    threads = [threading.Thread(target=submit, args=(name,)) for name in ["acme"] * 30 + ["zenith"] * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tasks.active("acme"), tasks.active("zenith")) == (24, 5)
    assert (refused.count(TooManyTasks), refused.count(OutOfCredits)) == (6, 5)
    assert all(tasks.find(task_id) is not None for task_id in ids)
    assert len(set(ids)) == 29


def test_the_claims_of_a_process_of_this_machine_that_has_gone_are_free_at_once(
    database: Database, tasks: Tasks
) -> None:
    task_id = tasks.submit(new_task())
    program = "import sys; from tests.server.test_tasks import die_with_a_claim; die_with_a_claim(sys.argv[1])"
    url = database.engine.url.render_as_string(hide_password=False)
    assert subprocess.run([sys.executable, "-c", program, url], check=False).returncode == -signal.SIGKILL
    assert claim(tasks).id == task_id


def die_with_a_claim(url: str) -> None:
    """Claim what there is, at the time of `Clock`, and be killed."""
    assert Tasks(Database(url), max_active=24, clock=Clock()).claim()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_clock_that_steps_back_does_not_stretch_the_claim_of_a_process_that_is_gone(
    database: Database, clock: Clock
) -> None:
    ticks = Clock()
    killed, heir = (Tasks(database, max_active=24, clock=clock, claims=Claims(ticks=ticks)) for _ in range(2))
    task_id = killed.submit(new_task())
    claim(killed)
    clock.now -= 3600
    for _ in range(3):  # it still lives, and says so
        assert not heir.claim()
        ticks.now += LEASE_S - 1
        clock.now += LEASE_S - 1
        killed.renew()
    assert not heir.claim()
    ticks.now += LEASE_S
    assert claim(heir).id == task_id


def test_a_task_that_was_let_go_counts_no_attempt(tasks: Tasks, clock: Clock) -> None:
    tasks.submit(new_task())
    for _ in range(MAX_ATTEMPTS + 3):
        task = claim(tasks)
        tasks.begin(task)
        tasks.let_go(task)
    tasks.let_go(claim(tasks), wait_s=5.0)
    assert not tasks.claim()
    clock.now += 5.0
    assert claim(tasks).attempts == 0


def test_a_task_that_only_waited_in_killed_processes_is_never_given_up(database: Database, clock: Clock) -> None:
    Tasks(database, max_active=24, clock=clock).submit(new_task())
    for _ in range(50):
        assert claim(Tasks(database, max_active=24, clock=clock)).attempts == 0
        clock.now += LEASE_S


def test_a_task_that_kills_every_process_is_given_up_after_longer_and_longer_waits(
    database: Database, clock: Clock
) -> None:
    tasks = Tasks(database, max_active=24, clock=clock)
    task_id = tasks.submit(new_task())
    task: Task | None = claim(tasks)
    waits = []
    while task is not None:
        tasks.begin(task)
        died, task, tasks = clock.now, None, Tasks(database, max_active=24, clock=clock)
        while task is None and tasks.active("acme"):
            clock.now += LEASE_S
            task = next(iter(tasks.claim()), None)
        waits.append((clock.now - died) / LEASE_S)
    assert waits == [1, 3, 7, 13, 21, 31]
    assert len(waits) == MAX_ATTEMPTS
    ended = tasks.find(task_id)
    assert ended is not None
    assert (ended.status, ended.details) == (
        Status.ERROR, {"error": "The server stopped 6 times while it rendered this."},
    )  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_thirty_kills_under_load_lose_double_and_give_up_nothing(database: Database, clock: Clock, seed: int) -> None:
    """Each life takes sixteen tasks, begins half of them, finishes some and dies; one that died with its process goes
    alone, as the workers do it."""
    pick, submitted = random.Random(seed), []
    for _ in range(30):
        life = Tasks(database, max_active=1000, clock=clock)
        submitted += [life.submit(new_task()) for _ in range(pick.randint(0, 6))]
        held = []
        while len(held) < 16 and (claimed := life.claim(16 - len(held))):
            held += claimed
            if held[-1].attempts:
                break
        begun = held[-1:] if held and held[-1].attempts else held[:8]
        for task in begun:
            life.begin(task)
        for task in begun[: pick.randint(0, len(begun))]:
            assert life.finish(task, blob=f"{task.id}.png", started=clock.now)
        clock.now += pick.uniform(1, 30)
    last = Tasks(database, max_active=1000, clock=clock)
    while last.active("acme"):
        clock.now += LEASE_S
        while claimed := last.claim(5):
            for task in claimed:
                last.begin(task)
                assert last.finish(task, blob=f"{task.id}.png", started=clock.now)
    with database.session() as session:
        statuses = session.scalars(select(TaskRow.status)).all()
    assert statuses == [Status.READY] * len(submitted)
    assert Accounts(database).spent("acme")[0] == len(submitted) > 50


def test_active_tasks_are_limited_for_each_organization(tasks: Tasks) -> None:
    for _ in range(24):
        tasks.submit(new_task())
    claim(tasks)
    with pytest.raises(TooManyTasks, match="24 tasks of acme are active") as caught:
        tasks.submit(new_task())
    assert caught.value.retry_after_s == 1.0
    waits = []
    for _ in range(100):
        with pytest.raises(TooManyTasks) as caught:
            tasks.require_room("acme")
        waits.append(caught.value.retry_after_s)
    assert (waits[0], waits[-1]) == (pytest.approx(1.02), pytest.approx(3.0)), "fifty of them ask again in a second"
    tasks.submit(new_task("zenith"))
    tasks.finish(claim(tasks), blob="b", started=0.0)
    assert tasks.active("acme") + tasks.active("zenith") == 24


def test_credits_pay_for_what_is_under_way_too(tasks: Tasks, database: Database) -> None:
    Accounts(database).add_credits("acme", Decimal(3))
    tasks.submit(new_task())
    first = claim(tasks)
    tasks.submit(new_task())
    with pytest.raises(OutOfCredits, match=r"costs 1\.4, and 0\.2 are left to acme"):
        tasks.submit(new_task())
    tasks.fail(first, Status.ERROR, {})
    tasks.submit(new_task())
    tasks.submit(new_task("zenith"))  # not metered


def test_a_result_expires_with_its_file(tasks: Tasks, clock: Clock, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    task_id = tasks.submit(new_task())
    blob = blobs.put(b"image", suffix=".png")
    tasks.finish(claim(tasks), blob=blob, started=clock.now)
    clock.now += RESULT_TTL_S - 1
    assert tasks.expire(blobs) == 0
    assert tasks.find(task_id) is not None
    clock.now += 1
    assert tasks.find(task_id) is None
    assert tasks.expire(blobs) == 1
    assert blob not in blobs
    assert tasks.expire(blobs) == 0


def test_old_tasks_are_forgotten_and_their_bill_is_not(
    tasks: Tasks, database: Database, clock: Clock, tmp_path: Path
) -> None:
    ended, waiting = (tasks.submit(new_task(webhook_url="http://x/")) for _ in range(2))
    tasks.finish(claim(tasks), blob="b.png", started=clock.now)
    clock.now += KEPT_S + 1
    tasks.forget_old()
    with database.session() as session:
        assert session.get(DeliveryRow, ended) is not None, "its file comes first"
    tasks.expire(Blobs(tmp_path / "blobs"))
    tasks.forget_old()
    with database.session() as session:
        assert session.get(DeliveryRow, ended) is None
    assert tasks.find(waiting) is not None
    assert Accounts(database).spent("acme")[0] == 1
