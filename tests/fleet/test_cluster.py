"""A Dask scheduler with workers that are processes, one of which is killed in the middle of a conversion."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from deadly import Deadly
from distributed import LocalCluster
from makers import GOLDEN, HEADS, tree

import converter
from converter.errors import UsageError
from converter.fleet import chosen_executor, executors

Cli = Callable[..., Any]
STATED = {"num_attention_heads": HEADS}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    size: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(**size, dashboard_address=None) as cluster,
    ):
        yield cluster


@pytest.mark.slow
def test_a_worker_killed_while_it_writes_costs_one_more_try(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    pairs = [(str(GOLDEN / "sigma-ms.pth"), str(tmp_path / f"t{i}")) for i in range(4)]
    deadly = Deadly(tmp_path / "seen", {"t1": 1, "t2": 99})
    with cluster.get_client() as client:
        outcomes = converter.convert_all(pairs, None, STATED, components=deadly, executor=client)
    assert [outcome.status for outcome in outcomes] == ["converted", "converted", "failed", "converted"]
    assert outcomes[2].exit_code == 5
    words = "its worker died 2 times: a crash, or too little memory"
    assert outcomes[2].words == f"{pairs[2][0]}: {words}"
    (alone,) = converter.convert_all([(pairs[0][0], str(tmp_path / "alone"))], None, STATED)
    for i in (0, 1, 3):
        assert tree(tmp_path / f"t{i}") == tree(Path(alone.pair.converted))
    assert not (tmp_path / "t2").exists()


def test_the_command(cluster: LocalCluster, tmp_path: Path, cli: Cli) -> None:
    call = [GOLDEN / "sigma-ms.pth", GOLDEN / "alpha-ms.pth", tmp_path / "none.pth", f"{tmp_path}/{{stem}}"]
    call += ["--num_attention_heads", HEADS, "--cluster", cluster.scheduler_address]
    done = cli("convert-pixart", *call)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "summary: 2 converted, 0 unchanged, 1 failed"
    assert done.stderr == f"convert-pixart: error: {tmp_path}/none.pth: No such file or directory\n"
    assert cli("convert-pixart", *call).stdout.splitlines()[-1] == "summary: 0 converted, 2 unchanged, 1 failed"
    compared = cli("pixart", "parity", tmp_path / "none.pth", tmp_path / "sigma-ms", *call[-2:])
    assert compared.returncode == 3
    assert compared.stderr == f"pixart: error: {tmp_path}/none.pth: No such file or directory\n"


def test_as_an_executor(cluster: LocalCluster, tmp_path: Path) -> None:
    """What is asked twice is done twice, and not remembered."""
    pairs = [(str(GOLDEN / "sigma-ms.pth"), str(tmp_path / "out"))]
    with cluster.get_client() as client, client.get_executor() as executor:
        for status in ("converted", "unchanged"):
            (outcome,) = converter.convert_all(pairs, None, STATED, executor=executor)
            assert outcome.status == status


@pytest.mark.parametrize("address", ["", "foo://10.0.0.1:1", "no address", "tcp://"])
def test_what_is_no_address(address: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("convert-pixart", GOLDEN / "sigma-ms.pth", tmp_path / "out", "--cluster", address)
    rule = f"--cluster {address}: not the address of a Dask scheduler, such as tcp://HOST:8786"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"convert-pixart: error: {rule}\n")


def test_where_no_scheduler_answers(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "CONNECT", 0.5)
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = cli("convert-pixart", GOLDEN / "sigma-ms.pth", tmp_path / "out", "--cluster", address)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith(f"convert-pixart: error: --cluster {address}: no Dask scheduler answers there (")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.errors.find_spec", lambda module: None)
    with (
        pytest.raises(UsageError, match=r"`cluster` needs distributed: pip install 'convert-pixart\[cluster\]'"),
        chosen_executor(None, "tcp://127.0.0.1:1"),
    ):
        pass
