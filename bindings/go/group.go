package moelink

// #include <moelink/moelink.h>
import "C"

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"
)

// Device says where ranks compute and where their memory is.
type Device int32

// The devices of the library.
const (
	DeviceAuto Device = C.MOELINK_DEVICE_AUTO
	DeviceHost Device = C.MOELINK_DEVICE_HOST
	DeviceCUDA Device = C.MOELINK_DEVICE_CUDA
)

// GroupParams are the choices of one rank. The zero value is the library's defaults.
type GroupParams struct {
	Device  Device
	Ordinal *int32        // CUDA ordinal; nil: the thread's current CUDA device
	Timeout time.Duration // deadline of every wait; 0: the library's
}

// Group is one rank of a group. One goroutine at a time may use it, except Abort.
type Group struct{ raw *C.moelink_group }

// NewThreadGroups makes all ranks of a group inside this process, each to be used by its own goroutine. params has one entry
// for every rank, or one for all, or none.
func NewThreadGroups(size int, params ...GroupParams) ([]*Group, error) {
	if len(params) > 1 && len(params) != size {
		return nil, &Error{ErrInvalidArgument, fmt.Sprintf("%d parameters for %d ranks", len(params), size)}
	}
	each := make([]C.moelink_group_params, max(size, 1))
	for rank := range each {
		C.moelink_group_params_init(&each[rank])
		if len(params) > 0 {
			one := params[min(rank, len(params)-1)]
			each[rank].device = C.int32_t(one.Device)
			each[rank].timeout_ns = C.uint64_t(one.Timeout.Nanoseconds())
			if one.Ordinal != nil {
				each[rank].device_ordinal = C.int32_t(*one.Ordinal)
			}
		}
	}
	raw := make([]*C.moelink_group, len(each))
	err := call(func() C.moelink_status { return C.moelink_group_create_threads(C.int32_t(size), &each[0], &raw[0]) })
	if err != nil {
		return nil, err
	}
	groups := make([]*Group, size)
	for rank := range groups {
		groups[rank] = &Group{raw[rank]}
		runtime.SetFinalizer(groups[rank], (*Group).Close)
	}
	return groups, nil
}

// Rank is the number of this rank.
func (g *Group) Rank() int {
	defer runtime.KeepAlive(g)
	return int(C.moelink_group_rank(g.raw))
}

// Size is the number of ranks.
func (g *Group) Size() int {
	defer runtime.KeepAlive(g)
	return int(C.moelink_group_size(g.raw))
}

// Device is where the group computes.
func (g *Group) Device() Device {
	defer runtime.KeepAlive(g)
	return Device(C.moelink_group_device(g.raw))
}

// Barrier returns when every rank has come. Collective.
func (g *Group) Barrier() error {
	defer runtime.KeepAlive(g)
	return call(func() C.moelink_status { return C.moelink_group_barrier(g.raw) })
}

// AllGather gathers mine of every rank, in rank order; its length is the same on every rank. Collective.
func (g *Group) AllGather(mine []byte) ([]byte, error) {
	defer runtime.KeepAlive(g)
	all := make([]byte, len(mine)*g.Size())
	from, to := unsafe.Pointer(unsafe.SliceData(mine)), unsafe.Pointer(unsafe.SliceData(all))
	err := call(func() C.moelink_status { return C.moelink_group_allgather(g.raw, from, to, C.uint64_t(len(mine))) })
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Finalize is the orderly end: after it no peer's exit is an error, and the group can only be closed. Collective.
func (g *Group) Finalize() error {
	defer runtime.KeepAlive(g)
	return call(func() C.moelink_status { return C.moelink_group_finalize(g.raw) })
}

// Abort ends the group at once; waits of this rank return ErrAborted. Any goroutine may call it before Close.
func (g *Group) Abort() error {
	defer runtime.KeepAlive(g)
	return call(func() C.moelink_status { return C.moelink_group_abort(g.raw) })
}

// Close drops the group; a second call does nothing. Managers made from it stay usable.
func (g *Group) Close() {
	runtime.SetFinalizer(g, nil)
	C.moelink_group_destroy(g.raw)
	g.raw = nil
}
