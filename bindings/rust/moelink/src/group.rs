use crate::error::{check, Result};
use crate::sys;
use std::ffi::c_void;
use std::ptr;

/// One rank of a group. It may be moved to the thread that is to be this rank, not shared: its calls are collective and
/// made by one thread at a time.
#[derive(Debug)]
pub struct Group {
    raw: *mut sys::moelink_group,
}

// SAFETY: the library binds a group to no thread; it only forbids two of them at once, as the absence of Sync does.
unsafe impl Send for Group {}

impl Group {
    /// All `size` ranks as threads of this process, each with its own device; by rank.
    pub fn threads(size: i32, device: i32) -> Result<Vec<Group>> {
        let mut params = vec![crate::group_params(); size.max(0) as usize];
        params.iter_mut().for_each(|one| one.device = device);
        Group::threads_with(size, &params)
    }

    /// As [`Group::threads`], with the parameters of each rank (none: defaults).
    pub fn threads_with(size: i32, params: &[sys::moelink_group_params]) -> Result<Vec<Group>> {
        assert!(params.is_empty() || params.len() == size.max(0) as usize, "{} parameters for {size} ranks", params.len());
        let each = if params.is_empty() { ptr::null() } else { params.as_ptr() };
        let mut raw = vec![ptr::null_mut(); size.max(1) as usize];
        // SAFETY: both arrays have size elements where size is valid; the library refuses any other size.
        check(unsafe { sys::moelink_group_create_threads(size, each, raw.as_mut_ptr()) })?;
        Ok(raw.into_iter().map(|raw| Group { raw }).collect())
    }

    pub fn rank(&self) -> i32 {
        // SAFETY: the handle lives as long as self; so everywhere below.
        unsafe { sys::moelink_group_rank(self.raw) }
    }

    pub fn size(&self) -> i32 {
        unsafe { sys::moelink_group_size(self.raw) }
    }

    /// `sys::MOELINK_DEVICE_HOST` or `sys::MOELINK_DEVICE_CUDA`.
    pub fn device(&self) -> i32 {
        unsafe { sys::moelink_group_device(self.raw) }
    }

    /// Returns when every rank has come. Collective.
    pub fn barrier(&self) -> Result<()> {
        check(unsafe { sys::moelink_group_barrier(self.raw) })
    }

    /// Gathers `mine` of every rank, in rank order; the same length on every rank. Collective.
    pub fn allgather(&self, mine: &[u8]) -> Result<Vec<u8>> {
        let mut all = vec![0u8; mine.len() * self.size() as usize];
        // SAFETY: all has size times the bytes of mine.
        let (from, to) = (mine.as_ptr().cast::<c_void>(), all.as_mut_ptr().cast::<c_void>());
        check(unsafe { sys::moelink_group_allgather(self.raw, from, to, mine.len() as u64) })?;
        Ok(all)
    }

    /// Orderly end: after it no peer's exit is an error, and the group can only be dropped. Collective.
    pub fn finalize(&self) -> Result<()> {
        check(unsafe { sys::moelink_group_finalize(self.raw) })
    }

    pub fn as_raw(&self) -> *mut sys::moelink_group {
        self.raw
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the only owner; objects made from the group keep what they need of it.
        unsafe { sys::moelink_group_destroy(self.raw) }
    }
}
