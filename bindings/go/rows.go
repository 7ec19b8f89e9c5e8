package moelink

// #include <moelink/moelink.h>
import "C"

import (
	"runtime"
	"unsafe"
)

// Dtype is the type of the elements of a row; it matters only where values are read.
type Dtype int32

// The element types.
const (
	Bytes  Dtype = C.MOELINK_DTYPE_NONE
	F32    Dtype = C.MOELINK_DTYPE_F32
	F16    Dtype = C.MOELINK_DTYPE_F16
	BF16   Dtype = C.MOELINK_DTYPE_BF16
	F8E4M3 Dtype = C.MOELINK_DTYPE_F8E4M3
	F8E5M2 Dtype = C.MOELINK_DTYPE_F8E5M2
	E8M0   Dtype = C.MOELINK_DTYPE_E8M0
	F4E2M1 Dtype = C.MOELINK_DTYPE_F4E2M1X2
	U8     Dtype = C.MOELINK_DTYPE_U8
	I32    Dtype = C.MOELINK_DTYPE_I32
	I64    Dtype = C.MOELINK_DTYPE_I64
)

// Rows are rows of bytes: row i begins at Data + i * RowStride. Data is device memory for CUDA groups, host memory else.
type Rows struct {
	Data      unsafe.Pointer
	RowBytes  uint64
	RowStride uint64 // 0 = RowBytes
	Dtype     Dtype
}

// RowsOf sees a slice as rows of width elements.
func RowsOf[T any](data []T, width int, dtype Dtype) Rows {
	var element T
	return Rows{Data: unsafe.Pointer(unsafe.SliceData(data)), RowBytes: uint64(width) * uint64(unsafe.Sizeof(element)), Dtype: dtype}
}

// View sees count elements of host memory as a slice, as long as that memory is there.
func View[T any](data unsafe.Pointer, count int) []T { return unsafe.Slice((*T)(data), count) }

// Row sees row i, of host memory, as a slice.
func Row[T any](rows Rows, i int) []T {
	stride := rows.RowStride
	if stride == 0 {
		stride = rows.RowBytes
	}
	var element T
	return unsafe.Slice((*T)(unsafe.Add(rows.Data, uint64(i)*stride)), rows.RowBytes/uint64(unsafe.Sizeof(element)))
}

func (r Rows) raw(pins *runtime.Pinner) C.moelink_rows {
	return C.moelink_rows{data: pin(pins, r.Data), row_bytes: C.uint64_t(r.RowBytes), row_stride: C.uint64_t(r.RowStride),
		dtype: C.int32_t(r.Dtype)}
}

func rowsOf(raw *C.moelink_rows) Rows {
	return Rows{raw.data, uint64(raw.row_bytes), uint64(raw.row_stride), Dtype(raw.dtype)}
}

// pin holds Go memory in place until the pins are released; memory that is not Go's is left alone.
func pin(pins *runtime.Pinner, data unsafe.Pointer) unsafe.Pointer {
	if data != nil {
		pins.Pin(data)
	}
	return data
}
