//! State of this process and of its peers: the host's side of `state_put` and what goes with it.

use praas_transport::Buf;

use super::host::{Lent, call, deadline, write};
use super::table::{Bytes, CallHandle, RawView, code};
use crate::state::StateError;

// SAFETY of all: as in `host.rs`.

pub(super) unsafe extern "C" fn state_put(
    handle: *mut CallHandle,
    key: Bytes,
    value: Bytes,
    version: *mut u64,
) -> i32 {
    // SAFETY: see above.
    let (call, value) = unsafe { (call(handle), value.as_slice()) };
    match call.services.pool().copy_from(value) {
        // SAFETY: see above.
        Ok(buf) => unsafe { call.put(key, buf, version) },
        Err(error) => call.state_fail(&error.into()),
    }
}

pub(super) unsafe extern "C" fn state_put_view(
    handle: *mut CallHandle,
    key: Bytes,
    view: RawView,
    version: *mut u64,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    if view.handle.is_null() {
        return call.fail(code::BAD_ARGUMENT, "no view");
    }
    // SAFETY: the handle is a box that `view` made, and is not given back during this call.
    let buf = unsafe { &*view.handle.cast::<Lent>() }.buf.clone();
    // SAFETY: see above.
    unsafe { call.put(key, buf, version) }
}

pub(super) unsafe extern "C" fn state_view(
    handle: *mut CallHandle,
    key: Bytes,
    out: *mut RawView,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    match call.services.state_object(key) {
        // SAFETY: see above.
        Ok(Some((buf, meta))) => unsafe { call.lend_to(out, buf, meta.version) },
        Ok(None) => call.fail(code::NOT_FOUND, format!("no state object '{key}'")),
        Err(error) => call.state_fail(&error),
    }
}

pub(super) unsafe extern "C" fn state_delete(handle: *mut CallHandle, key: Bytes) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    // What shrinks is never refused.
    let _ = call.grow(key, |_| 0);
    match call.services.state().delete(key) {
        true => code::OK,
        false => call.fail(code::NOT_FOUND, format!("no state object '{key}'")),
    }
}

pub(super) unsafe extern "C" fn state_list(
    handle: *mut CallHandle,
    prefix: Bytes,
    after: Bytes,
    limit: usize,
    out: *mut RawView,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let (prefix, from) = match unsafe { (call.text(prefix), call.text(after)) } {
        (Ok(prefix), Ok(after)) => (prefix, after),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let from = Some(from).filter(|_| !after.ptr.is_null());
    let mut bytes = Vec::new();
    for (key, meta) in call.services.state().list(prefix, from, limit) {
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key.as_bytes());
        for word in [meta.bytes, meta.version, meta.written_unix_ms] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    // SAFETY: see above.
    unsafe { call.lend_to(out, Buf::from_vec(bytes), 0) }
}

pub(super) unsafe extern "C" fn state_compare_swap(
    handle: *mut CallHandle,
    key: Bytes,
    expected: u64,
    value: Bytes,
    version: *mut u64,
) -> i32 {
    // SAFETY: see above.
    let (call, value) = unsafe { (call(handle), value.as_slice()) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    let grown = match call.grow(key, |_| value.len() as u64) {
        Ok(grown) => grown,
        Err(code) => return code,
    };
    let (now, code) = match call.services.state().compare_swap(key, expected, value) {
        Ok(new) => (new, code::OK),
        Err(error) => {
            grown.undo();
            let actual = match error {
                StateError::Conflict { actual, .. } => actual,
                _ => 0,
            };
            (actual, call.state_fail(&error))
        }
    };
    // SAFETY: see above.
    unsafe { write(version, now) };
    code
}

pub(super) unsafe extern "C" fn state_append(
    handle: *mut CallHandle,
    key: Bytes,
    value: Bytes,
    len: *mut u64,
) -> i32 {
    // SAFETY: see above.
    let (call, value) = unsafe { (call(handle), value.as_slice()) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    let grown = match call.grow(key, |before| before + value.len() as u64) {
        Ok(grown) => grown,
        Err(code) => return code,
    };
    match call.services.state_append(key, value) {
        Ok(new) => {
            // SAFETY: see above.
            unsafe { write(len, new) };
            code::OK
        }
        Err(error) => {
            grown.undo();
            call.state_fail(&error)
        }
    }
}

pub(super) unsafe extern "C" fn peer_state(
    handle: *mut CallHandle,
    process: Bytes,
    key: Bytes,
    timeout_us: i64,
    out: *mut RawView,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let (process, key) = match unsafe { (call.text(process), call.text(key)) } {
        (Ok(process), Ok(key)) => (process, key),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let deadline = deadline(timeout_us);
    match call.services.peer_state(call.job, process, key, deadline) {
        // SAFETY: see above.
        Ok(Some((buf, version))) => unsafe { call.lend_to(out, buf, version) },
        Ok(None) => call.fail(
            code::NOT_FOUND,
            format!("process '{process}' has no state object '{key}'"),
        ),
        Err(error) => call.invoke_fail(error),
    }
}

pub(super) unsafe extern "C" fn state_dir(handle: *mut CallHandle, path: *mut Bytes) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    match call.services.state_dir() {
        Ok(dir) => {
            // SAFETY: see above.
            unsafe { write(path, Bytes::new(dir.as_os_str().as_encoded_bytes())) };
            code::OK
        }
        Err(error) => call.fail(code::UNAVAILABLE, error),
    }
}
