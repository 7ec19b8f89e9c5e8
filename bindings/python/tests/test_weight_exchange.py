"""Experts' weights moved between two ranks on the host device: a communicator by itself, and a model rearranged in place."""

import ctypes
import struct
from array import array
from concurrent.futures import ThreadPoolExecutor

import moelink
import pytest
from moelink import c

RANKS, LAYERS, SLOTS, BYTES = 2, 2, 3, 24  # slots of a rank


def weights(layer, expert):
    return struct.pack("3d", layer, expert, layer * 100.5 + expert)


class Model:
    """One rank's slots: two tensors a layer, 8 and 16 bytes of each expert."""

    def __init__(self, rank):
        self.tensors = [[bytearray(SLOTS * size) for size in (8, 16)] for _ in range(LAYERS)]
        for layer in range(LAYERS):
            for slot in range(SLOTS):
                self.put(layer, slot, weights(layer, rank * SLOTS + slot))

    def put(self, layer, slot, data):
        first, second = self.tensors[layer]
        first[slot * 8:slot * 8 + 8], second[slot * 16:slot * 16 + 16] = data[:8], data[8:]

    def slot(self, layer, slot):
        first, second = self.tensors[layer]
        return bytes(first[slot * 8:slot * 8 + 8] + second[slot * 16:slot * 16 + 16])

    def register(self, comm):
        for layer, tensors in enumerate(self.tensors):
            both = c.moelink_eplb_tensor_array(2)
            for i, tensor in enumerate(tensors):
                one = c.moelink_eplb_tensor()
                one.base, one.rows, one.row_bytes = tensor, 1, len(tensor) // SLOTS
                both[i] = one
            c.moelink_eplb_comm_register(comm, layer, both.cast(), 2, SLOTS)


def on_threads(run):
    groups = moelink.Group.threads(RANKS, device=c.MOELINK_DEVICE_HOST, timeout_ns=20 * 10**9)
    with ThreadPoolExecutor(RANKS) as pool:
        futures = [pool.submit(run, group) for group in groups]
    errors = [f"rank {rank}: {future.exception()!r}" for rank, future in enumerate(futures) if future.exception()]
    for group in groups:
        group.close()
    assert not errors, "\n".join(errors)


def communicator(group, **fields):
    comm = c.moelink_eplb_comm_create(group.handle, c.MOELINK_EPLB_COMM_AUTO)
    params = c.moelink_eplb_comm_params()
    for name, value in fields.items():
        setattr(params, name, value)
    c.moelink_eplb_comm_init(comm, params)
    return comm


def test_one_round():
    def run(group):
        model, peer = Model(group.rank), 1 - group.rank
        comm = communicator(group, staging_experts=2)
        model.register(comm)
        c.moelink_eplb_comm_set_transfer_context(comm, array("i", range(RANKS * SLOTS)), RANKS * SLOTS, 1)
        c.moelink_eplb_comm_add_send(comm, None, 0, peer, group.rank * SLOTS)
        with pytest.raises(moelink.CallError, match="queued for rank"):
            c.moelink_eplb_comm_add_send(comm, None, 0, peer, group.rank * SLOTS)
        rows = c.moelink_rows_array(2)
        for i, size in enumerate((8, 16)):
            one = c.moelink_rows()
            one.data, one.row_bytes = memoryview(model.tensors[1][i])[2 * size:], size
            rows[i] = one
        c.moelink_eplb_comm_add_recv(comm, rows.cast(), 2, peer, peer * SLOTS)
        c.moelink_eplb_comm_execute(comm)
        assert model.slot(1, 2) == weights(1, peer * SLOTS)
        assert model.slot(0, 2) == weights(0, group.rank * SLOTS + 2)
        stats = c.moelink_eplb_comm_stats()
        c.moelink_eplb_comm_stats_of(comm, stats)
        assert (stats.rounds, stats.experts_received, stats.failed_rounds) == (1, 1, 0)
        group.barrier()
        c.moelink_eplb_comm_destroy(comm)

    on_threads(run)


def test_a_model_is_rearranged():
    old = array("i", list(range(RANKS * SLOTS)) * LAYERS)
    new = array("i", [3, 1, 0, 2, 4, 0] + [5, 4, 3, 2, 1, 0])  # expert 5 of layer 0 goes, expert 0 gets a second slot

    def run(group):
        model = Model(group.rank)
        comm = communicator(group)
        model.register(comm)
        shape = c.moelink_eplb_shape()
        shape.layers, shape.experts, shape.slots, shape.ranks = LAYERS, RANKS * SLOTS, RANKS * SLOTS, RANKS
        told = []

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int32))
        def committed(_user, layer, count, before, after):
            told.append((layer, before[:count], after[:count]))

        params = c.moelink_eplb_rearrange_params()
        params.old_map, params.new_map = old, new
        params.old_count = params.new_count = len(old)
        params.committed = ctypes.cast(committed, ctypes.c_void_p).value
        result = c.moelink_eplb_rearrange_result()
        in_force = array("i", [-2] * len(new))
        result.map = in_force
        c.moelink_eplb_rearrange(comm, shape, params, result)
        assert in_force == new and result.position == result.batches > 0 and result.open == 0
        for layer in range(LAYERS):
            mine = [layer * RANKS * SLOTS + group.rank * SLOTS + slot for slot in range(SLOTS)]
            assert [model.slot(layer, slot) for slot in range(SLOTS)] == [weights(layer, new[at]) for at in mine]
        first = [slice(layer * RANKS * SLOTS + group.rank * SLOTS, layer * RANKS * SLOTS + (group.rank + 1) * SLOTS) for layer in range(LAYERS)]
        assert told == [(layer, list(old[part]), list(new[part])) for layer, part in enumerate(first)]

        params.old_count = 3
        with pytest.raises(moelink.CallError, match="old_map"):
            c.moelink_eplb_rearrange(comm, shape, params, result)
        group.barrier()
        c.moelink_eplb_comm_destroy(comm)

    on_threads(run)
