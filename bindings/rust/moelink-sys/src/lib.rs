//! The C interface of MoELink as bindgen reads it from the public headers. Constants of enums carry the type that C gives
//! the enum, so pass them `as i32`: the interface itself takes `i32`.

#![allow(non_camel_case_types, non_upper_case_globals, clippy::all)]

include!(env!("MOELINK_BINDINGS"));
