// Callbacks are callables.
%{
static void log_to_python(void *user, int32_t level, const char *text) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallFunction((PyObject *)user, "is", (int)level, text);
    if (!result) PyErr_WriteUnraisable((PyObject *)user);
    Py_XDECREF(result);
    PyGILState_Release(state);
}

// The caller's allgather(mine: bytes, timeout_ns: int) -> bytes of all ranks, and what it raised.
typedef struct bootstrap_call {
    PyObject *allgather;
    Py_ssize_t ranks;
    PyObject *type, *value, *traceback;
} bootstrap_call;

static moelink_status allgather_in_python(void *user, const void *mine, void *all, uint64_t bytes, uint64_t timeout_ns) {
    PyGILState_STATE state = PyGILState_Ensure();
    bootstrap_call *call = (bootstrap_call *)user;
    moelink_status status = MOELINK_ERR_INTERNAL;
    Py_buffer view;
    PyObject *result = PyObject_CallFunction(call->allgather, "y#K", (const char *)mine, (Py_ssize_t)bytes,
        (unsigned long long)timeout_ns);
    if (result && PyObject_GetBuffer(result, &view, PyBUF_SIMPLE) == 0) {
        if (view.len == (Py_ssize_t)bytes * call->ranks) {
            memcpy(all, view.buf, (size_t)view.len);
            status = MOELINK_OK;
        } else {
            PyErr_Format(PyExc_ValueError, "allgather gave %zd bytes, not %zd", view.len, (Py_ssize_t)bytes * call->ranks);
        }
        PyBuffer_Release(&view);
    }
    if (status != MOELINK_OK) PyErr_Fetch(&call->type, &call->value, &call->traceback);
    Py_XDECREF(result);
    PyGILState_Release(state);
    return status;
}
%}

// The receiver of log messages must outlive its use: moelink.log_to keeps it.
%typemap(in) (moelink_log_callback callback, void *user) {
    if ($input != Py_None && !PyCallable_Check($input)) SWIG_exception_fail(SWIG_TypeError, "a callable or None is expected");
    $1 = $input == Py_None ? NULL : log_to_python;
    $2 = $input;
}

// moelink_group_create_with(allgather, parameters)
%ignore moelink_bootstrap;
%ignore moelink_bootstrap_init;
%typemap(in) (const moelink_bootstrap *boot, const moelink_group_params *params)
    (moelink_bootstrap boot, bootstrap_call call, void *params) {
    PyObject *allgather = NULL, *parameters = NULL;
    memset(&call, 0, sizeof call);
    if (!PyArg_ParseTuple($input, "OO;a pair (allgather, moelink_group_params) is expected", &allgather, &parameters)) SWIG_fail;
    if (!SWIG_IsOK(SWIG_ConvertPtr(parameters, &params, $2_descriptor, 0)) || !params)
        SWIG_exception_fail(SWIG_TypeError, "a pair (allgather, moelink_group_params) is expected");
    moelink_bootstrap_init(&boot);
    boot.user = &call;
    boot.allgather = allgather_in_python;
    call.allgather = allgather;
    $1 = &boot;
    $2 = (moelink_group_params *)params;
    call.ranks = $2->size;
}
%typemap(freearg) (const moelink_bootstrap *boot, const moelink_group_params *params) ""
%typemap(out) moelink_status moelink_group_create_with {
    if ($1 < 0) {
        if (call1.type)
            PyErr_Restore(call1.type, call1.value, call1.traceback);
        else
            raise_status($1);
        SWIG_fail;
    }
    $result = nothing();
}
