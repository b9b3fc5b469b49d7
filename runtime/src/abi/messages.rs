//! Messages that a function puts and gets: the host's side of `message_put` and `message_get`.

use praas_transport::Buf;

use super::host::{call, deadline, view, write};
use super::table::{Bytes, CallHandle, MESSAGE_PEEK, MessageView, code};
use crate::mailbox::{MailMessage, Source};

// SAFETY of all: as in `host.rs`.

pub(super) unsafe extern "C" fn message_put(
    handle: *mut CallHandle,
    to: Bytes,
    key: Bytes,
    payload: Bytes,
    timeout_us: i64,
) -> i32 {
    // SAFETY: see above.
    let (call, payload) = unsafe { (call(handle), payload.as_slice()) };
    // SAFETY: see above.
    let (to, key) = match unsafe { (call.text(to), call.text(key)) } {
        (Ok(to), Ok(key)) => (to, key),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    match call
        .services
        .message_put(call.job, to, key, payload, deadline(timeout_us))
    {
        Ok(()) => code::OK,
        Err(error) => call.invoke_fail(error),
    }
}

pub(super) unsafe extern "C" fn message_get(
    handle: *mut CallHandle,
    source: Bytes,
    key: Bytes,
    flags: u32,
    timeout_us: i64,
    out: *mut MessageView,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let (from, key) = match unsafe { (call.text(source), call.text(key)) } {
        (Ok(from), Ok(key)) => (from, key),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let from = match source.ptr.is_null() {
        true => Source::Any,
        false => Source::From(from.into()),
    };
    let message = match (flags & MESSAGE_PEEK != 0, timeout_us) {
        (true, _) => Ok(call.services.message_peek(&from, key)),
        (false, 0) => Ok(call.services.message_try(&from, key)),
        (false, _) => call
            .services
            .message_get(call.job, &from, key, deadline(timeout_us))
            .map(Some),
    };
    match message {
        Ok(Some(message)) => {
            let charge = match call.charge(message.payload.len()) {
                Ok(charge) => charge,
                Err(code) => {
                    if flags & MESSAGE_PEEK == 0 {
                        call.services.message_give_back(message);
                    }
                    return code;
                }
            };
            let MailMessage {
                source, payload, ..
            } = message;
            let message = MessageView {
                source: view(Buf::from_vec(source.into_bytes()), 0, None),
                payload: view(payload, 0, charge),
            };
            // SAFETY: see above.
            unsafe { write(out, message) };
            code::OK
        }
        Ok(None) => call.fail(code::NOT_FOUND, "no such message"),
        Err(error) => call.invoke_fail(error),
    }
}
