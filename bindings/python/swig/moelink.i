// Python module moelink._moelink: the public headers as they stand, and how their idioms look in Python.
//   status        None when the call is done, its value when positive, an exception with status and text when negative
//   out...        returned
//   memory        an address, None, or any object with the buffer protocol; an object stored in a struct must be kept alive
//                 by the caller
//   parameters    a class a struct, made with the library's defaults
// Every call releases the interpreter lock.
%module(package="moelink", threads="1") _moelink
%feature("autodoc", "0");

%{
#include <moelink/moelink.h>
#include <string.h>
%}

%include <stdint.i>
%include "exceptions.i"
%include "memory.i"
%include "outputs.i"
%include "callbacks.i"

%define MOELINK_PARAMETERS(name)
%extend name {
    name() {
        name *made = (name *)calloc(1, sizeof *made);
        if (made) name##_init(made);
        return made;
    }
}
%ignore name##_init;
%immutable name::struct_size;
%enddef
MOELINK_PARAMETERS(moelink_group_params)
MOELINK_PARAMETERS(moelink_mapping)
MOELINK_PARAMETERS(moelink_mapping_info)
MOELINK_PARAMETERS(moelink_device_info)
MOELINK_PARAMETERS(moelink_memory_params)
MOELINK_PARAMETERS(moelink_memory_info)
MOELINK_PARAMETERS(moelink_manager_config)
MOELINK_PARAMETERS(moelink_manager_sizes)
MOELINK_PARAMETERS(moelink_dispatch_args)
MOELINK_PARAMETERS(moelink_dispatched)
MOELINK_PARAMETERS(moelink_combine_args)
MOELINK_PARAMETERS(moelink_all2all_backend)
MOELINK_PARAMETERS(moelink_prepare_args)
MOELINK_PARAMETERS(moelink_prepared)
%immutable moelink_all2all_backend::name;
%immutable moelink_all2all_backend::reason;

// Contiguous rows, for the fields that take an array of them.
%include <carrays.i>
%array_class(moelink_rows, moelink_rows_array)

// What SWIG cannot read of the headers.
#define __attribute__(ignored)

%include <moelink/base.h>
%include <moelink/version.h>
%include <moelink/log.h>
%include <moelink/device.h>
%include <moelink/group.h>
%include <moelink/memory.h>
%include <moelink/moe.h>
%include <moelink/alltoall.h>
%include "eplb.i"
%include "eplb_exchange.i"
