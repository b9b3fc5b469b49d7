//! State objects that are written through: the host's side of `state_persist`.

use super::host::{call, deadline, write};
use super::table::{Bytes, CallHandle, code};
use crate::process::PersistError;

// SAFETY of all: as in `host.rs`.

pub(super) unsafe extern "C" fn state_persist(
    handle: *mut CallHandle,
    key: Bytes,
    timeout_us: i64,
    version: *mut u64,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    let deadline = deadline(timeout_us);
    let error = match call.services.state_persist(call.job, key, deadline) {
        Ok(durable) => {
            // SAFETY: see above.
            unsafe { write(version, durable) };
            return code::OK;
        }
        Err(error) => error,
    };
    let code = match &error {
        PersistError::BadKey(_) => code::BAD_ARGUMENT,
        PersistError::TooLarge { .. } => code::LIMIT_REACHED,
        PersistError::NoStorage | PersistError::Storage { .. } => code::UNAVAILABLE,
        PersistError::Fenced(_) => code::FORBIDDEN,
        PersistError::Wait(error) => return call.invoke_fail(error.clone()),
    };
    call.fail(code, error)
}
