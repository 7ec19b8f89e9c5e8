// Weight exchange: communicators, transfers and rearrangement. What describes a communicator or a plan is returned; statistics and
// the result of a rearrangement are structs that the caller makes, since fields of theirs say where arrays go.
MOELINK_MEMORY(1, int32_t *map)
MOELINK_MEMORY(1, uint64_t *wait_ns)

MOELINK_HANDLE_OUT(moelink_eplb_comm)
MOELINK_HANDLE_OUT(moelink_eplb_transfer)
MOELINK_STRUCT_OUT(moelink_eplb_comm_info_init($1), moelink_eplb_comm_info, out)
MOELINK_STRUCT_OUT(moelink_eplb_transfer_summary_init($1), moelink_eplb_transfer_summary, out)
MOELINK_NUMBER_OUT(int32_t, out_kind, PyLong_FromLong)

// The address of a plan's moves, which live as long as the plan.
%typemap(in, numinputs=0) const moelink_eplb_move **out_moves (const moelink_eplb_move *value) { value = NULL; $1 = ($1_ltype)&value; }
%typemap(argout) const moelink_eplb_move **out_moves { $result = append_output($result, PyLong_FromVoidPtr((void *)*$1)); }
%typemap(freearg) const moelink_eplb_move **out_moves ""

// A function's address, such as ctypes.cast(function, ctypes.c_void_p).value; whoever sets it keeps the function.
%typemap(in) void (*committed)(void *, int32_t, int32_t, const int32_t *, const int32_t *) {
    $1 = ($1_ltype)($input == Py_None ? NULL : PyLong_AsVoidPtr($input));
    if (PyErr_Occurred()) SWIG_fail;
}

MOELINK_PARAMETERS(moelink_eplb_comm_params)
MOELINK_PARAMETERS(moelink_eplb_comm_info)
MOELINK_PARAMETERS(moelink_eplb_comm_stats)
MOELINK_PARAMETERS(moelink_eplb_transfer_params)
MOELINK_PARAMETERS(moelink_eplb_transfer_summary)
MOELINK_PARAMETERS(moelink_eplb_rearrange_params)
MOELINK_PARAMETERS(moelink_eplb_rearrange_result)

// For what takes arrays of tensors.
%array_class(moelink_eplb_tensor, moelink_eplb_tensor_array)

%rename(from_) moelink_eplb_move::from;  // a keyword of Python

%include <moelink/eplb_comm.h>
%include <moelink/eplb_transfer.h>
%include <moelink/eplb_rearrange.h>
