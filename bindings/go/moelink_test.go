package moelink

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"
)

const (
	ranks   = 2
	experts = 5 // not divisible by the ranks: rank 0 owns 0..3, rank 1 owns 3..5
	topK    = 2
	hidden  = 7
	invalid = int32(-7)
)

func owner(expert int32) int {
	switch {
	case expert >= 0 && expert < 3:
		return 0
	case expert >= 3 && expert < experts:
		return 1
	}
	return -1
}

// Ids of every rank's tokens; different counts, one token for both ranks, one for nobody, ids masked or out of range.
var idsOf = [ranks][][topK]int32{
	{{0, 3}, {1, 2}, {4, -1}, {-1, -1}, {experts, 2}},
	{{4, 3}, {2, 4}, {0, 1}},
}

func value(rank, token, column int) float32 {
	return float32(rank*1000+token*10) + float32(column)*0.125
}

func reaches(ids [topK]int32, rank int) bool {
	for _, id := range ids {
		if owner(id) == rank {
			return true
		}
	}
	return false
}

// eachRank runs one goroutine for every rank and reports every rank's error.
func eachRank(t *testing.T, groups []*Group, run func(*Group) error) {
	t.Helper()
	results := make([]chan error, len(groups))
	for rank, group := range groups {
		results[rank] = make(chan error, 1)
		go func(group *Group, result chan error) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer group.Close()
			result <- run(group)
		}(group, results[rank])
	}
	deadline := time.After(time.Minute)
	for rank, result := range results {
		select {
		case err := <-result:
			if err != nil {
				t.Errorf("rank %d: %v", rank, err)
			}
		case <-deadline:
			t.Fatalf("rank %d did not finish within a minute", rank)
		}
	}
}

func threadGroups(t *testing.T, size int) []*Group {
	t.Helper()
	groups, err := NewThreadGroups(size, GroupParams{Device: DeviceHost, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

func checkReceived(rank int, got *Received) error {
	if got.Ranks != ranks || got.Capacity != ranks*got.SlotsPerRank {
		return fmt.Errorf("%d ranks, %d slots a rank, capacity %d", got.Ranks, got.SlotsPerRank, got.Capacity)
	}
	counts := View[int32](got.Counts, ranks)
	allIDs := View[int32](got.TopKIDs, got.Capacity*topK)
	for source := range idsOf {
		var sent []int
		for token, ids := range idsOf[source] {
			if reaches(ids, rank) {
				sent = append(sent, token)
			}
		}
		if int(counts[source]) != len(sent) {
			return fmt.Errorf("%d rows from %d, not %d", counts[source], source, len(sent))
		}
		for slot := 0; slot < got.SlotsPerRank; slot++ {
			row := source*got.SlotsPerRank + slot
			want := [topK]int32{invalid, invalid}
			if slot < len(sent) {
				for k, id := range idsOf[source][sent[slot]] {
					if owner(id) == rank {
						want[k] = id
					}
				}
				for column, bits := range Row[uint32](got.Payloads[0], row) {
					if wanted := math.Float32bits(value(source, sent[slot], column)); bits != wanted {
						return fmt.Errorf("row %d, column %d: %#x, not %#x", row, column, bits, wanted)
					}
				}
			}
			if ids := [topK]int32(allIDs[row*topK : (row+1)*topK]); ids != want {
				return fmt.Errorf("ids of row %d: %v, not %v", row, ids, want)
			}
		}
	}
	return nil
}

func runRank(group *Group) error {
	rank := group.Rank()
	ids := idsOf[rank]
	var input []float32
	for token := range ids {
		for column := 0; column < hidden; column++ {
			input = append(input, value(rank, token, column))
		}
	}
	manager, err := NewManager(group, OneSided)
	if err != nil {
		return err
	}
	defer manager.Close()
	err = manager.Init(Config{MaxTokens: 8, TopK: topK, NumExperts: experts, PayloadRowBytes: []uint64{hidden * 4},
		CombineRowBytes: hidden * 4})
	if err != nil {
		return err
	}
	if sizes, err := manager.Sizes(); err != nil || sizes.WorkspaceBytes == 0 {
		return fmt.Errorf("sizes %+v, %v", sizes, err)
	}
	got, err := manager.Dispatch(DispatchArgs{NumTokens: len(ids), TopKIDs: unsafe.Pointer(&ids[0]), InvalidID: invalid,
		Payloads: []Rows{RowsOf(input, hidden, F32)}}, nil)
	if err != nil {
		return err
	}
	if err := checkReceived(rank, got); err != nil {
		return err
	}
	if state, generation, err := manager.State(); err != nil || state != Dispatched || generation != 1 {
		return fmt.Errorf("after dispatch: %v, generation %d, %v", state, generation, err)
	}
	output := make([]float32, len(ids)*hidden)
	for i := range output {
		output[i] = float32(math.NaN())
	}
	received := got.Payloads[0]
	received.Dtype = F32
	if err := manager.Combine(0, received, RowsOf(output, hidden, F32), nil); err != nil {
		return err
	}
	for token := range ids {
		distinct := float32(0)
		for to := 0; to < ranks; to++ {
			if reaches(ids[token], to) {
				distinct++
			}
		}
		for column := 0; column < hidden; column++ {
			got, want := output[token*hidden+column], value(rank, token, column)*distinct
			if math.Float32bits(got) != math.Float32bits(want) {
				return fmt.Errorf("token %d, column %d: %v, not %v", token, column, got, want)
			}
		}
	}
	if err := manager.Cleanup(); err != nil {
		return err
	}
	if state, _, err := manager.State(); err != nil || state != Created {
		return fmt.Errorf("after cleanup: %v, %v", state, err)
	}
	return group.Finalize()
}

func TestTwoRanksDispatchAndCombine(t *testing.T) {
	t.Log("moelink", VersionString())
	eachRank(t, threadGroups(t, ranks), runRank)
}

func TestGroupsGatherInRankOrder(t *testing.T) {
	eachRank(t, threadGroups(t, 3), func(group *Group) error {
		all, err := group.AllGather([]byte{byte(group.Rank()), 7})
		if err != nil {
			return err
		}
		if string(all) != "\x00\x07\x01\x07\x02\x07" {
			return fmt.Errorf("gathered %v", all)
		}
		return group.Finalize()
	})
}

func TestErrorsCarryStatusAndText(t *testing.T) {
	_, err := NewThreadGroups(-3, GroupParams{Device: DeviceHost})
	var failure *Error
	if !errors.As(err, &failure) || !errors.Is(err, ErrInvalidArgument) || errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v", err)
	}
	if failure.Status.String() != "MOELINK_ERR_INVALID_ARGUMENT" || !strings.Contains(failure.Message, "-3") {
		t.Errorf("got %v", err)
	}
	group := threadGroups(t, 1)[0]
	defer group.Close()
	if _, err := NewManager(group, Kind(99)); err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("got %v", err)
	}
	manager, err := NewManager(group, OneSided)
	if err != nil {
		t.Fatal(err)
	}
	err = manager.Init(Config{TopK: 33, NumExperts: 4, PayloadRowBytes: []uint64{4}})
	if !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("got %v", err)
	}
	if state, generation, err := manager.State(); err != nil || state != Created || generation != 0 {
		t.Errorf("after a failed init: %v, generation %d, %v", state, generation, err)
	}
	manager.Close()
	manager.Close()
}

func TestObjectsEndInAnyOrder(t *testing.T) {
	group := threadGroups(t, 1)[0]
	manager, err := NewManager(group, OneSided)
	if err != nil {
		t.Fatal(err)
	}
	group.Close()
	group.Close()
	if err := manager.Init(Config{MaxTokens: 4, TopK: 1, NumExperts: 1, PayloadRowBytes: []uint64{4}}); err != nil {
		t.Error(err)
	}
	manager.Close()
	if err := group.Barrier(); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("a closed group: %v", err)
	}
	if err := manager.Cleanup(); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("a closed manager: %v", err)
	}
}

func TestVersionMatchesTheHeaders(t *testing.T) {
	if Version() != HeaderVersion {
		t.Errorf("library %d, headers %d", Version(), HeaderVersion)
	}
}
