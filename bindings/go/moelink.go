// Package moelink is expert-parallel dispatch and combine over libmoelink.
//
// Collective calls block: every rank makes them on a goroutine of its own, and each such call holds an OS thread while it
// runs. Go memory given to a call is pinned for that call, which is as long as the library reads it; memory for CUDA groups is
// device memory, which Go does not own. Every failure is an *Error, and errors.Is compares it with a Status.
package moelink

// #include <moelink/moelink.h>
import "C"

import (
	"fmt"
	"runtime"
)

// Status is a MoELink status: 0 is done, positive is not an error, negative is one. As an error it stands for the kind of
// failure, for errors.Is.
type Status int32

// The statuses of the library.
const (
	OK                 Status = C.MOELINK_OK
	InProgress         Status = C.MOELINK_IN_PROGRESS
	NotReady           Status = C.MOELINK_NOT_READY
	ErrInvalidArgument Status = C.MOELINK_ERR_INVALID_ARGUMENT
	ErrInvalidState    Status = C.MOELINK_ERR_INVALID_STATE
	ErrUnsupported     Status = C.MOELINK_ERR_UNSUPPORTED
	ErrOutOfMemory     Status = C.MOELINK_ERR_OUT_OF_MEMORY
	ErrTooSmall        Status = C.MOELINK_ERR_TOO_SMALL
	ErrMismatch        Status = C.MOELINK_ERR_MISMATCH
	ErrNoDriver        Status = C.MOELINK_ERR_NO_DRIVER
	ErrStale           Status = C.MOELINK_ERR_STALE
	ErrInternal        Status = C.MOELINK_ERR_INTERNAL
	ErrTimeout         Status = C.MOELINK_ERR_TIMEOUT
	ErrPeerExited      Status = C.MOELINK_ERR_PEER_EXITED
	ErrPeerUnreachable Status = C.MOELINK_ERR_PEER_UNREACHABLE
	ErrAborted         Status = C.MOELINK_ERR_ABORTED
	ErrAuthentication  Status = C.MOELINK_ERR_AUTHENTICATION
	ErrProtocol        Status = C.MOELINK_ERR_PROTOCOL
	ErrDevice          Status = C.MOELINK_ERR_DEVICE
)

// String is the name of the status, such as "MOELINK_ERR_TIMEOUT".
func (s Status) String() string { return C.GoString(C.moelink_status_name(C.moelink_status(s))) }

// Error is one sentence about the status.
func (s Status) Error() string { return C.GoString(C.moelink_status_string(C.moelink_status(s))) }

// Error is a failed call: its status and the library's text about it.
type Error struct {
	Status  Status
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %s", e.Status, e.Message) }

// Unwrap gives the status, so that errors.Is(err, moelink.ErrTimeout) works.
func (e *Error) Unwrap() error { return e.Status }

// call runs one library call and, on failure, reads its text on the same OS thread.
func call(run func() C.moelink_status) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if status := run(); status < 0 {
		return &Error{Status(status), C.GoString(C.moelink_last_error())}
	}
	return nil
}

// Version is the version of the loaded library: major * 10000 + minor * 100 + patch.
func Version() int { return int(C.moelink_version()) }

// HeaderVersion is the version of the headers that this package was built with.
const HeaderVersion = C.MOELINK_VERSION

// VersionString is the version of the loaded library and what it was built with.
func VersionString() string { return C.GoString(C.moelink_version_string()) }
