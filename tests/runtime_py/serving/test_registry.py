"""Which models are loaded: who leaves, who waits, and that no request ever loses its model."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export.contract.errors import InputError
from runtime_py.serving.models.registry import Model, Registry
from runtime_py.serving.operating.logs import Log
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.requests.errors import ApiError


class Fake:
    """A service of so many bytes that knows whether it is open."""

    adapters: tuple[str, ...] = ()

    def __init__(self, world: World, name: str, memory: int) -> None:
        self.world, self.name, self._memory = world, name, memory
        self.closed = False
        world.open.append(self)
        world.most = max(world.most, sum(one.most_bytes() for one in world.open))

    def handlers(self):
        return {}

    def details(self):
        return {"max_model_len": 7}

    def load(self):
        return (0, 0)

    def guesses(self):
        return (7, 3)

    def alive(self):
        return True

    def most_bytes(self) -> int:
        return self._memory

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.world.open.remove(self)


class Slow(ThreadPoolExecutor):
    """A thread that begins late, as on a busy machine: much can happen before a model is closed."""

    def submit(self, work, /, *arguments):
        def late():
            time.sleep(0.005)
            return work(*arguments)

        return super().submit(late)


class World:
    """A registry of fake models, and what happened to them."""

    def __init__(self, limit: int | None, queue: int = 1000, **sizes: int) -> None:
        self.open: list[Fake] = []
        self.most = 0
        self.broken: set[str] = set()
        self.sizes = sizes
        models = [Model(name, Path(f"/secret/{name}"), lambda name=name: self._open(name)) for name in sizes]
        self.metrics = Metrics()
        self.registry = Registry(models, self.metrics, Log(), limit, queue)
        self.registry._thread = Slow(1)

    def _open(self, name: str) -> Fake:
        if name in self.broken:
            raise InputError(f"/secret/{name}/model.onnx: this file is missing")
        return Fake(self, name, self.sizes[name])

    async def use(self, name: str, seconds: float = 0.0, patience: float = 20.0) -> str:
        never = asyncio.get_running_loop().create_future()
        async with self.registry.held(self.registry.resolve(name), never, patience) as service:
            assert not service.closed and service.name == name and service in self.open
            await asyncio.sleep(seconds)
            assert not service.closed  # whatever others asked for meanwhile
            return service.name


def run(world: World, work):
    async def main():
        try:
            return await work
        finally:
            world.registry.close()

    return asyncio.run(main())


def loaded(world: World) -> set[str]:
    return {one.name for one in world.open}


def test_as_many_stay_as_fit_and_all_are_opened_once():
    world = World(5, a=2, b=3, c=1)
    world.registry.open_all()
    assert loaded(world) == {"a", "b"}
    assert {name: state.memory for name, state in world.registry.states().items()} == {"a": 2, "b": 3, "c": 1}


def test_the_least_recently_used_leaves():
    world = World(4, a=2, b=2, c=2)
    world.registry.open_all()

    async def work():
        await world.use("b")
        await world.use("a")
        await world.use("c")
        return loaded(world)

    assert run(world, work()) == {"a", "c"}
    assert world.most <= 6  # open_all looks at the third before it leaves


def test_a_model_that_cannot_fit_is_refused_in_one_line():
    world = World(4, a=2, b=5)
    with pytest.raises(InputError, match=r"^b takes up to 0\.0 MB .*--memory allows.*--sessions") as error:
        world.registry.open_all()
    assert "\n" not in str(error.value)
    assert loaded(world) == {"a"}


def test_unknown_names_are_told_what_there_is():
    world = World(None, a=1, b=1)
    for name in ("c", "../a", "a/..", "a/", "/a", "A", "", "a\0", "x" * 100_000, "%2e%2e"):
        with pytest.raises(ApiError, match="this server has 'a', 'b'") as error:
            world.registry.resolve(name)
        assert error.value.status == 404 and len(error.value.message) < 400
    with pytest.raises(ApiError, match="model is needed") as error:
        world.registry.resolve(None)
    assert error.value.status == 400
    assert World(None, a=1).registry.resolve(None).name == "a"


def test_100_switches_between_3_models_where_one_fits_lose_nothing():
    world, random_ = World(1, a=1, b=1, c=1), random.Random(3)
    world.registry.open_all()
    world.most = 0

    async def one(name: str) -> str:
        await asyncio.sleep(random_.random() * 0.3)
        return await world.use(name, random_.random() * 0.02)

    async def work():
        names = [random_.choice("abc") for _ in range(100)]
        assert await asyncio.gather(*map(one, names)) == names

    run(world, work())
    assert world.most == 1  # never two at a time
    loads = sum(world.metrics.loads.labels(name)._value.get() for name in "abc")
    assert 3 <= loads < 100  # a switch is shared by those who wait for it


def test_a_busy_model_runs_dry_for_one_that_is_waited_for():
    world = World(1, a=1, b=1)
    world.registry.open_all()
    ended = False

    async def busy() -> int:
        count = 0
        while not ended:
            await world.use("a", 0.005)
            count += 1
        return count

    async def work():
        nonlocal ended
        crowd = [asyncio.ensure_future(busy()) for _ in range(5)]
        await asyncio.sleep(0.05)
        await asyncio.wait_for(world.use("b"), 60)  # although somebody holds a at every moment
        ended = True
        return await asyncio.gather(*crowd)

    assert min(run(world, work())) > 0


def test_who_leaves_the_queue_holds_nothing():
    world = World(1, a=1, b=1)
    world.registry.open_all()

    async def work():
        gone = asyncio.get_running_loop().create_future()
        slow = asyncio.ensure_future(world.use("a", 0.2))
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="time limit") as error:
            await world.use("b", patience=0.05)
        assert error.value.status == 504
        cancelled = asyncio.ensure_future(world.use("b"))
        asyncio.get_running_loop().call_later(0.02, gone.set_result, None)
        async with world.registry.held(world.registry.resolve("b"), gone, 5) as service:
            assert service is None
        cancelled.cancel()
        await slow
        assert await world.use("a") == "a"  # nobody wants b any more, so a stays
        assert all(model.holders == 0 and not model.waiting for model in world.registry._models.values())
        return world.metrics.evictions.labels("a")._value.get()

    assert run(world, work()) == 0


def test_a_folder_that_is_gone_is_a_503_and_may_come_back():
    world = World(1, a=1, b=1)
    world.registry.open_all()

    async def work():
        world.broken.add("b")
        for _ in range(2):
            with pytest.raises(ApiError, match=r"'b' cannot be loaded now \(model.onnx: .* missing") as error:
                await world.use("b")
            assert error.value.status == 503 and error.value.retry_after
            assert "/secret" not in error.value.message
        assert await world.use("a") == "a"
        world.broken.clear()
        assert await world.use("b") == "b"
        world.sizes["a"] = 9
        with pytest.raises(ApiError, match="--memory allows"):
            await world.use("a")
        return await world.use("b")

    assert run(world, work()) == "b"


def test_the_queue_for_models_has_an_end():
    world = World(1, queue=2, a=1, b=1)
    world.registry.open_all()

    async def work():
        slow = asyncio.ensure_future(world.use("a", 0.1))
        await asyncio.sleep(0.01)
        waiting = [asyncio.ensure_future(world.use("b")) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError) as error:
            await world.use("b")
        assert error.value.status == 429
        return await asyncio.gather(slow, *waiting)

    assert run(world, work()) == ["a", "b", "b"]


def test_nobody_gets_a_model_that_is_about_to_be_closed():
    world = World(1, a=1, b=1)
    world.registry.open_all()

    async def work():
        first = asyncio.ensure_future(world.use("b"))
        await asyncio.sleep(0.001)  # a is idle, so it leaves; the thread that closes it has not begun
        return await asyncio.gather(first, world.use("a", 0.02))

    assert run(world, work()) == ["b", "a"]


def test_adapters_are_models_of_their_own(monkeypatch):
    monkeypatch.setattr(Fake, "adapters", ("red", "both"))
    world = World(None, a=1, b=1)
    world.registry.open_all()
    for model in world.registry._models.values():
        model.adapters = {"a": ("red", "both"), "b": ("both",)}[model.name]
    found = {name: world.registry.resolve(name).name for name in ("a", "b", "a:red", "b:both", "a:both", "red")}
    assert found == {"a": "a", "b": "b", "a:red": "a", "b:both": "b", "a:both": "a", "red": "a"}
    for name in ("both", "b:red", "a:", "a:red:red"):  # what two models have needs the model's name
        with pytest.raises(ApiError, match="this server has 'a', 'a:red', 'a:both', 'b', 'b:both'"):
            world.registry.resolve(name)
    world.registry.close()


def test_guesses_are_counted():
    world = World(None, a=1)
    world.registry.open_all()
    world.metrics.watch(world.registry.states, None, lambda: False)
    text = world.metrics.text().decode()
    assert 'athena_guessed_tokens_total{model="a"} 7.0' in text
    assert 'athena_guessed_tokens_accepted_total{model="a"} 3.0' in text
    world.registry.close()


def test_every_route_but_three_needs_the_key():
    from starlette.testclient import TestClient

    from runtime_py.serving.settings import ServeSettings
    from runtime_py.serving.shell import POSTED, Shell

    world = World(None, a=1)
    world.registry.open_all()
    shell = Shell(world.registry, ServeSettings(api_key="k"), world.metrics)
    with TestClient(shell.application(), raise_server_exceptions=False) as client:
        for path in (*POSTED, "/v1/models", "/v1/models/a", "/nothing"):
            assert client.post(path, json={}).status_code == 401, path
            assert client.post(path, json={}, headers={"Authorization": "Bearer k"}).status_code != 401
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
