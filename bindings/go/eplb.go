package moelink

// #include <moelink/moelink.h>
import "C"

import (
	"runtime"
	"time"
	"unsafe"
)

// CommKind is how a communicator moves experts between ranks.
type CommKind int32

// The kinds of communicators; CommAuto is the first that every rank can use.
const (
	CommAuto    CommKind = C.MOELINK_EPLB_COMM_AUTO
	CommNCCLOwn CommKind = C.MOELINK_EPLB_COMM_NCCL_OWN
	CommStaged  CommKind = C.MOELINK_EPLB_COMM_STAGED
	CommRead    CommKind = C.MOELINK_EPLB_COMM_READ
)

func (k CommKind) String() string { return C.GoString(C.moelink_eplb_comm_kind_name(C.int32_t(k))) }

// Tensor is one weight tensor of a layer as bytes: slot s has Rows rows of RowBytes, row i at
// Base + s * SlotStride + i * RowStride. Base is device memory for CUDA groups, host memory else.
type Tensor struct {
	Base       unsafe.Pointer
	SlotStride uint64 // 0 = Rows * RowStride
	Rows       uint64
	RowBytes   uint64
	RowStride  uint64 // 0 = RowBytes
}

// TensorOf sees a slice as a dense tensor of so many slots.
func TensorOf[T any](data []T, slots int) Tensor {
	var element T
	return Tensor{Base: unsafe.Pointer(unsafe.SliceData(data)), Rows: 1, RowBytes: uint64(len(data)/slots) * uint64(unsafe.Sizeof(element))}
}

// CommParams are a communicator's choices. The zero value is the library's defaults.
type CommParams struct {
	StagingExperts int           // experts that a rank can receive in one round; 0 = 4
	SMBudget       int           // CommRead on CUDA: multiprocessors that copy rows; -1: none; 0: the library chooses
	Async          bool          // rounds run while the model runs
	Checksum       bool          // a code over every expert, compared by the receiver
	Timeout        time.Duration // of each collective call; 0: the group's
}

// Communicator moves experts' weights between the ranks of a group. One goroutine at a time may use it; Init is a call on its
// group, the others are not.
type Communicator struct {
	raw    *C.moelink_eplb_comm
	pins   runtime.Pinner // registered tensors
	queued runtime.Pinner // rows that Execute fills
}

// NewCommunicator makes a communicator without connections. It keeps what it needs of the group alive.
func NewCommunicator(group *Group, kind CommKind) (*Communicator, error) {
	defer runtime.KeepAlive(group)
	comm := &Communicator{}
	err := call(func() C.moelink_status {
		return C.moelink_eplb_comm_create(group.raw, C.int32_t(kind), &comm.raw)
	})
	if err != nil {
		return nil, err
	}
	runtime.SetFinalizer(comm, (*Communicator).Close)
	return comm, nil
}

// Init connects the ranks. Collective.
func (c *Communicator) Init(params CommParams) error {
	defer runtime.KeepAlive(c)
	var raw C.moelink_eplb_comm_params
	C.moelink_eplb_comm_params_init(&raw)
	raw.staging_experts = C.int32_t(params.StagingExperts)
	raw.sm_budget = C.int32_t(params.SMBudget)
	raw.timeout_ns = C.uint64_t(params.Timeout.Nanoseconds())
	if params.Async {
		raw.flags |= C.MOELINK_EPLB_COMM_F_ASYNC
	}
	if params.Checksum {
		raw.flags |= C.MOELINK_EPLB_COMM_F_CHECKSUM
	}
	return call(func() C.moelink_status { return C.moelink_eplb_comm_init(c.raw, &raw) })
}

// Describe tells the kind in use and why it was chosen.
func (c *Communicator) Describe() (CommKind, string, error) {
	defer runtime.KeepAlive(c)
	var raw C.moelink_eplb_comm_info
	C.moelink_eplb_comm_info_init(&raw)
	reasons := make([]C.char, 4096)
	err := call(func() C.moelink_status {
		return C.moelink_eplb_comm_describe(c.raw, &raw, &reasons[0], C.uint64_t(len(reasons)))
	})
	return CommKind(raw.kind), C.GoString(&reasons[0]), err
}

// Register names the tensors of a layer, of so many slots on this rank. The library reads and writes them until Close; Go memory
// stays pinned until then. Collective.
func (c *Communicator) Register(layer int, tensors []Tensor, slots int) error {
	defer runtime.KeepAlive(c)
	raw := make([]C.moelink_eplb_tensor, max(len(tensors), 1))
	for i, tensor := range tensors {
		raw[i] = C.moelink_eplb_tensor{base: pin(&c.pins, tensor.Base), slot_stride: C.uint64_t(tensor.SlotStride), rows: C.uint64_t(tensor.Rows),
			row_bytes: C.uint64_t(tensor.RowBytes), row_stride: C.uint64_t(tensor.RowStride)}
	}
	return call(func() C.moelink_status {
		return C.moelink_eplb_comm_register(c.raw, C.int32_t(layer), &raw[0], C.int32_t(len(tensors)), C.int32_t(slots))
	})
}

// SetStream makes what follows go in order of a CUDA stream; nil: the default stream.
func (c *Communicator) SetStream(stream Stream) error {
	defer runtime.KeepAlive(c)
	return call(func() C.moelink_status { return C.moelink_eplb_comm_set_stream(c.raw, C.moelink_stream(stream)) })
}

// SetContext says of which layer the next transfers are, and which expert each slot of all ranks holds now.
func (c *Communicator) SetContext(layer int, experts []int32) error {
	defer runtime.KeepAlive(c)
	var pins runtime.Pinner
	defer pins.Unpin()
	map_ := (*C.int32_t)(pin(&pins, unsafe.Pointer(unsafe.SliceData(experts))))
	return call(func() C.moelink_status {
		return C.moelink_eplb_comm_set_transfer_context(c.raw, map_, C.int64_t(len(experts)), C.int32_t(layer))
	})
}

// Send queues an expert of this rank for another one: its live rows, where the context has them.
func (c *Communicator) Send(rank, expert int) error {
	defer runtime.KeepAlive(c)
	return call(func() C.moelink_status {
		return C.moelink_eplb_comm_add_send(c.raw, nil, 0, C.int32_t(rank), C.int32_t(expert))
	})
}

// Receive queues an expert of another rank for these rows, one for each tensor, which Execute fills. Go memory stays
// pinned until then.
func (c *Communicator) Receive(rows []Rows, rank, expert int) error {
	defer runtime.KeepAlive(c)
	raw := make([]C.moelink_rows, max(len(rows), 1))
	for i, one := range rows {
		raw[i] = one.raw(&c.queued)
	}
	return call(func() C.moelink_status {
		return C.moelink_eplb_comm_add_recv(c.raw, &raw[0], C.int32_t(len(rows)), C.int32_t(rank), C.int32_t(expert))
	})
}

// Execute moves what is queued: either every rank has what it was to get, or every rank has what it had. Collective, also for
// ranks with nothing queued.
func (c *Communicator) Execute() error {
	defer runtime.KeepAlive(c)
	defer c.queued.Unpin()
	return call(func() C.moelink_status { return C.moelink_eplb_comm_execute(c.raw) })
}

// Model is the shape of the maps of a model's experts: Slots physical experts of a layer over all Ranks.
type Model struct{ Layers, Experts, Slots, Ranks, Nodes int }

// Rearranged is what a rearrangement has done.
type Rearranged struct {
	Map               []int32 // [Layers, Slots] in force
	Position, Batches int64   // done when they are equal
	Sent              int64   // experts of this rank, one for each receiver
	Duration          time.Duration
}

// Rearrange takes all layers 0, 1, ... of a model from one map [Layers, Slots] to another, in place. Collective. After an error
// the result says, where there is one, what is in force.
func (c *Communicator) Rearrange(model Model, from, to []int32) (*Rearranged, error) {
	defer runtime.KeepAlive(c)
	var pins runtime.Pinner
	defer pins.Unpin()
	var shape C.moelink_eplb_shape
	C.moelink_eplb_shape_init(&shape)
	shape.layers, shape.experts = C.int32_t(model.Layers), C.int32_t(model.Experts)
	shape.slots, shape.ranks = C.int32_t(model.Slots), C.int32_t(model.Ranks)
	if model.Nodes != 0 {
		shape.nodes = C.int32_t(model.Nodes)
	}
	var params C.moelink_eplb_rearrange_params
	C.moelink_eplb_rearrange_params_init(&params)
	params.old_map = (*C.int32_t)(pin(&pins, unsafe.Pointer(unsafe.SliceData(from))))
	params.new_map = (*C.int32_t)(pin(&pins, unsafe.Pointer(unsafe.SliceData(to))))
	params.old_count, params.new_count = C.int64_t(len(from)), C.int64_t(len(to))
	result := &Rearranged{Map: make([]int32, max(model.Layers*model.Slots, 1))}
	copy(result.Map, from)
	var raw C.moelink_eplb_rearrange_result
	C.moelink_eplb_rearrange_result_init(&raw)
	raw._map = (*C.int32_t)(pin(&pins, unsafe.Pointer(&result.Map[0])))
	err := call(func() C.moelink_status { return C.moelink_eplb_rearrange(c.raw, &shape, &params, &raw) })
	result.Position, result.Batches, result.Sent = int64(raw.position), int64(raw.batches), int64(raw.sent)
	result.Duration = time.Duration(raw.time_ns)
	return result, err
}

// Close ends the communicator; a second call does nothing. Peers must be done reading: meet at a barrier before.
func (c *Communicator) Close() {
	runtime.SetFinalizer(c, nil)
	C.moelink_eplb_comm_destroy(c.raw)
	c.raw = nil
	c.pins.Unpin()
	c.queued.Unpin()
}
