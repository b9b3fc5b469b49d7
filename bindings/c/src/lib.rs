//! praas for C and C++.
//!
//! ```text
//!   include/praas.h         functions: the tables of the ABI, printed, and helpers around them
//!   include/praas_client.h  clients: this library, libpraas_client
//! ```
//!
//! `praas.h` is printed from `runtime/src/abi/table.rs` by a test (`tests/header.rs`), which fails
//! when the two part; `header/` has what is around the tables. A module needs the header and a C
//! compiler, and is linked to nothing.
//!
//! `praas_client.h` is written by hand, and says what each function does; here is how. Each goes
//! through `guarded`: no panic leaves it, errors become a code and a text.

#![allow(unsafe_code)]

mod calls;
mod open;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::{Duration, Instant};

use praas_runtime::abi::{code, invoke_code};
use praas_runtime::client::{CallOptions, Client};
use praas_runtime::invocation::{InvokeError, Status};

pub use self::calls::*;
pub use self::open::{praas_client_close, praas_client_open, praas_client_options};

/// A client, as C holds it.
#[allow(non_camel_case_types)]
#[derive(Debug)]
pub struct praas_client {
    client: Client,
    error: CString,
}

/// Bytes that C owns until it frees them.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Debug)]
pub struct praas_buffer {
    data: *const u8,
    len: usize,
    handle: *mut c_void,
}

/// An error: its code and its text.
#[derive(Debug)]
struct Failure {
    code: i32,
    text: String,
}

impl Failure {
    fn bad(text: impl Into<String>) -> Self {
        let (code, text) = (code::BAD_ARGUMENT, text.into());
        Self { code, text }
    }

    fn not_found(text: impl Into<String>) -> Self {
        let (code, text) = (code::NOT_FOUND, text.into());
        Self { code, text }
    }
}

impl From<InvokeError> for Failure {
    fn from(error: InvokeError) -> Self {
        Self {
            code: invoke_code(&error),
            text: error.to_string(),
        }
    }
}

thread_local! {
    /// Why this thread's last client could not be made.
    static OPEN_ERROR: RefCell<CString> = RefCell::default();
}

/// A text for C: what is behind a zero would be lost.
fn text_c(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Runs a body; a panic is an error as any other.
fn caught(body: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            // What was thrown may panic when it is dropped.
            std::mem::forget(panic);
            Err(Failure {
                code: Status::Panicked as i32,
                text: "the client has panicked; it may be used no more".into(),
            })
        }
    }
}

/// Does something with a client: a code, and the error's text where `praas_client_error` finds it.
///
/// # Safety
/// The pointer is null or one that `praas_client_open` gave, not closed yet, and nobody else uses
/// the client now.
unsafe fn guarded(
    client: *mut praas_client,
    body: impl FnOnce(&mut Client) -> Result<(), Failure>,
) -> i32 {
    // SAFETY: the caller says so.
    let Some(client) = (unsafe { client.as_mut() }) else {
        return code::BAD_ARGUMENT;
    };
    match caught(|| body(&mut client.client)) {
        Ok(()) => code::OK,
        Err(failure) => {
            client.error = text_c(&failure.text);
            failure.code
        }
    }
}

/// A text that C gave; `None` for null.
///
/// # Safety
/// The pointer is null or leads to bytes that end with a zero, for as long as `'a`.
unsafe fn text_optional<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller says so.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    match text {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Failure::bad(format!("{what} is not UTF-8"))),
    }
}

/// A text that C must give.
///
/// # Safety
/// As for [`text_optional`].
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller says so.
    let text = unsafe { text_optional(text, what) }?;
    text.ok_or_else(|| Failure::bad(format!("{what} is missing")))
}

/// Bytes that C gave.
///
/// # Safety
/// The pointer leads to so many bytes, which stay for as long as `'a`, or is null.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Result<&'a [u8], Failure> {
    match (data.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::bad(format!("{len} bytes at a null pointer"))),
        // SAFETY: the caller says so.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) }),
    }
}

/// Writes a result where C wants it.
///
/// # Safety
/// The pointer is null or good for writing.
unsafe fn write<T>(to: *mut T, value: impl FnOnce() -> T) {
    if !to.is_null() {
        // SAFETY: the caller says so.
        unsafe { to.write(value()) }
    }
}

/// Gives bytes to C.
fn buffer_new(bytes: Vec<u8>) -> praas_buffer {
    let bytes = Box::new(bytes);
    praas_buffer {
        data: bytes.as_ptr(),
        len: bytes.len(),
        handle: Box::into_raw(bytes).cast(),
    }
}

/// Frees a buffer and makes it hold nothing.
///
/// # Safety
/// As `praas_client.h` says: the buffer was filled by this library, or holds nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_buffer_free(buffer: *mut praas_buffer) {
    // SAFETY: the caller says so.
    let Some(buffer) = (unsafe { buffer.as_mut() }) else {
        return;
    };
    if !buffer.handle.is_null() {
        // SAFETY: the handle is a box of `buffer_new`, and is given back once.
        drop(unsafe { Box::from_raw(buffer.handle.cast::<Vec<u8>>()) });
    }
    *buffer = praas_buffer {
        data: ptr::null(),
        len: 0,
        handle: ptr::null_mut(),
    };
}

/// The text of the last error; see `praas_client.h`.
///
/// # Safety
/// As for `guarded`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_error(client: *const praas_client) -> *const c_char {
    // SAFETY: the caller says so.
    match unsafe { client.as_ref() } {
        Some(client) => client.error.as_ptr(),
        None => OPEN_ERROR.with(|error| error.borrow().as_ptr()),
    }
}

fn options(timeout_us: i64) -> CallOptions {
    let deadline = u64::try_from(timeout_us)
        .ok()
        .and_then(|us| Instant::now().checked_add(Duration::from_micros(us)));
    CallOptions {
        deadline,
        ..CallOptions::default()
    }
}
