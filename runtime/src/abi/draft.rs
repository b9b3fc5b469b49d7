//! State objects that are written in their own memory: the host's side of `state_alloc` and
//! `state_commit`.
//!
//! ```text
//!   state_view   --> old value, shared         new[i] = old[i] + input[i]: each byte is written
//!   state_alloc  --> memory of the new one     once, where it stays
//!   state_commit --> the new one is the object, if nobody was faster
//! ```
//!
//! An object that were changed where it lies would be seen half changed by whoever has a view of
//! it, by a checkpoint and by a peer that reads it; so the new value gets memory of its own, which
//! is that of the value before the last, as a rule, and still in the cache.

use super::host::{call, write};
use super::table::{Bytes, CallHandle, VERSION_ANY, code};
use crate::state::StateError;

// SAFETY of all: as in `host.rs`.

pub(super) unsafe extern "C" fn state_alloc(
    handle: *mut CallHandle,
    len: usize,
    out: *mut *mut u8,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    (call.draft, call.draft_charge) = (None, None);
    let charge = match call.charge(len) {
        Ok(charge) => charge,
        Err(code) => return code,
    };
    match call.services.state().draft(len) {
        Ok(mut draft) => {
            call.draft_charge = charge;
            let memory = draft.as_mut_ptr();
            call.draft = Some(draft);
            // SAFETY: see above.
            unsafe { write(out, memory) };
            code::OK
        }
        Err(error) => call.state_fail(&error),
    }
}

pub(super) unsafe extern "C" fn state_commit(
    handle: *mut CallHandle,
    key: Bytes,
    expected: u64,
    version: *mut u64,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    if call.draft.is_none() {
        return call.fail(code::BAD_ARGUMENT, "there is no memory of state_alloc");
    }
    let expected = (expected != VERSION_ANY).then_some(expected);
    let len = call.draft.as_ref().map_or(0, |draft| draft.len());
    // As part of the state it is counted by how much that grows.
    call.draft_charge = None;
    let grown = match call.grow(key, |_| len as u64) {
        Ok(grown) => grown,
        Err(code) => {
            call.draft = None;
            return code;
        }
    };
    let state = call.services.state();
    let (now, code) = match state.commit(key, expected, &mut call.draft) {
        Ok(new) => (new, code::OK),
        Err(StateError::Conflict { expected, actual }) => {
            grown.undo();
            match call.charge(len) {
                Ok(charge) => {
                    call.draft_charge = charge;
                    let error = StateError::Conflict { expected, actual };
                    (actual, call.state_fail(&error))
                }
                Err(code) => {
                    call.draft = None;
                    (actual, code)
                }
            }
        }
        Err(error) => {
            grown.undo();
            call.draft = None;
            (0, call.state_fail(&error))
        }
    };
    // SAFETY: see above.
    unsafe { write(version, now) };
    code
}
