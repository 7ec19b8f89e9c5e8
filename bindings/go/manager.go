package moelink

// #include <moelink/moelink.h>
import "C"

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"
)

// Kind is how a manager moves rows.
type Kind int32

// The kinds of managers.
const (
	OneSided               Kind = C.MOELINK_MANAGER_ONE_SIDED
	TwoSided               Kind = C.MOELINK_MANAGER_TWO_SIDED
	AllGatherReduceScatter Kind = C.MOELINK_MANAGER_ALLGATHER_REDUCESCATTER
	Reference              Kind = C.MOELINK_MANAGER_REFERENCE
)

func (k Kind) String() string { return C.GoString(C.moelink_manager_kind_name(C.int32_t(k))) }

// State is where a manager is in its life.
type State int32

// The states of a manager.
const (
	Created    State = C.MOELINK_STATE_CREATED
	Ready      State = C.MOELINK_STATE_READY
	Dispatched State = C.MOELINK_STATE_DISPATCHED
	Faulted    State = C.MOELINK_STATE_FAULTED
)

// Config is what a manager's workspace has to hold.
type Config struct {
	MaxTokens       int      // most tokens this rank passes to one dispatch
	TopK            int      // the same on every rank, as is everything below
	NumExperts      int      //
	PayloadRowBytes []uint64 // most bytes of one row of each payload
	CombineRowBytes uint64   // most bytes of one row of combine; 0: no combine
	Slots           int      // dispatches that may be in flight; 0 = 1
	Timeout         time.Duration
}

// Sizes are the bytes of a workspace on one rank.
type Sizes struct {
	SlotsPerRank                                              int
	WorkspaceBytes, DispatchBytes, CombineBytes, ControlBytes uint64
}

// Stream is a CUDA stream; nil on the host device.
type Stream = unsafe.Pointer

// Manager is one all-to-all over one group. One goroutine at a time may use it, and its group meanwhile by no other.
type Manager struct{ raw *C.moelink_manager }

// NewManager makes a manager without a workspace. It keeps what it needs of the group alive.
func NewManager(group *Group, kind Kind) (*Manager, error) {
	defer runtime.KeepAlive(group)
	manager := &Manager{}
	err := call(func() C.moelink_status {
		return C.moelink_manager_create(group.raw, C.int32_t(kind), nil, &manager.raw)
	})
	if err != nil {
		return nil, err
	}
	runtime.SetFinalizer(manager, (*Manager).Close)
	return manager, nil
}

// Init allocates the workspace. Collective.
func (m *Manager) Init(config Config) error {
	defer runtime.KeepAlive(m)
	var pins runtime.Pinner
	defer pins.Unpin()
	var raw C.moelink_manager_config
	C.moelink_manager_config_init(&raw)
	raw.max_tokens = C.int32_t(config.MaxTokens)
	raw.top_k = C.int32_t(config.TopK)
	raw.num_experts = C.int32_t(config.NumExperts)
	raw.payload_count = C.int32_t(len(config.PayloadRowBytes))
	if len(config.PayloadRowBytes) > 0 {
		pins.Pin(&config.PayloadRowBytes[0])
		raw.payload_row_bytes = (*C.uint64_t)(unsafe.Pointer(&config.PayloadRowBytes[0]))
	}
	raw.combine_row_bytes = C.uint64_t(config.CombineRowBytes)
	raw.slots = C.int32_t(config.Slots)
	raw.timeout_ns = C.uint64_t(config.Timeout.Nanoseconds())
	return call(func() C.moelink_status { return C.moelink_manager_init(m.raw, &raw) })
}

// State tells the state and the generation of the workspace.
func (m *Manager) State() (State, uint64, error) {
	defer runtime.KeepAlive(m)
	var state C.int32_t
	var generation C.uint64_t
	err := call(func() C.moelink_status { return C.moelink_manager_state_of(m.raw, &state, &generation) })
	return State(state), uint64(generation), err
}

// Sizes tells the sizes of the present workspace.
func (m *Manager) Sizes() (Sizes, error) {
	defer runtime.KeepAlive(m)
	var raw C.moelink_manager_sizes
	C.moelink_manager_sizes_init(&raw)
	err := call(func() C.moelink_status { return C.moelink_manager_sizes_of(m.raw, &raw) })
	return Sizes{int(raw.slots_per_rank), uint64(raw.workspace_bytes), uint64(raw.dispatch_bytes),
		uint64(raw.combine_bytes), uint64(raw.control_bytes)}, err
}

// Cleanup frees the workspace.
func (m *Manager) Cleanup() error {
	defer runtime.KeepAlive(m)
	return call(func() C.moelink_status { return C.moelink_manager_cleanup(m.raw) })
}

// Close drops the manager and its workspace; a second call does nothing.
func (m *Manager) Close() {
	runtime.SetFinalizer(m, nil)
	C.moelink_manager_destroy(m.raw)
	m.raw = nil
}

// DispatchArgs is what one dispatch sends.
type DispatchArgs struct {
	Slot        int
	NumTokens   int
	TopKIDs     unsafe.Pointer // [NumTokens, TopK] of 32-bit ids
	TopKWeights unsafe.Pointer // [NumTokens, TopK] of float32, or nil
	InvalidID   int32          // written for empty rows and for experts that live elsewhere
	Payloads    []Rows         // each [NumTokens, ...]
}

// Received is where a dispatch put its rows: memory of the library, valid until the slot's combine.
type Received struct {
	Ranks        int
	SlotsPerRank int
	Capacity     int            // rows in each output
	Payloads     []Rows         // rows of source s begin at s * SlotsPerRank
	TopKIDs      unsafe.Pointer // [Capacity, TopK] of 32-bit ids
	TopKWeights  unsafe.Pointer // [Capacity, TopK] of float32; nil when none were sent
	Counts       unsafe.Pointer // [Ranks] of int32
}

// Dispatch sends each token once to every rank that owns one of its experts. Collective.
func (m *Manager) Dispatch(args DispatchArgs, stream Stream) (*Received, error) {
	defer runtime.KeepAlive(m)
	var pins runtime.Pinner
	defer pins.Unpin()
	var raw C.moelink_dispatch_args
	C.moelink_dispatch_args_init(&raw)
	raw.slot = C.int32_t(args.Slot)
	raw.num_tokens = C.int32_t(args.NumTokens)
	raw.topk_ids_dtype = C.int32_t(I32)
	raw.invalid_id = C.int32_t(args.InvalidID)
	raw.payload_count = C.int32_t(len(args.Payloads))
	raw.topk_ids = pin(&pins, args.TopKIDs)
	raw.topk_weights = (*C.float)(pin(&pins, args.TopKWeights))
	var out C.moelink_dispatched
	C.moelink_dispatched_init(&out)
	received := make([]C.moelink_rows, len(args.Payloads))
	if len(args.Payloads) > 0 {
		payloads := make([]C.moelink_rows, len(args.Payloads))
		for i, rows := range args.Payloads {
			payloads[i] = rows.raw(&pins)
		}
		pins.Pin(&payloads[0])
		pins.Pin(&received[0])
		raw.payloads, out.payloads = &payloads[0], &received[0]
	}
	err := call(func() C.moelink_status { return C.moelink_dispatch(m.raw, &raw, C.moelink_stream(stream), &out) })
	if err != nil {
		return nil, err
	}
	result := &Received{Ranks: int(out.ranks), SlotsPerRank: int(out.slots_per_rank), Capacity: int(out.row_capacity),
		TopKIDs: unsafe.Pointer(out.topk_ids), TopKWeights: unsafe.Pointer(out.topk_weights),
		Counts: unsafe.Pointer(out.recv_counts)}
	for i := range received {
		result.Payloads = append(result.Payloads, rowsOf(&received[i]))
	}
	return result, nil
}

// Combine adds, for each token of the slot's dispatch, the rows of its ranks. input is in the layout that Received has, output
// has a row for each token. Collective.
func (m *Manager) Combine(slot int, input, output Rows, stream Stream) error {
	defer runtime.KeepAlive(m)
	var pins runtime.Pinner
	defer pins.Unpin()
	var raw C.moelink_combine_args
	C.moelink_combine_args_init(&raw)
	raw.slot = C.int32_t(slot)
	raw.input = input.raw(&pins)
	raw.output = output.raw(&pins)
	return call(func() C.moelink_status { return C.moelink_combine(m.raw, &raw, C.moelink_stream(stream)) })
}

func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Ready:
		return "ready"
	case Dispatched:
		return "dispatched"
	case Faulted:
		return "faulted"
	}
	return fmt.Sprintf("state %d", int32(s))
}
