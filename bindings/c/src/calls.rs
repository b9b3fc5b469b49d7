//! What a client calls: invocations, messages, state.

use std::ffi::{c_char, c_void};
use std::time::{Duration, Instant};

use praas_runtime::abi::code;
use praas_runtime::client::{CallId, Client};
use praas_runtime::codec;
use praas_runtime::invocation::{InvokeError, Payload};
use praas_runtime::mailbox::Source;
use praas_runtime::process::{
    MESSAGE_TAKE, MessageTakeInput, STATE_DELETE, STATE_GET, STATE_LIST, STATE_PUT, StateListInput,
    StatePutInput,
};
use praas_runtime::state::ObjectMeta;

use super::{
    Failure, buffer_new, bytes, guarded, options, praas_buffer, praas_client, text, text_optional,
    write,
};

// SAFETY of all functions below: whoever calls them keeps to praas_client.h: the client is open and
// used by one thread at a time, texts end with a zero, bytes are there for the length of the call,
// pointers for results are null or writable.

/// The longest pause between two looks for a message.
const LOOK_MAX: Duration = Duration::from_millis(20);

/// Calls a function by name.
fn call(
    client: &mut Client,
    process: &str,
    function: &str,
    input: &[u8],
    timeout_us: i64,
) -> Result<Payload, Failure> {
    let function = client.function(process, function)?;
    Ok(client.call(function, input, options(timeout_us))?)
}

/// Calls a function that every process has, with a value as its input.
fn call_builtin(
    client: &mut Client,
    process: &str,
    function: &str,
    input: &impl serde::Serialize,
    timeout_us: i64,
) -> Result<Payload, Failure> {
    let input = codec::encode(input).map_err(|error| Failure::bad(error.to_string()))?;
    call(client, process, function, &input, timeout_us)
}

fn value<T: serde::de::DeserializeOwned>(output: &Payload) -> Result<T, Failure> {
    let malformed = |error: codec::CodecError| InvokeError::Malformed(error.to_string());
    Ok(codec::decode(output).map_err(malformed)?)
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_invoke(
    client: *mut praas_client,
    process: *const c_char,
    function: *const c_char,
    input: *const c_void,
    input_len: usize,
    timeout_us: i64,
    output: *mut praas_buffer,
) -> i32 {
    let body = |client: &mut Client| {
        // SAFETY: see above.
        let (process, function, input) = unsafe {
            (
                text(process, "process")?,
                text(function, "function")?,
                bytes(input, input_len)?,
            )
        };
        let result = call(client, process, function, input, timeout_us)?;
        // SAFETY: see above.
        unsafe { write(output, || buffer_new(result.to_vec())) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_submit(
    client: *mut praas_client,
    process: *const c_char,
    function: *const c_char,
    input: *const c_void,
    input_len: usize,
    timeout_us: i64,
    call: *mut u64,
) -> i32 {
    let body = |client: &mut Client| {
        // SAFETY: see above.
        let (process, function, input) = unsafe {
            (
                text(process, "process")?,
                text(function, "function")?,
                bytes(input, input_len)?,
            )
        };
        let function = client.function(process, function)?;
        let id = client.submit(function, input, options(timeout_us))?;
        // SAFETY: see above.
        unsafe { write(call, || id.to_u64()) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_wait(
    client: *mut praas_client,
    call: u64,
    output: *mut praas_buffer,
) -> i32 {
    let body = |client: &mut Client| {
        let result = client.wait(CallId::from_u64(call))?;
        // SAFETY: see above.
        unsafe { write(output, || buffer_new(result.to_vec())) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_wait_any(
    client: *mut praas_client,
    timeout_us: i64,
    call: *mut u64,
    output: *mut praas_buffer,
) -> i32 {
    let body = |client: &mut Client| {
        let ended = client.wait_any(options(timeout_us).deadline);
        let (id, outcome) = ended.ok_or_else(|| Failure::not_found("no invocation has ended"))?;
        // SAFETY: see above.
        unsafe { write(call, || id.to_u64()) };
        let result = outcome?;
        // SAFETY: see above.
        unsafe { write(output, || buffer_new(result.to_vec())) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_cancel(client: *mut praas_client, call: u64) -> i32 {
    let body = |client: &mut Client| {
        client.cancel(CallId::from_u64(call));
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_one_way(
    client: *mut praas_client,
    process: *const c_char,
    function: *const c_char,
    input: *const c_void,
    input_len: usize,
    timeout_us: i64,
) -> i32 {
    let body = |client: &mut Client| {
        // SAFETY: see above.
        let (process, function, input) = unsafe {
            (
                text(process, "process")?,
                text(function, "function")?,
                bytes(input, input_len)?,
            )
        };
        let function = client.function(process, function)?;
        Ok(client.call_one_way(function, input, options(timeout_us))?)
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_one_way_wait(
    client: *mut praas_client,
    timeout_us: i64,
    pending: *mut u64,
    failed: *mut u64,
) -> i32 {
    let body = |client: &mut Client| {
        let tally = client.one_way_wait(options(timeout_us).deadline);
        // SAFETY: see above.
        unsafe {
            write(pending, || tally.pending);
            write(failed, || tally.failed);
        }
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_put(
    client: *mut praas_client,
    process: *const c_char,
    key: *const c_char,
    body: *const c_void,
    body_len: usize,
    timeout_us: i64,
) -> i32 {
    let put = |client: &mut Client| {
        // SAFETY: see above.
        let (process, key, body) = unsafe {
            (
                text(process, "process")?,
                text(key, "key")?,
                bytes(body, body_len)?,
            )
        };
        Ok(client.message_put(process, key, body, options(timeout_us))?)
    };
    // SAFETY: see above.
    unsafe { guarded(client, put) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_broadcast(
    client: *mut praas_client,
    processes: *const *const c_char,
    count: usize,
    key: *const c_char,
    body: *const c_void,
    body_len: usize,
    timeout_us: i64,
    codes: *mut i32,
) -> i32 {
    let broadcast = |client: &mut Client| {
        // SAFETY: see above.
        let (key, body) = unsafe { (text(key, "key")?, bytes(body, body_len)?) };
        let mut names = Vec::new();
        if processes.is_null() && count > 0 {
            return Err(Failure::bad("processes is missing"));
        }
        for number in 0..count {
            // SAFETY: see above; there are so many.
            names.push(unsafe { text(*processes.add(number), "process")? });
        }
        let outcomes = client.message_broadcast(&names, key, body, options(timeout_us));
        let mut first = Ok(());
        for (number, (name, outcome)) in names.iter().zip(outcomes).enumerate() {
            let failure = outcome.err().map(Failure::from);
            if !codes.is_null() {
                let code = failure.as_ref().map_or(code::OK, |failure| failure.code);
                // SAFETY: see above; there is room for so many.
                unsafe { codes.add(number).write(code) };
            }
            if let (Ok(()), Some(failure)) = (&first, failure) {
                first = Err(Failure {
                    text: format!("process '{name}': {}", failure.text),
                    ..failure
                });
            }
        }
        first
    };
    // SAFETY: see above.
    unsafe { guarded(client, broadcast) }
}

/// Looks for a message until the time has passed.
fn message_take(
    client: &mut Client,
    process: &str,
    input: &MessageTakeInput,
    timeout_us: i64,
) -> Result<(String, Vec<u8>), Failure> {
    let deadline = options(timeout_us).deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        let taken = call_builtin(client, process, MESSAGE_TAKE, input, -1)?;
        let taken: Option<(String, Vec<u8>)> = value(&taken)?;
        if let Some(taken) = taken {
            return Ok(taken);
        }
        let now = Instant::now();
        if timeout_us == 0 || deadline.is_some_and(|deadline| deadline <= now) {
            let text = format!("no message under '{}' at '{process}'", input.key);
            return Err(Failure::not_found(text));
        }
        let left = deadline.map_or(pause, |deadline| deadline.saturating_duration_since(now));
        std::thread::park_timeout(pause.min(left));
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_get(
    client: *mut praas_client,
    process: *const c_char,
    source: *const c_char,
    key: *const c_char,
    timeout_us: i64,
    from: *mut praas_buffer,
    body: *mut praas_buffer,
) -> i32 {
    let get = |client: &mut Client| {
        // SAFETY: see above.
        let (process, source, key) = unsafe {
            (
                text(process, "process")?,
                text_optional(source, "source")?,
                text(key, "key")?,
            )
        };
        let input = MessageTakeInput {
            source: source.map_or(Source::Any, |source| Source::From(source.into())),
            key: key.into(),
        };
        let (sender, payload) = message_take(client, process, &input, timeout_us)?;
        // SAFETY: see above.
        unsafe {
            write(from, || buffer_new(sender.into_bytes()));
            write(body, || buffer_new(payload));
        }
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, get) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_state_get(
    client: *mut praas_client,
    process: *const c_char,
    key: *const c_char,
    timeout_us: i64,
    object: *mut praas_buffer,
) -> i32 {
    let get = |client: &mut Client| {
        // SAFETY: see above.
        let (process, key) = unsafe { (text(process, "process")?, text(key, "key")?) };
        let found = call(client, process, STATE_GET, key.as_bytes(), timeout_us);
        let found = found.map_err(|failure| match failure {
            // The function can say it by its text only.
            Failure { text, .. } if text.ends_with(&format!("no state object '{key}'")) => {
                Failure::not_found(text)
            }
            failure => failure,
        })?;
        // SAFETY: see above.
        unsafe { write(object, || buffer_new(found.to_vec())) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, get) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_state_put(
    client: *mut praas_client,
    process: *const c_char,
    key: *const c_char,
    object: *const c_void,
    object_len: usize,
    timeout_us: i64,
    version: *mut u64,
) -> i32 {
    let put = |client: &mut Client| {
        // SAFETY: see above.
        let (process, key, object) = unsafe {
            (
                text(process, "process")?,
                text(key, "key")?,
                bytes(object, object_len)?,
            )
        };
        let input = StatePutInput {
            key: key.into(),
            value: object.to_vec(),
        };
        let new = call_builtin(client, process, STATE_PUT, &input, timeout_us)?;
        let new: u64 = value(&new)?;
        // SAFETY: see above.
        unsafe { write(version, || new) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, put) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_state_delete(
    client: *mut praas_client,
    process: *const c_char,
    key: *const c_char,
    timeout_us: i64,
) -> i32 {
    let delete = |client: &mut Client| {
        // SAFETY: see above.
        let (process, key) = unsafe { (text(process, "process")?, text(key, "key")?) };
        let deleted = call(client, process, STATE_DELETE, key.as_bytes(), timeout_us)?;
        match value(&deleted)? {
            true => Ok(()),
            false => Err(Failure::not_found(format!("no state object '{key}'"))),
        }
    };
    // SAFETY: see above.
    unsafe { guarded(client, delete) }
}

/// See `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_state_list(
    client: *mut praas_client,
    process: *const c_char,
    prefix: *const c_char,
    after: *const c_char,
    limit: u32,
    timeout_us: i64,
    list: *mut praas_buffer,
) -> i32 {
    let body = |client: &mut Client| {
        // SAFETY: see above.
        let (process, prefix, after) = unsafe {
            (
                text(process, "process")?,
                text(prefix, "prefix")?,
                text_optional(after, "after")?,
            )
        };
        let input = StateListInput {
            prefix: prefix.into(),
            after: after.map(str::to_owned),
            limit,
        };
        let listed = call_builtin(client, process, STATE_LIST, &input, timeout_us)?;
        let listed: Vec<(String, ObjectMeta)> = value(&listed)?;
        // As `state_list` of the ABI has it, so that praas_state_next reads it.
        let mut bytes = Vec::new();
        for (key, meta) in listed {
            bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
            bytes.extend_from_slice(key.as_bytes());
            for word in [meta.bytes, meta.version, meta.written_unix_ms] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        // SAFETY: see above.
        unsafe { write(list, || buffer_new(bytes)) };
        Ok(())
    };
    // SAFETY: see above.
    unsafe { guarded(client, body) }
}
