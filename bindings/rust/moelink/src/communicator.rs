use crate::error::{check, Result};
use crate::group::Group;
use crate::manager::Stream;
use crate::sys;
use std::marker::PhantomData;
use std::ptr;

/// Moves experts' weights between the ranks of a group (EPLB). It borrows the group, so both stay on one thread.
#[derive(Debug)]
pub struct Communicator<'group> {
    raw: *mut sys::moelink_eplb_comm,
    group: PhantomData<&'group Group>,
}

impl<'group> Communicator<'group> {
    /// A communicator of a kind (`sys::MOELINK_EPLB_COMM_*`) without connections.
    pub fn new(group: &'group Group, kind: i32) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the group is alive.
        check(unsafe { sys::moelink_eplb_comm_create(group.as_raw(), kind, &mut raw) })?;
        Ok(Communicator { raw, group: PhantomData })
    }

    /// Connects the ranks. Collective.
    ///
    /// # Safety
    /// `params.nccl_comm` must be null or an `ncclComm_t` over the group's ranks that outlives this communicator's use of it.
    pub unsafe fn init(&mut self, params: &sys::moelink_eplb_comm_params) -> Result<()> {
        check(sys::moelink_eplb_comm_init(self.raw, params))
    }

    /// What is in use.
    pub fn info(&self) -> Result<sys::moelink_eplb_comm_info> {
        let mut info = crate::eplb_comm_info();
        check(unsafe { sys::moelink_eplb_comm_describe(self.raw, &mut info, ptr::null_mut(), 0) })?;
        Ok(info)
    }

    /// Names the tensors of a layer, of so many slots on this rank. Collective.
    ///
    /// # Safety
    /// The tensors' memory is the group's device's, holds as many slots as that, and is read and written by this and the other
    /// ranks until `cleanup` or the end of the communicators.
    pub unsafe fn register(&mut self, layer: i32, tensors: &[sys::moelink_eplb_tensor], slots: i32) -> Result<()> {
        check(sys::moelink_eplb_comm_register(self.raw, layer, tensors.as_ptr(), tensors.len() as i32, slots))
    }

    /// What follows goes in order of this CUDA stream.
    ///
    /// # Safety
    /// The stream is one of the group's device and lives as long as it is in use here.
    pub unsafe fn set_stream(&mut self, stream: Stream) -> Result<()> {
        check(sys::moelink_eplb_comm_set_stream(self.raw, stream))
    }

    /// Of which layer the next transfers are, and which expert each slot of all ranks holds now.
    pub fn set_context(&mut self, layer: i32, experts: &[i32]) -> Result<()> {
        // SAFETY: the array is read during the call.
        check(unsafe { sys::moelink_eplb_comm_set_transfer_context(self.raw, experts.as_ptr(), experts.len() as i64, layer) })
    }

    /// Queues an expert of this rank for another one: its live rows, where the context has them.
    pub fn send(&mut self, rank: i32, expert: i32) -> Result<()> {
        check(unsafe { sys::moelink_eplb_comm_add_send(self.raw, ptr::null(), 0, rank, expert) })
    }

    /// Queues an expert of another rank for these rows, one for each tensor.
    ///
    /// # Safety
    /// The rows' memory is the group's device's and lives until `execute` has returned.
    pub unsafe fn receive(&mut self, rows: &[sys::moelink_rows], rank: i32, expert: i32) -> Result<()> {
        check(sys::moelink_eplb_comm_add_recv(self.raw, rows.as_ptr(), rows.len() as i32, rank, expert))
    }

    /// Moves what is queued: either every rank has what it was to get, or every rank has what it had. Collective.
    pub fn execute(&mut self) -> Result<()> {
        check(unsafe { sys::moelink_eplb_comm_execute(self.raw) })
    }

    /// Takes the layers of a model from one map to another, in place; `result` also says after an error what is in force.
    /// Collective.
    ///
    /// # Safety
    /// Every pointer in `params` and `result` must be null or point to as much memory as they say; `params.committed` must be
    /// good for the calls that are described there.
    pub unsafe fn rearrange(
        &mut self,
        shape: &sys::moelink_eplb_shape,
        params: &sys::moelink_eplb_rearrange_params,
        result: &mut sys::moelink_eplb_rearrange_result,
    ) -> Result<()> {
        check(sys::moelink_eplb_rearrange(self.raw, shape, params, result))
    }

    /// Ends the connections and forgets the layers.
    pub fn cleanup(&mut self) -> Result<()> {
        check(unsafe { sys::moelink_eplb_comm_cleanup(self.raw) })
    }

    pub fn as_raw(&self) -> *mut sys::moelink_eplb_comm {
        self.raw
    }
}

impl Drop for Communicator<'_> {
    fn drop(&mut self) {
        // SAFETY: the only owner.
        unsafe { sys::moelink_eplb_comm_destroy(self.raw) }
    }
}
