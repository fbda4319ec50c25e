"""Compiled code is loaded only from a folder that nobody else can write to, and only whole; else there is no cache."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import cache_folder
from export.files.cache_folder import NoCache, private_cache, private_folder
from runtime_py.system.jit_cache import WholeFiles
from tests.runtime_py.system.test_jit_cache import BASE, make, run

needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
KEYS = (("f", 1), ("f", 2))


def give(path: Path, mode: int | None = None) -> None:
    os.chown(path, 4444, 4444, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)


def test_a_private_folder_is_made(tmp_path):
    before = os.umask(0)
    try:
        made = private_folder(tmp_path / "a" / "b" / "kernels")
    finally:
        os.umask(before)
    assert made.is_dir() and {p.stat().st_mode & 0o777 for p in (made, *made.parents[:2])} == {0o700}
    assert private_folder(made) == made


@needs_root
@pytest.mark.parametrize("owned", ["kernels", "cache"])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_nothing_of_another_user_is_used(owned, mode, tmp_path):
    place = tmp_path / "cache" / "kernels"
    place.mkdir(parents=True)
    give(place if owned == "kernels" else place.parent, mode)
    with pytest.raises(NoCache, match="belongs to another user"):
        private_folder(place)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o770])
def test_a_folder_above_that_others_can_write_to(mode, tmp_path):
    place = tmp_path / "shared" / "mine" / "kernels"
    place.mkdir(parents=True, mode=0o700)
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(NoCache, match="shared: others can write into it"):
        private_folder(place)
    (tmp_path / "shared").chmod(mode | 0o1000)  # as /tmp: others cannot rename what is mine
    assert private_folder(place) == place


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_what_others_could_have_put_there_is_thrown_away(mode, tmp_path):
    place = tmp_path / "kernels"
    (place / "module-0").mkdir(parents=True)
    (place / "module-0" / "planted.nbi").write_bytes(b"x")
    (place / "link").symlink_to(tmp_path)
    (tmp_path / "kept").write_text("x")
    place.chmod(mode)
    private_folder(place)
    assert list(place.iterdir()) == [] and place.stat().st_mode & 0o777 == 0o700 and (tmp_path / "kept").exists()


def test_a_readable_folder_of_an_earlier_version_keeps_its_content(tmp_path):
    (tmp_path / "kernels" / "module-0").mkdir(parents=True)
    (tmp_path / "kernels").chmod(0o755)
    private_folder(tmp_path / "kernels")
    assert (tmp_path / "kernels" / "module-0").exists()


@needs_root
def test_a_link_of_another_user(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("mine")
    assert private_folder(tmp_path / "link" / "kernels") == tmp_path / "mine" / "kernels"
    give(tmp_path / "link")
    with pytest.raises(NoCache, match="link: belongs to another user"):
        private_folder(tmp_path / "link" / "kernels")


def test_a_file_in_the_place(tmp_path):
    (tmp_path / "kernels").write_text("x")
    with pytest.raises((NoCache, OSError)):
        private_folder(tmp_path / "kernels")


@pytest.fixture
def environment(monkeypatch):
    for name in ("ATHENA_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    private_cache.cache_clear()
    yield monkeypatch
    private_cache.cache_clear()


@pytest.mark.parametrize("name", ["ATHENA_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_the_users_own_choice(name, environment, tmp_path):
    environment.setenv(name, str(tmp_path))
    assert tmp_path in private_cache("kernels").parents


@pytest.mark.parametrize("name", ["ATHENA_CACHE_DIR", "NUMBA_CACHE_DIR", "HOME"])
@pytest.mark.parametrize("value", [".", "cache", "../cache"])
def test_no_cache_is_taken_from_the_current_folder(name, value, environment, tmp_path):
    environment.chdir(tmp_path)
    environment.setenv(name, value)
    with pytest.raises(NoCache, match="must be an absolute path"):
        private_cache("kernels")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_standard_folder_does_not_count(environment, tmp_path):
    environment.setenv("XDG_CACHE_HOME", "here")
    environment.setenv("HOME", str(tmp_path))
    assert private_cache("kernels") == tmp_path / ".cache" / "athena-export" / "kernels"


@pytest.mark.parametrize("home", ["/proc/nope", "/dev/null", None])
def test_without_a_home_there_is_no_cache_and_no_shared_one(home, environment, tmp_path):
    def missing():
        raise RuntimeError("Could not determine home directory.")

    if home is None:
        environment.setattr(cache_folder.Path, "home", missing)
    else:
        environment.setenv("HOME", home)
    environment.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(NoCache):
        private_cache("kernels")
    assert list(tmp_path.iterdir()) == []
    environment.setenv("ATHENA_CACHE_DIR", str(tmp_path / "own"))  # which needs no home
    private_cache.cache_clear()
    assert private_cache("kernels") == tmp_path / "own" / "kernels"


# Entries


def stored(folder: Path) -> WholeFiles:
    found = WholeFiles(str(folder), "f-1.py311", "stamp")
    for key in KEYS:
        found.save(key, [key, bytes(range(256)) * 100])
    return found


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("RAN",))


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "truncated": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "half zero": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "zeros within": lambda data: data[: len(data) // 2] + bytes(16) + data[len(data) // 2 + 16 :],
    "all zero": lambda data: bytes(len(data)),
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "longer": lambda data: data + b"x",
    "another pickle": lambda data: pickle.dumps(Payload()),
    "Numba's own form": lambda data: data[32:],
}


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_a_damaged_entry_counts_as_absent_and_is_made_again(case, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = stored(tmp_path / "k") if (tmp_path / "k").mkdir() is None else None
    assert files is not None and all(files.load(key)[0] == key for key in KEYS)
    for path in (tmp_path / "k").glob(kind):
        path.write_bytes(DAMAGES[case](path.read_bytes()))
    assert [files.load(key) for key in KEYS] == [None, None]
    assert not (tmp_path / "RAN").exists()
    assert all(stored(tmp_path / "k").load(key)[0] == key for key in KEYS)


def test_another_version_and_other_sources_count_as_absent(tmp_path, monkeypatch):
    files = stored(tmp_path)
    assert WholeFiles(str(tmp_path), "f-1.py311", "other").load(KEYS[0]) is None
    monkeypatch.setattr("numba.__version__", "0.0.1")
    assert files.load(KEYS[0]) is None


def test_two_processes_that_take_the_same_name_do_not_swap_their_code(tmp_path):
    one, other = (WholeFiles(str(tmp_path), "f-1.py311", "stamp") for _ in range(2))
    one.save(KEYS[0], "first")
    index = (tmp_path / "f-1.py311.nbi").read_bytes()
    (tmp_path / "f-1.py311.nbi").unlink()
    other.save(KEYS[1], "second")  # it has not seen the first one's index, and takes the same name
    (tmp_path / "f-1.py311.nbi").write_bytes(index)
    assert one.load(KEYS[0]) is None
    one.save(KEYS[0], "first")
    assert one.load(KEYS[0]) == "first"


def test_whole_programs_run_with_damaged_entries_and_without_a_cache(tmp_path):
    root = make(tmp_path / "root")
    assert run(root) == [*BASE, 0, 0]
    found = sorted(p for p in (root / "cache").rglob("*.nb?"))
    for number, path in enumerate(found):
        path.write_bytes(list(DAMAGES.values())[number % len(DAMAGES)](path.read_bytes()))
    assert run(root) == [*BASE, 0, 0]
    assert run(root) == [*BASE, 1, 1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "ATHENA"))}
    done = subprocess.run(
        [sys.executable, "-c", "from runtime_py.engine.kernel import answer; print(answer(10))"], cwd=root,
        env={**kept, "PYTHONPATH": str(root), "HOME": "/proc/nope", "XDG_CACHE_HOME": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{BASE[0]}\n"
    assert len(done.stderr.splitlines()) == 1 and "compiled kernels are not kept" in done.stderr


def test_no_room_for_kernels(tmp_path):
    root, disk = make(tmp_path / "root"), tmp_path / "root" / "cache"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        subprocess.run(["chmod", "755", str(disk)], check=True)
        assert run(root) == [*BASE, 0, 0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


CONFIGS = {
    "locator": "cache_locator_classes: UserProvidedCacheLocator\ncache_dir: .\n",
    "any class": "cache_locator_classes: this.x\n",
    "broken": "a: [",
    "a list": "- a\n",
    "other values": "opt: 0\ndisable_jit: 1\nboundscheck: 1\n",
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("package", ["runtime_py.simd", "runtime_py.reference.compiled", "hw_model.functional.rap"])
def test_numba_takes_nothing_from_the_current_folder(case, package, tmp_path):
    (tmp_path / ".numba_config.yaml").write_text(CONFIGS[case])
    program = f"""
import yaml, {package}, numba
from numba.core import config
f = numba.njit(lambda x: x + 1)
print(f(1), repr(config.CACHE_LOCATOR_CLASSES), repr(config.CACHE_DIR))
print(int(config.OPT), config.DISABLE_JIT, yaml.safe_load("1"))
"""
    root = Path(cache_folder.__file__).parents[2]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**kept, "PYTHONPATH": str(root), "NUMBA_OPT": "2"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "''", "''", "2", "0", "1"], done.stderr
    assert done.stderr == ""
