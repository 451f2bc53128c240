//! The one call of this crate that the safe wrappers do not have.
#![allow(unsafe_code)]

use rustix::io::Errno;

/// Closes every descriptor from `first` on: what this process inherited without knowing.
///
/// Called before anything in this process owns a descriptor beyond standard input, output and error.
pub(crate) fn close_from(first: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the call takes three integers and no memory. The sandbox process calls it first thing, in its only
    // thread, while no value owns a descriptor of that range, so none is closed under its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// Whether a system call is refused before its arguments are looked at. All arguments are -1, which no call
/// that is let in takes.
pub(crate) fn is_refused(call: libc::c_long) -> bool {
    // SAFETY: the caller names calls that read or write memory only through pointers, and -1 is no valid address
    // and no valid flag set, descriptor or process: a call that is let in fails without an effect.
    let result = unsafe { libc::syscall(call, -1, -1, -1, -1, -1) };
    let error = std::io::Error::last_os_error().raw_os_error();
    result == -1 && matches!(error, Some(libc::EPERM | libc::ENOSYS))
}
