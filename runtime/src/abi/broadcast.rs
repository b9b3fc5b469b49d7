//! One message to many processes: the host's side of `message_broadcast`.

use praas_transport::Buf;

use super::host::{call, deadline, view, write};
use super::table::{BROADCAST_TO_MAX, Bytes, CallHandle, RawView, code};
use crate::invocation::KEY_MAX_BYTES;
use crate::world::MemberState;

// SAFETY of all: as in `host.rs`.

pub(super) unsafe extern "C" fn message_broadcast(
    handle: *mut CallHandle,
    to: *const Bytes,
    to_count: usize,
    key: Bytes,
    payload: Bytes,
    timeout_us: i64,
    outcomes: *mut RawView,
) -> i32 {
    // SAFETY: see above.
    let (call, payload) = unsafe { (call(handle), payload.as_slice()) };
    // SAFETY: see above.
    let key = match unsafe { call.text(key) } {
        Ok(key) => key,
        Err(code) => return code,
    };
    if key.len() > KEY_MAX_BYTES {
        let text = format!("a message's key has at most 255 bytes, not {}", key.len());
        return call.fail(code::BAD_ARGUMENT, text);
    }
    if to_count > BROADCAST_TO_MAX as usize {
        let text = format!("a broadcast names at most {BROADCAST_TO_MAX} processes");
        return call.fail(code::BAD_ARGUMENT, text);
    }
    // All others, if none are named.
    let mut members = Vec::new();
    let mut names = Vec::new();
    if to.is_null() {
        let own = &*call.services.identity().name;
        members = call.services.world().now().members;
        members.retain(|member| member.state != MemberState::Gone && member.name != own);
    } else {
        // SAFETY: see above; a module that gives a pointer gives so many names.
        for name in unsafe { std::slice::from_raw_parts(to, to_count) } {
            // SAFETY: see above.
            match unsafe { call.text(*name) } {
                Ok(name) => names.push(name),
                Err(code) => return code,
            }
        }
    }
    names.extend(members.iter().map(|member| member.name.as_str()));
    let deadline = deadline(timeout_us);
    let ended = call
        .services
        .message_broadcast(call.job, &names, key, payload, deadline);
    let mut first = (code::OK, String::new());
    let mut bytes = (names.len() as u32).to_le_bytes().to_vec();
    for (name, outcome) in names.iter().zip(ended) {
        let code = match outcome {
            Ok(()) => code::OK,
            Err(error) => call.invoke_fail(error),
        };
        let text: &str = if code == code::OK { "" } else { &call.last };
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&code.to_le_bytes());
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        if first.0 == code::OK && code != code::OK {
            first = (code, format!("process '{name}': {text}"));
        }
    }
    // SAFETY: see above.
    unsafe { write(outcomes, view(Buf::from_vec(bytes), 0, None)) };
    match first {
        (code::OK, _) => code::OK,
        (code, text) => call.fail(code, text),
    }
}
