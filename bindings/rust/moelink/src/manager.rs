use crate::error::{check, Result};
use crate::group::Group;
use crate::sys;
use std::marker::PhantomData;
use std::ptr;

/// A CUDA stream; null on the host device.
pub type Stream = sys::moelink_stream;

/// One all-to-all over one group. It borrows the group, so both stay on one thread.
#[derive(Debug)]
pub struct Manager<'group> {
    raw: *mut sys::moelink_manager,
    group: PhantomData<&'group Group>,
}

impl<'group> Manager<'group> {
    /// A manager of a kind (`sys::MOELINK_MANAGER_*`) without a workspace.
    pub fn new(group: &'group Group, kind: i32, mapping: Option<&sys::moelink_mapping>) -> Result<Self> {
        let mapping = mapping.map_or(ptr::null(), |mapping| mapping as *const _);
        let mut raw = ptr::null_mut();
        // SAFETY: the group is alive, mapping is NULL or a valid struct.
        check(unsafe { sys::moelink_manager_create(group.as_raw(), kind, mapping, &mut raw) })?;
        Ok(Manager { raw, group: PhantomData })
    }

    /// Allocates the workspace for payload rows of `payload_row_bytes`; the pointer and count in `config` are set from it.
    /// Collective.
    pub fn init(&mut self, mut config: sys::moelink_manager_config, payload_row_bytes: &[u64]) -> Result<()> {
        config.payload_row_bytes = payload_row_bytes.as_ptr();
        config.payload_count = payload_row_bytes.len() as i32;
        // SAFETY: the array outlives the call, which is as long as the library reads it.
        check(unsafe { sys::moelink_manager_init(self.raw, &config) })
    }

    /// State (`sys::MOELINK_STATE_*`) and generation.
    pub fn state(&self) -> Result<(i32, u64)> {
        let (mut state, mut generation) = (0, 0);
        check(unsafe { sys::moelink_manager_state_of(self.raw, &mut state, &mut generation) })?;
        Ok((state, generation))
    }

    /// Sizes of the present workspace.
    pub fn sizes(&self) -> Result<sys::moelink_manager_sizes> {
        let mut sizes = crate::manager_sizes();
        check(unsafe { sys::moelink_manager_sizes_of(self.raw, &mut sizes) })?;
        Ok(sizes)
    }

    /// Sends each token to the ranks of its experts. Collective.
    ///
    /// # Safety
    /// Every pointer in `args` and `out` must be null or point to as much memory of the group's device as `args` says; on
    /// CUDA that memory must live until the stream has passed the call.
    pub unsafe fn dispatch(
        &mut self,
        args: &sys::moelink_dispatch_args,
        stream: Stream,
        out: &mut sys::moelink_dispatched,
    ) -> Result<()> {
        check(sys::moelink_dispatch(self.raw, args, stream, out))
    }

    /// Adds for each token of the slot's dispatch the rows of its distinct ranks. Collective.
    ///
    /// # Safety
    /// As [`Manager::dispatch`]; the output must have a row for each token of that dispatch.
    pub unsafe fn combine(&mut self, args: &sys::moelink_combine_args, stream: Stream) -> Result<()> {
        check(sys::moelink_combine(self.raw, args, stream))
    }

    /// Frees the workspace.
    pub fn cleanup(&mut self) -> Result<()> {
        check(unsafe { sys::moelink_manager_cleanup(self.raw) })
    }

    pub fn as_raw(&self) -> *mut sys::moelink_manager {
        self.raw
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::moelink_manager_destroy(self.raw) }
    }
}
