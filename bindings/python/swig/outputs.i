// Outputs are returned: one as it is, several as a tuple.
%{
// Adds to what the wrapper returns so far: None for nothing yet, NULL when something failed. Takes both references.
static PyObject *append_output(PyObject *result, PyObject *more) {
    PyObject *longer = NULL;
    Py_ssize_t size;
    if (!result || !more) {
        Py_XDECREF(result);
        Py_XDECREF(more);
        return NULL;
    }
    if (result == Py_None) {
        Py_DECREF(result);
        return more;
    }
    size = PyTuple_Check(result) ? PyTuple_GET_SIZE(result) : 1;
    longer = PyTuple_New(size + 1);
    for (Py_ssize_t i = 0; longer && i < size; ++i) {
        PyObject *item = PyTuple_Check(result) ? PyTuple_GET_ITEM(result, i) : result;
        Py_INCREF(item);
        PyTuple_SET_ITEM(longer, i, item);
    }
    if (longer)
        PyTuple_SET_ITEM(longer, size, more);
    else
        Py_DECREF(more);
    Py_DECREF(result);
    return longer;
}
%}

%define MOELINK_HANDLE_OUT(name)
%typemap(in, numinputs=0) name **out (name *made = NULL) { $1 = &made; }
%typemap(argout) name **out { $result = append_output($result, SWIG_NewPointerObj(*$1, $*1_descriptor, 0)); }
%enddef
MOELINK_HANDLE_OUT(moelink_rendezvous)
MOELINK_HANDLE_OUT(moelink_group)
MOELINK_HANDLE_OUT(moelink_memory)
MOELINK_HANDLE_OUT(moelink_manager)

// A struct that the call fills; on failure it is freed again.
%define MOELINK_STRUCT_OUT(start, name, argument)
%typemap(in, numinputs=0) name *argument {
    $1 = (name *)calloc(1, sizeof(name));
    if (!$1) SWIG_exception_fail(SWIG_MemoryError, "out of memory");
    start;
}
%typemap(argout) name *argument {
    $result = append_output($result, SWIG_NewPointerObj($1, $1_descriptor, SWIG_POINTER_OWN));
    $1 = NULL;
}
%typemap(freearg) name *argument { free($1); }
%enddef
MOELINK_STRUCT_OUT(moelink_device_info_init($1), moelink_device_info, out)
MOELINK_STRUCT_OUT(moelink_mapping_info_init($1), moelink_mapping_info, out)
MOELINK_STRUCT_OUT(moelink_memory_info_init($1), moelink_memory_info, out)
MOELINK_STRUCT_OUT(moelink_manager_sizes_init($1), moelink_manager_sizes, out)
MOELINK_STRUCT_OUT(moelink_all2all_backend_init($1), moelink_all2all_backend, out)
MOELINK_STRUCT_OUT(, moelink_unique_id, out_id)

%typemap(in, numinputs=0) int32_t *out (int32_t value), int32_t *out_state (int32_t value) { value = 0; $1 = &value; }
%typemap(argout) int32_t *out, int32_t *out_state { $result = append_output($result, PyLong_FromLong(*$1)); }
%typemap(freearg) int32_t *out, int32_t *out_state ""
%typemap(in, numinputs=0) uint64_t *out_generation (uint64_t value) { value = 0; $1 = &value; }
%typemap(argout) uint64_t *out_generation { $result = append_output($result, PyLong_FromUnsignedLongLong(*$1)); }
%typemap(in, numinputs=0) int64_t *out_rows (int64_t value) { value = 0; $1 = &value; }
%typemap(argout) int64_t *out_rows { $result = append_output($result, PyLong_FromLongLong(*$1)); }
%typemap(freearg) int64_t *out_rows ""
%typemap(in, numinputs=0) void **out_address (void *value) { value = NULL; $1 = &value; }
%typemap(argout) void **out_address { $result = append_output($result, PyLong_FromVoidPtr(*$1)); }

// Texts that the library writes.
%typemap(in, numinputs=0) (char *text, uint64_t bytes) (char text[4096]),
        (char *reasons, uint64_t reasons_bytes) (char text[4096]) {
    text[0] = 0;
    $1 = text;
    $2 = sizeof text;
}
%typemap(argout) (char *text, uint64_t bytes), (char *reasons, uint64_t reasons_bytes) {
    $result = append_output($result, PyUnicode_DecodeUTF8($1, strlen($1), "replace"));
}

// moelink_group_create_threads(size) or (parameters of every rank) gives the list of groups.
%typemap(in) (int32_t size, const moelink_group_params *params_each, moelink_group **out_each) (PyObject *items = NULL) {
    Py_ssize_t size = 0;
    $2 = NULL;
    $3 = NULL;
    if (PyLong_Check($input)) {
        size = PyLong_AsSsize_t($input);
        if (PyErr_Occurred()) SWIG_fail;
    } else {
        items = PySequence_Fast($input, "the number of ranks, or the parameters of each");
        if (!items) SWIG_fail;
        size = PySequence_Fast_GET_SIZE(items);
        $2 = (moelink_group_params *)malloc(sizeof(moelink_group_params) * (size ? size : 1));
        if (!$2) SWIG_exception_fail(SWIG_MemoryError, "out of memory");
        for (Py_ssize_t i = 0; i < size; ++i) {
            void *one = NULL;
            if (!SWIG_IsOK(SWIG_ConvertPtr(PySequence_Fast_GET_ITEM(items, i), &one, $2_descriptor, 0)) || !one)
                SWIG_exception_fail(SWIG_TypeError, "each rank's parameters are a moelink_group_params");
            $2[i] = *(moelink_group_params *)one;
        }
    }
    // A size that the library refuses gets an array all the same.
    $1 = size > INT32_MAX ? INT32_MAX : size < INT32_MIN ? INT32_MIN : (int32_t)size;
    $3 = (moelink_group **)calloc($1 > 0 && $1 <= MOELINK_GROUP_MAX_RANKS ? $1 : 1, sizeof(moelink_group *));
    if (!$3) SWIG_exception_fail(SWIG_MemoryError, "out of memory");
}
%typemap(argout) (int32_t size, const moelink_group_params *params_each, moelink_group **out_each) {
    PyObject *list = PyList_New($1);
    if (!list) SWIG_fail;
    for (int32_t i = 0; i < $1; ++i) PyList_SET_ITEM(list, i, SWIG_NewPointerObj($3[i], $*3_descriptor, 0));
    Py_DECREF($result);
    $result = list;
}
%typemap(freearg) (int32_t size, const moelink_group_params *params_each, moelink_group **out_each) {
    Py_XDECREF(items$argnum);
    free((void *)$2);
    free($3);
}
