"""Files of records: each row whole or absent, whoever writes, and whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
from support import warm

from attention_transfer.cache.in_use import is_in_use
from attention_transfer.cache.records import HEADER, Records, file_size
from attention_transfer.errors import AttentionTransferError, CacheError

pytestmark = pytest.mark.speed


def rows_of(sizes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, size, dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("sizes", [[7] * 5, [3, 0, 11, 4096, 1], [2] * 4])
def test_what_was_written_is_read_again_and_what_was_not_is_absent(tmp_path, sizes):
    contents = rows_of(sizes)
    records = Records.create(tmp_path / "a.maps", "one", sizes, data="digits")
    records.write([0, 2], [contents[0], contents[2]])
    again = Records(tmp_path / "a.maps", "one")
    assert again.present().tolist() == [True, False, True] + [False] * (len(sizes) - 3)
    assert np.array_equal(again.read(0), contents[0])
    assert np.array_equal(again.read(2), contents[2])
    assert again.read(1) is None
    assert again.about["data"] == "digits"
    assert [again.size_of(row) for row in range(len(again))] == sizes


def test_a_file_has_all_its_blocks_from_the_start(tmp_path):
    records = Records.create(tmp_path / "a.maps", "one", [1 << 20] * 8)
    status = records.path.stat()
    assert status.st_size == file_size([1 << 20] * 8)
    assert status.st_blocks * 512 >= status.st_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.maps"]


def test_rows_that_are_there_are_left_alone(tmp_path):
    first, second = rows_of([64], seed=1), rows_of([64], seed=2)
    records = Records.create(tmp_path / "a.maps", "one", [64])
    assert records.write([0], first) == 1
    assert records.write([0], second) == 0
    assert np.array_equal(records.read(0), first[0])


def test_every_flipped_bit_makes_a_row_absent_and_it_can_be_written_again(tmp_path):
    contents = rows_of([16, 16])
    path = tmp_path / "a.maps"
    records = Records.create(path, "one", [16, 16])
    records.write([0, 1], contents)
    whole = path.read_bytes()
    for bit in range(8 * 16):
        damaged = bytearray(whole)
        damaged[len(whole) - 16 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert records.read(1) is None
        assert records.damaged() == [1]
        assert np.array_equal(records.read(0), contents[0])
    assert records.write([0, 1], contents) == 1
    assert np.array_equal(records.read(1), contents[1])


def test_rows_of_one_size_are_read_at_once_and_absent_and_damaged_ones_are_zeros(tmp_path):
    contents = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    with Records.create(tmp_path / "rows", "key", [24] * 4) as records:
        records.write([0, 1, 3], contents[[0, 1, 3]].view(np.uint8))
        records._rows[24] ^= 1
        read, found = records.read_equal(np.array([3, 0, 1, 2]), np.float32)
        assert found.tolist() == [True, True, False, False]
        assert np.array_equal(read, [contents[3], contents[0], np.zeros(6), np.zeros(6)])
        assert records.read_equal(np.array([], np.int64), np.float32)[0].shape == (0, 6)
    with pytest.raises(CacheError, match="closed"):
        records.read_equal(np.array([0]), np.float32)


def test_a_row_that_stands_in_anothers_place_is_absent(tmp_path):
    contents = rows_of([32])[0]
    records = Records.create(tmp_path / "a.maps", "one", [32, 32])
    records.write([0], [contents])
    raw = bytearray(records.path.read_bytes())
    raw[HEADER + 4 : HEADER + 8] = raw[HEADER : HEADER + 4]
    raw[-32:] = raw[-64:-32]
    records.path.write_bytes(raw)
    assert records.read(0) is not None
    assert records.read(1) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"PK" + raw[2:], "no file of records, or damaged"),
        (lambda raw: raw[:-1], "cut short"),
        (lambda raw: raw[:100], "no file of records, or damaged|cut short"),
        (lambda raw: b"", "no file of records, or damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_its_path_and_what_to_do(tmp_path, damage, message):
    path = Records.create(tmp_path / "a.maps", "one", [8] * 3).path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CacheError, match=message) as raised:
        Records(path, "one")
    assert str(path) in str(raised.value)
    assert "remove it" in str(raised.value)


def test_a_file_of_another_identity_or_none_at_all_is_refused(tmp_path):
    Records.create(tmp_path / "a.maps", "one", [8])
    with pytest.raises(CacheError, match="another identity"):
        Records(tmp_path / "a.maps", "two")
    with pytest.raises(AttentionTransferError, match=r"b\.maps cannot be read"):
        Records(tmp_path / "b.maps", "one")


def test_a_file_that_nobody_may_write_is_read_only(tmp_path):
    contents = rows_of([8])
    records = Records.create(tmp_path / "a.maps", "one", [8, 8])
    records.write([0], contents)
    records.path.chmod(0o444)
    reader = Records(records.path, "one")
    assert records.is_writable
    assert not reader.is_writable
    assert np.array_equal(reader.read(0), contents[0])


def test_it_is_sent_to_another_process_as_its_path_alone(tmp_path):
    contents = rows_of([1 << 20])
    records = Records.create(tmp_path / "a.maps", "one", [1 << 20])
    records.write([0], contents)
    parcel = pickle.dumps(records)
    assert len(parcel) < 1000
    assert np.array_equal(pickle.loads(parcel).read(0), contents[0])


def write_all(path, seed):
    records = Records(path, "one")
    for row in np.random.default_rng(seed).permutation(len(records)).tolist():
        records.write([row], [np.full(512, row % 251, np.uint8)])


@pytest.mark.slow
def test_several_processes_fill_one_file_at_a_time(tmp_path):
    records = Records.create(tmp_path / "a.maps", "one", [512] * 400)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=write_all, args=(records.path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert records.present().all()
    assert not records.damaged()
    assert all(records.read(row)[0] == row % 251 for row in range(400))


WRITER = """
import sys, numpy as np
from attention_transfer.cache.records import Records
records = Records(sys.argv[1], "one")
print("ready", flush=True)
while True:
    for row in range(len(records)):
        records.write([row], [np.full(200_000, row % 251, np.uint8)])
    records.clear()
"""


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.01, 0.03])
def test_after_a_kill_at_any_moment_each_row_is_whole_or_absent(tmp_path, seconds):
    records = Records.create(tmp_path / "a.maps", "one", [200_000] * 20)
    writer = warm.Program("-c", WRITER, records.path)
    assert writer.stdout.readline() == "ready\n"
    time.sleep(seconds)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    for row in range(20):
        content = records.read(row)
        assert content is None or (content == row % 251).all()
    records.write(range(20), [np.full(200_000, row % 251, np.uint8) for row in range(20)])
    assert all((records.read(row) == row % 251).all() for row in range(20))


LIMITED = """
import resource, sys
from attention_transfer.cache.records import Records
from attention_transfer.errors import CacheError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    Records.create(sys.argv[1], "one", [1 << 20] * 4)
except CacheError as error:
    print(error)
"""


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path):
    done = warm.run("-c", LIMITED, tmp_path / "a.maps")
    assert "needs 4 MB for 4 records" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full(tmp_path):
    """An open file of two rows that are there."""
    records = Records.create(tmp_path / "a.maps", "one", [32, 32])
    records.write([0, 1], [np.full(32, row + 1, np.uint8) for row in range(2)])
    return records


def test_a_closed_file_is_not_in_use_and_nothing_can_be_read_from_it(full):
    assert is_in_use(full.path)
    full.close()
    full.close()
    assert not is_in_use(full.path)
    for use in (lambda: full.read(0), full.present, full.clear, lambda: full.write([0], [np.zeros(32, np.uint8)])):
        with pytest.raises(CacheError, match=r"a\.maps is closed; open it anew"):
            use()
    with Records(full.path, "one") as again:
        assert (again.read(1) == 2).all()
    assert again.is_closed


def test_what_was_read_outlives_the_file(full):
    content = full.read(1)
    full.write([0], [np.zeros(32, np.uint8)])
    full.clear()
    full.close()
    full.path.unlink()
    assert (content == 2).all()
    content[:] = 0


def test_a_closed_file_is_not_opened_again_where_it_is_sent(full):
    full.close()
    assert pickle.loads(pickle.dumps(full)).is_closed


def test_a_file_that_is_refused_is_not_in_use_while_the_error_is_kept(full):
    full.close()
    os.truncate(full.path, full.path.stat().st_size - 8)
    with pytest.raises(CacheError, match="cut short") as kept:
        Records(full.path, "one")
    assert kept.value.__traceback__ is not None
    assert not is_in_use(full.path)


def test_a_process_that_was_forked_meanwhile_neither_keeps_the_mark_nor_takes_it_away(full):
    fork = multiprocessing.get_context("fork")
    closes, stays = fork.Process(target=full.close), fork.Process(target=time.sleep, args=(60,))
    closes.start()
    closes.join()
    assert closes.exitcode == 0
    assert is_in_use(full.path)
    stays.start()
    full.close()
    assert not is_in_use(full.path)
    stays.kill()
    stays.join()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_and_fills_a_file_that_is_sent_to_it(full, method):
    full.forget([0])
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert (pool.apply(full.read, (1,)) == 2).all()
        assert pool.apply(full.write, ([0], [np.full(32, 7, np.uint8)])) == 1
    assert (full.read(0) == 7).all()
