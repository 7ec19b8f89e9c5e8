package moelink

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
	"unsafe"
)

const (
	slots  = 3 // of a rank
	layers = 2
	width  = 4 // int32 values of an expert
)

func weight(layer, expert, i int) int32 { return int32(layer*10000 + expert*100 + i) }

// A rank's slots, of which slot s of a layer begins at s * width.
func makeLayers(rank int) [layers][]int32 {
	var made [layers][]int32
	for layer := range made {
		made[layer] = make([]int32, slots*width)
		for i := range made[layer] {
			made[layer][i] = weight(layer, rank*slots+i/width, i%width)
		}
	}
	return made
}

func checkSlot(weights [layers][]int32, layer, slot, expert int) error {
	for i, got := range weights[layer][slot*width : (slot+1)*width] {
		if got != weight(layer, expert, i) {
			return fmt.Errorf("layer %d, slot %d: value %d is %d, must be expert %d's", layer, slot, i, got, expert)
		}
	}
	return nil
}

func withCommunicator(group *Group, weights [layers][]int32, run func(*Communicator) error) error {
	comm, err := NewCommunicator(group, CommAuto)
	if err != nil {
		return err
	}
	defer comm.Close()
	if err := comm.Init(CommParams{StagingExperts: 2}); err != nil {
		return err
	}
	for layer := range weights {
		if err := comm.Register(layer, []Tensor{TensorOf(weights[layer], slots)}, slots); err != nil {
			return err
		}
	}
	if kind, reasons, err := comm.Describe(); err != nil || kind != CommRead || reasons == "" {
		return fmt.Errorf("%v, %q, %v", kind, reasons, err)
	}
	if err := run(comm); err != nil {
		return err
	}
	return group.Barrier()
}

func TestOneRound(t *testing.T) {
	groups, err := NewThreadGroups(ranks, GroupParams{Device: DeviceHost, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	eachRank(t, groups, func(group *Group) error {
		rank, weights := group.Rank(), makeLayers(group.Rank())
		return withCommunicator(group, weights, func(comm *Communicator) error {
			all := make([]int32, ranks*slots)
			for i := range all {
				all[i] = int32(i)
			}
			peer := 1 - rank
			landing := Rows{Data: unsafe.Pointer(&weights[1][2*width]), RowBytes: 4 * width}
			for _, step := range []func() error{
				func() error { return comm.SetContext(1, all) },
				func() error { return comm.Send(peer, rank*slots) },
				func() error { return comm.Receive([]Rows{landing}, peer, peer*slots) },
				comm.Execute,
				func() error { return checkSlot(weights, 1, 2, peer*slots) },
				func() error { return checkSlot(weights, 0, 2, rank*slots+2) },
			} {
				if err := step(); err != nil {
					return err
				}
			}
			if err := comm.SetContext(9, all); !errors.Is(err, ErrInvalidArgument) {
				return fmt.Errorf("a layer that is not registered: %v", err)
			}
			return nil
		})
	})
}

func TestModelIsRearranged(t *testing.T) {
	groups, err := NewThreadGroups(ranks, GroupParams{Device: DeviceHost, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	from := []int32{0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}
	to := []int32{3, 1, 0, 2, 4, 0, 5, 4, 3, 2, 1, 0}
	eachRank(t, groups, func(group *Group) error {
		rank, weights := group.Rank(), makeLayers(group.Rank())
		return withCommunicator(group, weights, func(comm *Communicator) error {
			model := Model{Layers: layers, Experts: ranks * slots, Slots: ranks * slots, Ranks: ranks}
			done, err := comm.Rearrange(model, from, to)
			if err != nil {
				return err
			}
			if !slices.Equal(done.Map, to) || done.Position != done.Batches || done.Batches == 0 || done.Sent == 0 {
				return fmt.Errorf("%+v", done)
			}
			for layer := 0; layer < layers; layer++ {
				for slot := 0; slot < slots; slot++ {
					if err := checkSlot(weights, layer, slot, int(to[(layer*ranks+rank)*slots+slot])); err != nil {
						return err
					}
				}
			}
			if _, err := comm.Rearrange(model, from[:3], to); !errors.Is(err, ErrInvalidArgument) {
				return fmt.Errorf("a map that is too short: %v", err)
			}
			return nil
		})
	})
}
