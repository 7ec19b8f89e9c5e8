// Load balancing of experts: arrays are memory as everywhere; results and reports are structs that the caller makes, since
// fields of theirs say where arrays go.
MOELINK_MEMORY(0, const double *)
MOELINK_MEMORY(0, const uint8_t *)
MOELINK_MEMORY(1, int32_t *out_phy2log)
MOELINK_MEMORY(1, int32_t *out_replica)
MOELINK_MEMORY(1, int32_t *out_counts)
MOELINK_MEMORY(1, int32_t *out_log2phy)
MOELINK_MEMORY(1, int32_t *out_pack)
MOELINK_MEMORY(1, int32_t *out_place)
MOELINK_MEMORY(1, int32_t *sources)
MOELINK_MEMORY(1, int64_t *counts)
MOELINK_MEMORY(1, int64_t *slot_counts)
MOELINK_MEMORY(1, double *expert_load)
MOELINK_MEMORY(1, double *rank_load)
MOELINK_MEMORY(1, double *layer_balance)

MOELINK_HANDLE_OUT(moelink_eplb_map)
MOELINK_HANDLE_OUT(moelink_eplb_load)
MOELINK_HANDLE_OUT(moelink_eplb_trace)
MOELINK_STRUCT_OUT(moelink_eplb_shape_init($1), moelink_eplb_shape, out_shape)

%define MOELINK_NUMBER_OUT(type, name, to_python)
%typemap(in, numinputs=0) type *name (type value) { value = 0; $1 = &value; }
%typemap(argout) type *name { $result = append_output($result, to_python(*$1)); }
%typemap(freearg) type *name ""
%enddef
MOELINK_NUMBER_OUT(uint64_t, out_bytes, PyLong_FromUnsignedLongLong)
MOELINK_NUMBER_OUT(int32_t, out_model, PyLong_FromLong)
MOELINK_NUMBER_OUT(int32_t, out_steps, PyLong_FromLong)
MOELINK_NUMBER_OUT(int32_t, out_layers, PyLong_FromLong)
MOELINK_NUMBER_OUT(int32_t, out_experts, PyLong_FromLong)

// A step's name, and the address of its loads.
%typemap(in, numinputs=0) const char **out_name (const char *value) { value = NULL; $1 = ($1_ltype)&value; }
%typemap(argout) const char **out_name { $result = append_output($result, PyUnicode_DecodeUTF8(*$1, strlen(*$1), "replace")); }
%typemap(freearg) const char **out_name ""
%typemap(in, numinputs=0) const double **out_load (const double *value) { value = NULL; $1 = ($1_ltype)&value; }
%typemap(argout) const double **out_load { $result = append_output($result, PyLong_FromVoidPtr((void *)*$1)); }
%typemap(freearg) const double **out_load ""

MOELINK_PARAMETERS(moelink_eplb_shape)
MOELINK_PARAMETERS(moelink_eplb_plan_params)
MOELINK_PARAMETERS(moelink_eplb_plan_result)
MOELINK_PARAMETERS(moelink_eplb_route_args)
MOELINK_PARAMETERS(moelink_eplb_load_report)

// The field `layers` of a result takes an array of them.
%array_class(moelink_eplb_layer_result, moelink_eplb_layer_results)

%include <moelink/eplb.h>
