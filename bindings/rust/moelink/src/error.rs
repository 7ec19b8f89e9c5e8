use crate::sys;
use std::ffi::CStr;
use std::fmt;

/// A failed call: the status (`sys::MOELINK_ERR_*`) and the library's text about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub status: i32,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Name of the status, such as "MOELINK_ERR_TIMEOUT".
    pub fn name(&self) -> &'static str {
        // SAFETY: static storage, never NULL.
        unsafe { CStr::from_ptr(sys::moelink_status_name(self.status)) }.to_str().unwrap_or("")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.message)
    }
}

impl std::error::Error for Error {}

/// Turns the status of the call that this thread just made into a result. Positive statuses are not errors.
pub(crate) fn check(status: sys::moelink_status) -> Result<()> {
    if status >= 0 {
        return Ok(());
    }
    // SAFETY: never NULL, valid until the next call on this thread; copied here.
    let text = unsafe { CStr::from_ptr(sys::moelink_last_error()) };
    Err(Error { status, message: text.to_string_lossy().into_owned() })
}
