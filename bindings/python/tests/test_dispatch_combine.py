"""A group of threads on the host device, one dispatch and one combine, every value checked."""

import ctypes
import gc
import math
import os
import re
import struct
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import moelink
import pytest
from moelink import c

RANKS = 2
EXPERTS = 5  # not divisible by the ranks: rank 0 owns 0..3, rank 1 owns 3..5
TOP_K = 2
HIDDEN = 7
INVALID_ID = -7
OWNER = {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}
# Ids of every rank's tokens: different counts, one token for both ranks, one for nobody, ids masked or out of range.
IDS = [[(0, 3), (1, 2), (4, -1), (-1, -1), (EXPERTS, 2)], [(4, 3), (2, 4), (0, 1)]]


def value(rank, token, column):
    return rank * 1000 + token * 10 + column * 0.125


def ranks_of(ids):
    return {OWNER[one] for one in ids if one in OWNER}


def row_of(rank, token, times=1):
    return struct.pack(f"{HIDDEN}f", *(value(rank, token, column) * times for column in range(HIDDEN)))


def on_threads(groups, run):
    """Runs each rank on a thread of its own and reports every rank's error."""
    def one(group):
        with group:
            return run(group)

    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(one, group) for group in groups]
    errors = [f"rank {rank}: {future.exception()!r}" for rank, future in enumerate(futures) if future.exception()]
    assert not errors, "\n".join(errors)
    return [future.result() for future in futures]


def host_groups(size):
    return moelink.Group.threads(size, device=c.MOELINK_DEVICE_HOST, timeout_ns=20 * 10**9)


def check_received(rank, got):
    assert (got.ranks, got.row_capacity) == (RANKS, RANKS * got.slots_per_rank)
    payload = got.payloads[0]
    for source, tokens in enumerate(IDS):
        sent = [token for token, ids in enumerate(tokens) if rank in ranks_of(ids)]
        count, = struct.unpack("i", ctypes.string_at(got.recv_counts + 4 * source, 4))
        assert count == len(sent), f"rows from {source}"
        for slot in range(got.slots_per_rank):
            row = source * got.slots_per_rank + slot
            ids = struct.unpack(f"{TOP_K}i", ctypes.string_at(got.topk_ids + row * TOP_K * 4, TOP_K * 4))
            if slot < len(sent):
                assert ids == tuple(one if OWNER.get(one) == rank else INVALID_ID for one in tokens[sent[slot]])
                data = ctypes.string_at(payload.data + row * payload.row_stride, payload.row_bytes)
                assert data == row_of(source, sent[slot]), f"row {row}"
            else:
                assert ids == (INVALID_ID,) * TOP_K, f"ids of row {row}"


def ids_of(rank):
    return array("i", [one for ids in IDS[rank] for one in ids])


def check_experts(manager, rank, ids, sent, tokens):
    """One row for each (token, k) with an expert here, the experts' at multiples of 4."""
    load = array("q", [0] * EXPERTS)
    got = manager.dispatch(ids, tokens, [sent], layout=c.MOELINK_LAYOUT_EXPERT_MAJOR, alignment=4, load_counts=load)
    local = [expert for expert in range(EXPERTS) if OWNER[expert] == rank]
    assert got.local_experts == len(local)
    by_rank, by_expert = array("q", [0] * RANKS), array("q", [0] * len(local))
    end = manager.counts(ranks=by_rank, experts=by_expert)
    first = 0
    for number, expert in enumerate(local):
        named = [(source, token) for source in range(RANKS) for token, row in enumerate(IDS[source]) for one in row if one == expert]
        assert by_expert[number] == len(named)
        for row, (source, token) in enumerate(named, first):
            assert struct.unpack("3i", ctypes.string_at(got.row_sources + 12 * row, 12))[:2] == (source, token)
            at = got.payloads[0].data + row * got.payloads[0].row_stride
            assert ctypes.string_at(at, got.payloads[0].row_bytes) == row_of(source, token), f"row {row}"
        first += -len(named) // 4 * -4
    assert first == end
    assert list(load) == [sum(one == expert for one in ids) for expert in range(EXPERTS)]
    c.moelink_manager_abandon(manager.handle, 0)


def run_rank(group):
    rank = group.rank
    tokens = len(IDS[rank])
    with moelink.Manager(group, c.MOELINK_MANAGER_ONE_SIDED) as manager:
        assert (manager.state, manager.generation) == (c.MOELINK_STATE_CREATED, 0)
        manager.init([HIDDEN * 4], max_tokens=8, top_k=TOP_K, num_experts=EXPERTS, combine_row_bytes=HIDDEN * 4,
                     layouts=1 << c.MOELINK_LAYOUT_EXPERT_MAJOR, alignment=4)
        assert (manager.state, manager.generation) == (c.MOELINK_STATE_READY, 1)
        assert manager.sizes.workspace_bytes > 0
        ids = array("i", [one for ids in IDS[rank] for one in ids])
        sent = moelink.Rows(b"".join(row_of(rank, token) for token in range(tokens)), HIDDEN * 4, c.MOELINK_DTYPE_F32)
        got = manager.dispatch(ids, tokens, [sent], invalid_id=INVALID_ID)
        check_received(rank, got)
        assert manager.state == c.MOELINK_STATE_DISPATCHED

        received = got.payloads[0]
        received.dtype = c.MOELINK_DTYPE_F32
        output = array("f", [math.nan] * (tokens * HIDDEN))
        manager.combine(received, moelink.Rows(output, HIDDEN * 4, c.MOELINK_DTYPE_F32))
        for token, ids in enumerate(IDS[rank]):
            row = output[token * HIDDEN:(token + 1) * HIDDEN]
            assert row.tobytes() == row_of(rank, token, len(ranks_of(ids))), f"token {token}"
        check_experts(manager, rank, ids_of(rank), sent, tokens)
        manager.cleanup()
        assert manager.state == c.MOELINK_STATE_CREATED
    group.finalize()
    return rank


def test_two_ranks_dispatch_and_combine():
    print("moelink", moelink.version_string())
    assert on_threads(host_groups(RANKS), run_rank) == [0, 1]


def test_groups_gather_split_and_broadcast():
    def run(group):
        assert group.allgather(bytes([group.rank, 7])) == bytes([0, 7, 1, 7, 2, 7])
        data = bytearray([group.rank] * 3)
        group.broadcast(data, 2)
        assert data == bytes([2, 2, 2])
        part = group.split(group.rank if group.rank == 1 else -1)
        assert (part.size if part else None) == (1 if group.rank == 1 else None)
        group.finalize()

    on_threads(host_groups(3), run)


def test_errors_carry_status_and_text():
    with pytest.raises(moelink.CallError, match="-3") as caught:
        moelink.Group.threads(-3)
    assert caught.value.status == c.MOELINK_ERR_INVALID_ARGUMENT
    assert caught.value.status_name == "MOELINK_ERR_INVALID_ARGUMENT"
    assert isinstance(caught.value, moelink.Error)

    group, = host_groups(1)
    with pytest.raises(moelink.Error, match="99"):
        moelink.Manager(group, 99)
    manager = moelink.Manager(group)
    with pytest.raises(moelink.CallError) as caught:
        manager.init([4], top_k=33, num_experts=4)
    assert caught.value.status == c.MOELINK_ERR_INVALID_ARGUMENT
    assert (manager.state, manager.generation) == (c.MOELINK_STATE_CREATED, 0)
    manager.close()
    manager.close()
    with pytest.raises(ValueError, match="closed"):
        manager.cleanup()
    group.close()


def test_objects_end_in_any_order():
    group, = host_groups(1)
    manager = moelink.Manager(group)
    group.close()
    group.close()
    manager.init([4], max_tokens=4, top_k=1, num_experts=1, combine_row_bytes=4)
    assert manager.state == c.MOELINK_STATE_READY
    del group
    gc.collect()
    manager.cleanup()
    del manager
    gc.collect()


def test_bad_memory_is_refused_before_the_call():
    group, = host_groups(1)
    with group, moelink.Manager(group) as manager:
        manager.init([4], max_tokens=4, top_k=1, num_experts=1, combine_row_bytes=4)
        ids = array("i", [0, 0])
        with pytest.raises(ValueError, match="need 8 bytes; the buffer has 4"):
            manager.dispatch(ids, 2, [moelink.Rows(bytes(4), 4)])
        with pytest.raises(ValueError, match="need 12 bytes; the buffer has 8"):
            manager.dispatch(ids, 3, [moelink.Rows(bytes(12), 4)])
        with pytest.raises(TypeError, match="no field 'invalid'"):
            manager.dispatch(ids, 2, [], invalid=1)
        with pytest.raises(TypeError, match="buffer protocol"):
            manager.dispatch(ids, 2, [moelink.Rows(bytes(8), 4)], stream="x")
        manager.dispatch(ids, 2, [moelink.Rows(bytes(8), 4)])
        place = moelink.Rows(bytearray(8), 4, c.MOELINK_DTYPE_F32)
        rows = moelink.Rows(bytes(16), 4, c.MOELINK_DTYPE_F32)
        with pytest.raises(ValueError, match="read-only"):
            manager.combine(rows, moelink.Rows(bytes(8), 4))
        with pytest.raises(ValueError, match="need 8 bytes; the buffer has 4"):
            manager.combine(rows, moelink.Rows(bytearray(4), 4))
        with pytest.raises(ValueError, match="need 16 bytes; the buffer has 8"):
            manager.combine(moelink.Rows(bytes(8), 4), place)
        manager.combine(rows, place)


def test_a_group_over_the_callers_allgather():
    group = moelink.Group.create_with(lambda mine, timeout_ns: mine, 0, 1, device=c.MOELINK_DEVICE_HOST)
    assert (group.rank, group.size) == (0, 1)
    group.close()

    def fails(mine, timeout_ns):
        raise KeyError("no transport")

    with pytest.raises(KeyError, match="no transport"):
        moelink.Group.create_with(fails, 0, 2, device=c.MOELINK_DEVICE_HOST)


def test_every_struct_starts_with_its_size():
    structs = [made for made in vars(c).values() if isinstance(made, type) and hasattr(made, "struct_size")]
    assert len(structs) >= 11
    for one in structs:
        assert one().struct_size > 0, one.__name__


def test_everything_in_the_headers_is_in_the_module():
    headers = Path(os.environ["MOELINK_INCLUDE_DIR"], "moelink")
    text = "".join(path.read_text() for path in headers.glob("*.h"))
    functions = set(re.findall(r"MOELINK_API [^;(]*?(moelink_\w+)\(", text))
    constants = set(re.findall(r"^ +(MOELINK_\w+) = ", text, re.MULTILINE))
    assert len(functions) > 50 and len(constants) > 50
    # Classes call the functions that fill structs; callables take the place of the bootstrap struct.
    missing = {name for name in functions | constants if not hasattr(c, name) and not name.endswith("_init")}
    assert not missing
    assert hasattr(c, "moelink_manager_init")


def test_experts_are_planned_saved_and_routed(tmp_path):
    shape = c.moelink_eplb_shape()
    shape.layers, shape.experts, shape.slots, shape.ranks = 1, 4, 6, 2
    params = c.moelink_eplb_plan_params()
    load = array("d", [90, 10, 80, 20])
    params.load = load
    result = c.moelink_eplb_plan_result()
    layers = c.moelink_eplb_layer_results(1)
    result.layers = layers.cast()
    plan = array("i", [-2] * 6)
    c.moelink_eplb_plan(shape, params, plan, result)
    assert sorted(plan) == [0, 0, 1, 2, 2, 3] and {*plan[:3]} & {*plan[3:]} == {0, 2}
    assert result.balance_after == layers[0].balance_after == 1 or result.balance_after > 0.9
    params.previous = plan
    load[0] = -1
    with pytest.raises(moelink.Error, match="-1"):
        c.moelink_eplb_plan(shape, params, plan, result)

    path = str(tmp_path / "plan")
    c.moelink_eplb_plan_save(path, shape, plan)
    again = array("i", [0] * 6)
    read = c.moelink_eplb_plan_load(path, again, len(again))
    assert again == plan and (read.experts, read.slots, read.ranks) == (4, 6, 2)

    trace = c.moelink_eplb_trace_create(1, 4)
    c.moelink_eplb_trace_append(trace, "first", array("d", [1, 2, 3, 4]))
    assert c.moelink_eplb_trace_sizes(trace) == (1, 1, 4)
    assert c.moelink_eplb_trace_step(trace, 0)[0] == "first"
    c.moelink_eplb_trace_destroy(trace)

    with moelink.Group.create_with(lambda mine, timeout_ns: mine, 0, 1, device=c.MOELINK_DEVICE_HOST) as group:
        placed = c.moelink_eplb_map_create(group.handle, shape, plan)
        args = c.moelink_eplb_route_args()
        ids, slots, counts = array("i", [0, 1, 2, -1]), array("i", [0] * 4), array("q", [0] * 6)
        args.num_tokens, args.top_k = 2, 2
        args.logical_ids, args.physical_ids, args.slot_counts = ids, slots, counts
        c.moelink_eplb_route(placed, args, None)
        assert [plan[slot] if slot >= 0 else -1 for slot in slots] == list(ids) and sum(counts) == 3
        window = c.moelink_eplb_load_create(group.handle, 2)
        assert c.moelink_eplb_load_add(window, placed) == 0
        c.moelink_eplb_load_record(window, 0, counts, c.MOELINK_EPLB_LOAD_F_CLEAR, None)
        report = c.moelink_eplb_load_report()
        loads = array("d", [0] * 4)
        report.expert_load = loads
        c.moelink_eplb_load_reduce(window, 0, 1, None, report)
        assert list(loads) == [1, 1, 1, 0] and sum(counts) == 0
        c.moelink_eplb_load_destroy(window)
        c.moelink_eplb_map_destroy(placed)


def test_descriptions_are_texts_and_structs():
    status, text = c.moelink_manager_kind_describe(c.MOELINK_MANAGER_ONE_SIDED, c.MOELINK_DEVICE_HOST)
    assert status == c.MOELINK_OK and text
    mapping = c.moelink_mapping()
    mapping.dp, mapping.tp, mapping.rank = 4, 2, 5
    info = c.moelink_mapping_describe(mapping, 8)
    assert (info.ep_size, info.dp_rank, info.tp_rank) == (8, 2, 1)
    with pytest.raises(moelink.CallError, match="(?s)8.*9|9.*8"):
        c.moelink_mapping_describe(mapping, 9)
    params = c.moelink_group_params()
    params.socket_dir = "/somewhere"
    params.socket_dir = "/elsewhere"
    assert params.socket_dir == "/elsewhere"


def test_log_messages_reach_a_callable():
    messages = []
    moelink.log_to(lambda level, text: messages.append((level, text)))
    before = c.moelink_log_level_of()
    c.moelink_log_set_level(c.MOELINK_LOG_TRACE)
    try:
        on_threads(host_groups(2), lambda group: group.finalize())
    finally:
        c.moelink_log_set_level(before)
        moelink.log_to(None)
    assert all(level > 0 and text for level, text in messages)
    with pytest.raises(TypeError):
        moelink.log_to("not callable")


def test_version_matches_the_headers():
    assert moelink.version() == c.MOELINK_VERSION
    text = f"{c.MOELINK_VERSION_MAJOR}.{c.MOELINK_VERSION_MINOR}.{c.MOELINK_VERSION_PATCH}"
    assert moelink.version_string().startswith(text)
