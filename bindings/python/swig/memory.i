// Memory goes in as an address, None, or an object with the buffer protocol, and comes out as an address.
%{
// On success the view, if any (view->obj), is to be released after the call.
static int address_of(PyObject *object, int writable, void **address, Py_buffer *view) {
    view->obj = NULL;
    if (object == Py_None) {
        *address = NULL;
    } else if (PyLong_Check(object)) {
        *address = PyLong_AsVoidPtr(object);
        if (PyErr_Occurred()) return -1;
    } else if (PyObject_CheckBuffer(object)) {
        if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return -1;
        *address = view->buf;
    } else {
        PyErr_Format(PyExc_TypeError, "memory is an address, None or an object with the buffer protocol, not %s",
            Py_TYPE(object)->tp_name);
        return -1;
    }
    return 0;
}
%}

%define MOELINK_MEMORY(writable, ...)
%typemap(in) __VA_ARGS__ (void *address = NULL, Py_buffer view) {
    view.obj = NULL;
    if (address_of($input, writable, &address, &view) < 0) SWIG_fail;
    $1 = ($1_ltype)address;
}
%typemap(freearg) __VA_ARGS__ { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }
%typemap(out) __VA_ARGS__ { $result = PyLong_FromVoidPtr((void *)$1); }
%enddef
MOELINK_MEMORY(1, void *)
MOELINK_MEMORY(0, const void *)
MOELINK_MEMORY(0, const int32_t *)
MOELINK_MEMORY(0, const int64_t *)
MOELINK_MEMORY(0, const uint64_t *)
MOELINK_MEMORY(0, const float *)
MOELINK_MEMORY(0, void *const *)
MOELINK_MEMORY(1, int32_t *topk_ids)
MOELINK_MEMORY(1, float *topk_weights)
MOELINK_MEMORY(1, int64_t *load_counts)
MOELINK_MEMORY(1, int64_t *out_rank_rows)
MOELINK_MEMORY(1, int64_t *out_expert_rows)
MOELINK_MEMORY(0, moelink_stream)
// One field for what is sent and what is received: rows to be sent may be read-only.
MOELINK_MEMORY(0, void *data)

// What a group moves: moelink_group_allgather(group, mine) gives the bytes of all ranks, moelink_group_broadcast(group, data,
// root) fills a writable buffer.
%typemap(in) (const void *mine, void *all, uint64_t bytes) (Py_buffer view, PyObject *all = NULL) {
    view.obj = NULL;
    if (PyObject_GetBuffer($input, &view, PyBUF_SIMPLE) < 0) SWIG_fail;
    all = PyBytes_FromStringAndSize(NULL, view.len * moelink_group_size(arg1));
    if (!all) SWIG_fail;
    $1 = view.buf;
    $2 = PyBytes_AS_STRING(all);
    $3 = (uint64_t)view.len;
}
%typemap(argout) (const void *mine, void *all, uint64_t bytes) {
    Py_INCREF(all$argnum);
    $result = append_output($result, all$argnum);
}
%typemap(freearg) (const void *mine, void *all, uint64_t bytes) {
    if (view$argnum.obj) PyBuffer_Release(&view$argnum);
    Py_XDECREF(all$argnum);
}
%typemap(in) (void *data, uint64_t bytes) (Py_buffer view) {
    view.obj = NULL;
    if (PyObject_GetBuffer($input, &view, PyBUF_WRITABLE) < 0) SWIG_fail;
    $1 = view.buf;
    $2 = (uint64_t)view.len;
}
%typemap(freearg) (void *data, uint64_t bytes) { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }

// A unique id is bytes.
%typemap(in) uint8_t bytes[256] (uint8_t copy[256]) {
    Py_buffer view;
    if (PyObject_GetBuffer($input, &view, PyBUF_SIMPLE) < 0) SWIG_fail;
    if (view.len != sizeof copy) {
        PyErr_Format(PyExc_ValueError, "a unique id has %zu bytes, not %zd", sizeof copy, view.len);
        PyBuffer_Release(&view);
        SWIG_fail;
    }
    memcpy(copy, view.buf, sizeof copy);
    PyBuffer_Release(&view);
    $1 = copy;
}
%typemap(out) uint8_t bytes[256] { $result = PyBytes_FromStringAndSize((const char *)$1, sizeof(moelink_unique_id)); }

%typemap(out) int32_t status[8] {
    $result = PyTuple_New(8);
    if (!$result) SWIG_fail;
    for (int i = 0; i < 8; ++i) PyTuple_SET_ITEM($result, i, PyLong_FromLong($1[i]));
}
%immutable moelink_memory_info::status;

// The struct owns its copy of the text.
%warnfilter(451) moelink_group_params::socket_dir;
%typemap(memberin) const char *socket_dir {
    free((void *)$1);
    $1 = $input ? strdup($input) : NULL;
}
%extend moelink_group_params {
    ~moelink_group_params() {
        free((void *)$self->socket_dir);
        free($self);
    }
}
