// moelink.Error and its kinds, one for each range of statuses: what has to be rebuilt.
%{
static PyObject *error_class, *call_error_class, *peer_error_class, *group_error_class, *device_error_class;

static PyObject *nothing(void) { Py_RETURN_NONE; }

static PyObject *class_of_status(moelink_status status) {
    if (status > -100) return call_error_class;
    if (status > -120) return peer_error_class;
    return status > -200 ? group_error_class : device_error_class;
}

static void raise_status(moelink_status status) {
    PyObject *error = PyObject_CallFunction(class_of_status(status), "s", moelink_last_error());
    PyObject *number = PyLong_FromLong(status), *name = PyUnicode_FromString(moelink_status_name(status));
    if (error && number && name && PyObject_SetAttrString(error, "status", number) == 0 &&
        PyObject_SetAttrString(error, "status_name", name) == 0)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    Py_XDECREF(number);
    Py_XDECREF(name);
}

static PyObject *add_class(PyObject *module, const char *name, const char *doc, PyObject *base) {
    PyObject *made = PyErr_NewExceptionWithDoc(name, doc, base, NULL);
    if (made) {
        Py_INCREF(made);
        if (PyModule_AddObject(module, strrchr(name, '.') + 1, made) < 0) Py_CLEAR(made);
    }
    return made;
}
%}

%init %{
    error_class = add_class(m, "moelink.Error", "A failed call: str() is the library's text, .status the number, "
        ".status_name its name.", PyExc_RuntimeError);
    if (!error_class) return NULL;
    call_error_class = add_class(m, "moelink.CallError", "The call failed; everything is as before.", error_class);
    peer_error_class = add_class(m, "moelink.PeerError", "A peer is late or gone; the round is lost.", error_class);
    group_error_class = add_class(m, "moelink.GroupError", "The group is over.", error_class);
    device_error_class = add_class(m, "moelink.DeviceError", "The device context is lost.", error_class);
    if (!call_error_class || !peer_error_class || !group_error_class || !device_error_class) return NULL;
%}

%typemap(out) moelink_status {
    if ($1 < 0) {
        raise_status($1);
        SWIG_fail;
    }
    $result = $1 == MOELINK_OK ? nothing() : PyLong_FromLong($1);
}
// Here a status is the answer, not the outcome.
%typemap(out) moelink_status moelink_group_fault, moelink_status moelink_manager_fault { $result = PyLong_FromLong($1); }
// Here a refusal comes with a text of its own: (status, text). What is wrong with the call still raises.
%typemap(out) moelink_status moelink_device_library, moelink_status moelink_manager_kind_describe {
    if ($1 < 0 && $1 != MOELINK_ERR_UNSUPPORTED && $1 != MOELINK_ERR_NO_DRIVER) {
        raise_status($1);
        SWIG_fail;
    }
    $result = PyLong_FromLong($1);
}
