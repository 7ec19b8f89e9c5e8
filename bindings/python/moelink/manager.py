"""All-to-all managers: dispatch and combine."""

from array import array

from . import _moelink as c
from .group import set_fields
from .rows import Rows, row_array

_ID_BYTES = {c.MOELINK_DTYPE_I32: 4, c.MOELINK_DTYPE_I64: 8}


class Received:
    """Where a dispatch put its rows: addresses of the library's memory, good until the slot's combine."""

    def __init__(self, raw, payloads):
        self.ranks = raw.ranks
        self.slots_per_rank = raw.slots_per_rank
        self.row_capacity = raw.row_capacity
        self.payloads = payloads
        self.topk_ids = raw.topk_ids
        self.topk_weights = raw.topk_weights
        self.recv_counts = raw.recv_counts
        self.local_experts = raw.local_experts
        self.rank_offsets = raw.rank_offsets
        self.expert_counts = raw.expert_counts
        self.expert_offsets = raw.expert_offsets
        self.row_sources = raw.row_sources
        self.row_weights = raw.row_weights


class Manager:
    """One all-to-all over one group; one thread at a time may use it. A context manager; close() may be called again."""

    def __init__(self, group, kind=c.MOELINK_MANAGER_ONE_SIDED, mapping=None):
        self._handle = None
        self._rounds = {}
        self._handle = c.moelink_manager_create(group.handle, kind, mapping)

    @property
    def handle(self):
        """For functions of moelink.c."""
        if self._handle is None:
            raise ValueError("the manager is closed")
        return self._handle

    @property
    def state(self):
        """MOELINK_STATE_*"""
        return c.moelink_manager_state_of(self.handle)[0]

    @property
    def generation(self):
        return c.moelink_manager_state_of(self.handle)[1]

    @property
    def sizes(self):
        return c.moelink_manager_sizes_of(self.handle)

    def init(self, payload_row_bytes, **fields):
        """Allocates the workspace. Keywords: fields of moelink_manager_config. Collective."""
        self._configure(c.moelink_manager_init, payload_row_bytes, fields)

    def ensure(self, payload_row_bytes, **fields):
        """Makes sure that the workspace covers the config. Collective when it has to grow."""
        self._configure(c.moelink_manager_ensure, payload_row_bytes, fields)

    def reinit(self, payload_row_bytes, **fields):
        """Replaces the workspace, whatever the state. Collective."""
        self._configure(c.moelink_manager_reinit, payload_row_bytes, fields)

    def _configure(self, call, payload_row_bytes, fields):
        row_bytes = array("Q", payload_row_bytes)
        config = c.moelink_manager_config()
        set_fields(config, fields)
        config.payload_row_bytes = row_bytes
        config.payload_count = len(row_bytes)
        call(self.handle, config)
        self._top_k = config.top_k

    def dispatch(self, topk_ids, num_tokens, payloads, topk_weights=None, stream=None, **fields):
        """Sends each token to the ranks of its experts; gives a Received. Keywords: further fields of
        moelink_dispatch_args. On CUDA the memory must live until the stream has passed the call. Collective."""
        args = c.moelink_dispatch_args()
        set_fields(args, fields)
        Rows(topk_ids, self._top_k * _ID_BYTES.get(args.topk_ids_dtype, 4)).require(num_tokens)
        Rows(topk_weights, self._top_k * 4).require(num_tokens)
        for rows in payloads:
            rows.require(num_tokens)
        sent = row_array(payloads)
        places = row_array([Rows(None, 0)] * len(payloads))
        args.num_tokens = num_tokens
        args.topk_ids = topk_ids
        args.topk_weights = topk_weights
        args.payloads = sent.cast()
        args.payload_count = len(payloads)
        out = c.moelink_dispatched()
        out.payloads = places.cast()
        c.moelink_dispatch(self.handle, args, stream, out)
        self._rounds[args.slot] = num_tokens, out.row_capacity
        return Received(out, [Rows.of(places[at]) for at in range(len(payloads))])

    def counts(self, slot=0, ranks=None, experts=None, timeout_ns=0):
        """Rows in use of the slot's last dispatch. `ranks` and `experts`: None, or writable memory for as many 64-bit counts."""
        return c.moelink_dispatch_counts(self.handle, slot, timeout_ns, ranks, experts)

    def combine(self, input, output, slot=0, stream=None, **fields):
        """Adds for each token of the slot's dispatch the rows of its ranks. Collective."""
        tokens, capacity = self._rounds.get(slot, (0, 0))
        input.require(capacity)
        output.require(tokens, writable=True)
        args = c.moelink_combine_args()
        set_fields(args, fields)
        args.slot = slot
        input.fill(args.input)
        output.fill(args.output)
        c.moelink_combine(self.handle, args, stream)

    def cleanup(self):
        """Frees the workspace."""
        c.moelink_manager_cleanup(self.handle)

    def close(self):
        handle, self._handle = self._handle, None
        if handle is not None:
            c.moelink_manager_destroy(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()
