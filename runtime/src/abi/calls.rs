//! Functions that a function invokes: the host's side of `invoke` and what goes with it.

use praas_transport::Buf;

use super::host::{call, deadline, invoke_told, view};
use super::table::{BatchOutcome, Bytes, CallHandle, RawView, code};
use crate::services::BATCH_MAX;

// SAFETY of all: as in `host.rs`.

pub(super) unsafe extern "C" fn invoke(
    handle: *mut CallHandle,
    process: Bytes,
    function: Bytes,
    input: Bytes,
    timeout_us: i64,
    out: *mut RawView,
) -> i32 {
    // SAFETY: see above.
    let (call, input) = unsafe { (call(handle), input.as_slice()) };
    // SAFETY: see above.
    let (process, function) = match unsafe { (call.text(process), call.text(function)) } {
        (Ok(process), Ok(function)) => (process, function),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    // It is held twice while the call lasts.
    let _input = match call.charge(input.len()) {
        Ok(charge) => charge,
        Err(code) => return code,
    };
    match call
        .services
        .invoke(call.job, process, function, input, deadline(timeout_us))
    {
        // SAFETY: see above.
        Ok(payload) => unsafe { call.lend_to(out, payload.into_buf(), 0) },
        Err(error) => call.invoke_fail(error),
    }
}

pub(super) unsafe extern "C" fn invoke_one_way(
    handle: *mut CallHandle,
    process: Bytes,
    function: Bytes,
    input: Bytes,
    timeout_us: i64,
) -> i32 {
    // SAFETY: see above.
    let (call, input) = unsafe { (call(handle), input.as_slice()) };
    // SAFETY: see above.
    let (process, function) = match unsafe { (call.text(process), call.text(function)) } {
        (Ok(process), Ok(function)) => (process, function),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let deadline = deadline(timeout_us);
    match call
        .services
        .invoke_one_way(call.job, process, function, input, deadline)
    {
        Ok(()) => code::OK,
        Err(error) => call.invoke_fail(error),
    }
}

pub(super) unsafe extern "C" fn invoke_batch(
    handle: *mut CallHandle,
    process: Bytes,
    function: Bytes,
    inputs: *const Bytes,
    count: usize,
    timeout_us: i64,
    outcomes: *mut BatchOutcome,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    // SAFETY: see above.
    let (process, function) = match unsafe { (call.text(process), call.text(function)) } {
        (Ok(process), Ok(function)) => (process, function),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    if count == 0 {
        return code::OK;
    }
    if inputs.is_null() || outcomes.is_null() {
        return call.fail(code::BAD_ARGUMENT, "a batch without inputs or outcomes");
    }
    if count > BATCH_MAX {
        let text = format!("a batch has at most {BATCH_MAX} inputs, not {count}");
        return call.fail(code::BAD_ARGUMENT, text);
    }
    // SAFETY: see above: so many inputs, each readable during the call.
    let inputs = unsafe { std::slice::from_raw_parts(inputs, count) };
    // SAFETY: as above.
    let inputs: Vec<&[u8]> = unsafe { inputs.iter().map(|input| input.as_slice()).collect() };
    let _inputs = match call.charge(inputs.iter().map(|input| input.len()).sum()) {
        Ok(charge) => charge,
        Err(code) => return code,
    };
    let deadline = deadline(timeout_us);
    let ended = call
        .services
        .invoke_batch(call.job, process, function, &inputs, deadline);
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return call.invoke_fail(error),
    };
    for (at, outcome) in ended.into_iter().take(count).enumerate() {
        let lent = match outcome {
            Ok(output) => call
                .lend(output.into_buf(), 0)
                .map_err(|code| (code, call.last.clone())),
            Err(error) => Err(invoke_told(error)),
        };
        let (view, code) = match lent {
            Ok(view) => (view, code::OK),
            Err((code, text)) => (view(Buf::from_vec(text.into_bytes()), 0, None), code),
        };
        let outcome = BatchOutcome {
            view,
            code,
            reserved: 0,
        };
        // SAFETY: see above: there is room for so many outcomes.
        unsafe { outcomes.add(at).write(outcome) };
    }
    code::OK
}
