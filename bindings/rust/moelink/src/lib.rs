//! Expert-parallel dispatch and combine over libmoelink.
//!
//! The parameter structs are the library's own, from [`sys`]; the `_init` functions of this crate start them from the
//! library's defaults. Collective calls block: every rank makes them on a thread of its own.

pub use moelink_sys as sys;

mod communicator;
mod error;
mod group;
mod manager;

pub use communicator::Communicator;
pub use error::{Error, Result};
pub use group::Group;
pub use manager::{Manager, Stream};

use std::ffi::CStr;

/// Text of the loaded library's version, and what it was built with.
pub fn version_string() -> &'static str {
    // SAFETY: static storage, never NULL.
    unsafe { CStr::from_ptr(sys::moelink_version_string()) }.to_str().unwrap_or("")
}

/// Version of the loaded library: major * 10000 + minor * 100 + patch.
pub fn version() -> i32 {
    // SAFETY: takes nothing and never fails.
    unsafe { sys::moelink_version() }
}

macro_rules! init_functions {
    ($($name:ident => $init:ident, $type:ident;)*) => {$(
        /// The parameters with the library's defaults and their `struct_size` set.
        pub fn $name() -> sys::$type {
            let mut value = std::mem::MaybeUninit::<sys::$type>::zeroed();
            // SAFETY: init fills the whole struct, for which zero is a valid value too.
            unsafe {
                sys::$init(value.as_mut_ptr());
                value.assume_init()
            }
        }
    )*};
}

init_functions! {
    group_params => moelink_group_params_init, moelink_group_params;
    mapping => moelink_mapping_init, moelink_mapping;
    manager_config => moelink_manager_config_init, moelink_manager_config;
    manager_sizes => moelink_manager_sizes_init, moelink_manager_sizes;
    dispatch_args => moelink_dispatch_args_init, moelink_dispatch_args;
    dispatched => moelink_dispatched_init, moelink_dispatched;
    combine_args => moelink_combine_args_init, moelink_combine_args;
    eplb_shape => moelink_eplb_shape_init, moelink_eplb_shape;
    eplb_comm_params => moelink_eplb_comm_params_init, moelink_eplb_comm_params;
    eplb_comm_info => moelink_eplb_comm_info_init, moelink_eplb_comm_info;
    eplb_rearrange_params => moelink_eplb_rearrange_params_init, moelink_eplb_rearrange_params;
    eplb_rearrange_result => moelink_eplb_rearrange_result_init, moelink_eplb_rearrange_result;
}
