//! The host's side: one running call, and the functions of the host table over [`Services`].

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::clock;
use praas_transport::{Buf, BufMut};

use super::table::{
    BatchOutcome, Bytes, CallHandle, EntryFn, HostTable, InvocationId, MESSAGE_PEEK, MessageView,
    RawView, code,
};
use crate::invocation::{InlineBytes, InvokeError, PAYLOAD_INLINE_BYTES, Payload, Status};
use crate::mailbox::{MailMessage, Source};
use crate::services::{BATCH_MAX, Charge, Held, Job, Services};
use crate::state::{Draft, StateError};
use crate::world::{MemberState, World};

enum Output {
    None,
    Inline(InlineBytes),
    Buf(BufMut),
}

/// One running invocation; modules hold it as a [`CallHandle`].
pub(super) struct Call<'a> {
    pub(super) services: &'a dyn Services,
    pub(super) job: &'a Job,
    function: &'a str,
    output: Output,
    /// Memory for the next value of a state object.
    pub(super) draft: Option<Draft>,
    /// Counts it as held by the run, if its function has a limit.
    pub(super) draft_charge: Option<Charge>,
    /// What the function says of its failure.
    error: String,
    /// What went wrong in the host last.
    pub(super) last: String,
}

/// Runs a function to its end.
#[inline(always)]
pub(crate) fn call_run(
    entry: EntryFn,
    services: &dyn Services,
    job: &Job,
    function: &str,
    input: &[u8],
) -> (Status, Payload) {
    if let Some(held) = &job.held
        && let Some(refused) = input_refused(held, input.len())
    {
        return refused;
    }
    let output = Output::None;
    let mut call = Call {
        services,
        job,
        function,
        output,
        draft: None,
        draft_charge: None,
        error: String::new(),
        last: String::new(),
    };
    let handle = (&raw mut call).cast::<CallHandle>();
    // SAFETY: the entry is what a module's table says it is; the call outlives it, and is reached
    // through the handle only while it runs.
    let code = unsafe { entry(handle, host_table(), Bytes::new(input)) };
    let text = |text: String| Payload::Buf(Buf::from_vec(text.into_bytes()));
    match u16::try_from(code).ok().and_then(Status::from_code) {
        Some(Status::Ok) => {
            let payload = match call.output {
                Output::None => Payload::default(),
                Output::Inline(bytes) => Payload::Inline(bytes),
                Output::Buf(buf) => Payload::Buf(buf.freeze()),
            };
            (Status::Ok, payload)
        }
        Some(status @ (Status::Panicked | Status::Exhausted | Status::TooLarge)) => {
            (status, text(call.error))
        }
        // What it takes for a cancel may be its deadline.
        Some(Status::Cancelled) if job.cancelled() => (job.end_early(), Payload::default()),
        Some(status @ (Status::Cancelled | Status::DeadlineExceeded)) => {
            (status, Payload::default())
        }
        Some(Status::FunctionError) => (Status::FunctionError, text(call.error)),
        _ => (
            Status::FunctionError,
            text(format!("code {code}: {}", call.error)),
        ),
    }
}

/// Counts the input; what the caller is told if it is too large.
#[cold]
fn input_refused(held: &Held, bytes: usize) -> Option<(Status, Payload)> {
    let error = held.input(bytes as u64).err()?;
    let text = Payload::Inline(error.to_string().as_bytes().into());
    Some((Status::Exhausted, text))
}

/// The table that all calls get.
pub(crate) fn host_table() -> &'static HostTable {
    static TABLE: HostTable = HostTable {
        size: size_of::<HostTable>(),
        output_alloc,
        error_set,
        error_text,
        name,
        incarnation,
        cancelled,
        deadline_left_us,
        view_release,
        state_put,
        state_view,
        state_delete,
        state_list,
        state_compare_swap,
        state_append,
        message_put,
        message_get,
        invoke,
        world,
        log,
        invoke_one_way,
        invoke_batch,
        peer_state,
        state_alloc: super::draft::state_alloc,
        state_commit: super::draft::state_commit,
        message_broadcast: super::broadcast::message_broadcast,
        invocation_id,
        state_put_view,
        state_dir,
        state_persist: super::persist::state_persist,
    };
    &TABLE
}

/// The call behind a handle.
///
/// # Safety
/// The handle is one that an entry was given, and the entry has not returned.
pub(super) unsafe fn call<'a>(handle: *mut CallHandle) -> &'a mut Call<'a> {
    // SAFETY: the caller says so; an entry uses its handle from one place at a time.
    unsafe { &mut *handle.cast::<Call<'a>>() }
}

/// Writes a result where the module wants it.
///
/// # Safety
/// The pointer is null or good for writing.
pub(super) unsafe fn write<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: the caller says so.
        unsafe { to.write(value) }
    }
}

/// What is behind the handle of a view.
struct Lent {
    buf: Buf,
    /// Counted as held by the run, if its function has a limit.
    _charge: Option<Charge>,
}

pub(super) fn view(buf: Buf, version: u64, charge: Option<Charge>) -> RawView {
    let lent = Box::new(Lent {
        buf,
        _charge: charge,
    });
    let bytes = Bytes::new(&lent.buf);
    RawView {
        bytes,
        version,
        handle: Box::into_raw(lent).cast::<c_void>(),
    }
}

impl Call<'_> {
    pub(super) fn fail(&mut self, code: i32, text: impl ToString) -> i32 {
        self.last = text.to_string();
        code
    }

    /// Counts bytes that are about to be lent, if there is a limit.
    #[inline(always)]
    pub(super) fn charge(&mut self, bytes: usize) -> Result<Option<Charge>, i32> {
        match &self.job.held {
            None => Ok(None),
            Some(_) => self.charge_held(bytes),
        }
    }

    #[cold]
    fn charge_held(&mut self, bytes: usize) -> Result<Option<Charge>, i32> {
        let held = self.job.held.as_ref();
        let charge = held.map(|held| held.charge(bytes as u64)).transpose();
        charge.map_err(|error| self.fail(code::LIMIT_REACHED, error))
    }

    /// Lends bytes.
    #[inline(always)]
    pub(super) fn lend(&mut self, buf: Buf, version: u64) -> Result<RawView, i32> {
        let charge = self.charge(buf.len())?;
        Ok(view(buf, version, charge))
    }

    /// Lends bytes and writes where they are.
    ///
    /// # Safety
    /// As for [`write`].
    #[inline(always)]
    pub(super) unsafe fn lend_to(&mut self, out: *mut RawView, buf: Buf, version: u64) -> i32 {
        match self.lend(buf, version) {
            Ok(view) => {
                // SAFETY: the caller says so.
                unsafe { write(out, view) };
                code::OK
            }
            Err(code) => code,
        }
    }

    /// Counts what a change of state adds to what the run holds, if there is a limit; what undoes
    /// it.
    pub(super) fn grow(&mut self, key: &str, after: impl FnOnce(u64) -> u64) -> Result<Grown, i32> {
        let Some(held) = &self.job.held else {
            return Ok(Grown(None));
        };
        let before = self.services.state().meta(key);
        let before = before.map_or(0, |meta| meta.bytes);
        let after = after(before);
        match held.state(before, after) {
            Ok(()) => Ok(Grown(Some((Arc::clone(held), before, after)))),
            Err(error) => Err(self.fail(code::LIMIT_REACHED, error)),
        }
    }

    pub(super) fn state_fail(&mut self, error: &StateError) -> i32 {
        let code = match error {
            StateError::LimitReached { .. } | StateError::Pool(_) => code::LIMIT_REACHED,
            StateError::BadKey(_) => code::BAD_ARGUMENT,
            StateError::Conflict { .. } => code::CONFLICT,
            StateError::Corrupt { .. } => code::CORRUPT,
            StateError::Unavailable { .. } => code::UNAVAILABLE,
        };
        self.fail(code, error)
    }

    pub(super) fn invoke_fail(&mut self, error: InvokeError) -> i32 {
        let (code, text) = invoke_told(error);
        self.fail(code, text)
    }

    /// Writes a state object, and its version where the module wants it.
    ///
    /// # Safety
    /// As for [`Bytes::as_slice`] and [`write`].
    unsafe fn put(&mut self, key: Bytes, buf: Buf, version: *mut u64) -> i32 {
        // SAFETY: the caller says so.
        let key = match unsafe { self.text(key) } {
            Ok(key) => key,
            Err(code) => return code,
        };
        let bytes = buf.len() as u64;
        let grown = match self.grow(key, |_| bytes) {
            Ok(grown) => grown,
            Err(code) => return code,
        };
        match self.services.state().put_buf(key, buf) {
            Ok(new) => {
                // SAFETY: the caller says so.
                unsafe { write(version, new) };
                code::OK
            }
            Err(error) => {
                grown.undo();
                self.state_fail(&error)
            }
        }
    }

    /// Text that a module gave.
    ///
    /// # Safety
    /// As for [`Bytes::as_slice`].
    pub(super) unsafe fn text<'b>(&mut self, bytes: Bytes) -> Result<&'b str, i32> {
        // SAFETY: the caller says so.
        let bytes = unsafe { bytes.as_slice() };
        std::str::from_utf8(bytes).map_err(|_| self.fail(code::BAD_ARGUMENT, "not UTF-8"))
    }
}

/// The code of a failed invocation, and its text.
fn invoke_told(error: InvokeError) -> (i32, String) {
    let code = invoke_code(&error);
    match error {
        InvokeError::Function(text) | InvokeError::Panicked(text) => (code, text),
        error => (code, error.to_string()),
    }
}

/// The code of an error of a call, as modules and C clients know it.
pub fn invoke_code(error: &InvokeError) -> i32 {
    let status = match error {
        InvokeError::Function(_) => Status::FunctionError,
        InvokeError::Panicked(_) => Status::Panicked,
        InvokeError::UnknownFunction(_) => Status::UnknownFunction,
        InvokeError::DeadlineExceeded => Status::DeadlineExceeded,
        InvokeError::Cancelled => Status::Cancelled,
        InvokeError::Exhausted(_) => Status::Exhausted,
        InvokeError::ResultExpired => Status::ResultExpired,
        InvokeError::OutcomeUnknown => Status::OutcomeUnknown,
        InvokeError::TooLarge(_) => Status::TooLarge,
        InvokeError::MailboxFull(_) => Status::MailboxFull,
        InvokeError::Malformed(_) => Status::Malformed,
        InvokeError::Unavailable { .. } => return code::UNAVAILABLE,
        InvokeError::Forbidden(_) => return code::FORBIDDEN,
    };
    status as i32
}

/// Growth of state that was counted, should it not come.
pub(super) struct Grown(Option<(Arc<Held>, u64, u64)>);

impl Grown {
    pub(super) fn undo(self) {
        if let Some((held, before, after)) = self.0 {
            // If others have taken the room meanwhile, there is none to give back.
            let _ = held.state(after, before);
        }
    }
}

pub(super) fn deadline(timeout_us: i64) -> Option<Instant> {
    let us = u64::try_from(timeout_us).ok()?;
    clock::now().checked_add(Duration::from_micros(us))
}

// Every function below is called by modules through the table. SAFETY of all: a module gives the
// handle that its entry was given, bytes that are readable during the call, and pointers for
// results that are null or writable; docs/abi.md says so to whoever writes one.

unsafe extern "C" fn output_alloc(handle: *mut CallHandle, len: usize, out: *mut *mut u8) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    call.output = Output::None;
    if let Some(held) = &call.job.held
        && let Err(error) = held.output(len as u64)
    {
        return call.fail(code::LIMIT_REACHED, error);
    }
    let memory = match len <= PAYLOAD_INLINE_BYTES {
        true => {
            let mut bytes = smallvec::SmallVec::new();
            bytes.resize(len, 0);
            call.output = Output::Inline(bytes);
            let Output::Inline(bytes) = &mut call.output else {
                return code::LIMIT_REACHED;
            };
            bytes.as_mut_ptr()
        }
        false => match call.services.pool().alloc(len) {
            Ok(mut buf) => {
                let memory = buf.as_mut_ptr();
                call.output = Output::Buf(buf);
                memory
            }
            Err(error) => return call.fail(code::LIMIT_REACHED, error),
        },
    };
    // SAFETY: see above.
    unsafe { write(out, memory) };
    code::OK
}

unsafe extern "C" fn error_set(handle: *mut CallHandle, text: Bytes) {
    // SAFETY: see above.
    let (call, text) = unsafe { (call(handle), text.as_slice()) };
    call.error = String::from_utf8_lossy(text).into_owned();
}

unsafe extern "C" fn error_text(handle: *mut CallHandle) -> Bytes {
    // SAFETY: see above.
    Bytes::new(unsafe { call(handle) }.last.as_bytes())
}

unsafe extern "C" fn name(handle: *mut CallHandle, which: u32) -> Bytes {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    Bytes::new(match which {
        0 => call.services.identity().application.as_bytes(),
        1 => call.services.identity().name.as_bytes(),
        2 => call.function.as_bytes(),
        _ => &[],
    })
}

unsafe extern "C" fn incarnation(handle: *mut CallHandle) -> u64 {
    // SAFETY: see above.
    unsafe { call(handle) }.services.identity().incarnation.0
}

unsafe extern "C" fn invocation_id(handle: *mut CallHandle, id: *mut InvocationId) {
    // SAFETY: see above.
    let job = unsafe { call(handle) }.job;
    let invocation = InvocationId {
        client_low: job.client as u64,
        client_high: (job.client >> 64) as u64,
        sequence: job.sequence,
    };
    // SAFETY: see above.
    unsafe { write(id, invocation) };
}

unsafe extern "C" fn cancelled(handle: *mut CallHandle) -> i32 {
    // SAFETY: see above.
    i32::from(unsafe { call(handle) }.job.cancelled())
}

unsafe extern "C" fn deadline_left_us(handle: *mut CallHandle) -> i64 {
    // SAFETY: see above.
    let deadline = unsafe { call(handle) }.job.deadline;
    deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(clock::now()).as_micros();
        i64::try_from(left).unwrap_or(i64::MAX)
    })
}

unsafe extern "C" fn view_release(view: RawView) {
    if !view.handle.is_null() {
        // SAFETY: the handle is a box that `view` made, and is given back once.
        drop(unsafe { Box::from_raw(view.handle.cast::<Lent>()) });
    }
}

unsafe extern "C" fn state_put(
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

unsafe extern "C" fn state_put_view(
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

unsafe extern "C" fn state_view(handle: *mut CallHandle, key: Bytes, out: *mut RawView) -> i32 {
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

unsafe extern "C" fn state_delete(handle: *mut CallHandle, key: Bytes) -> i32 {
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

unsafe extern "C" fn state_list(
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

unsafe extern "C" fn state_compare_swap(
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

unsafe extern "C" fn state_append(
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

unsafe extern "C" fn message_put(
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

unsafe extern "C" fn message_get(
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

unsafe extern "C" fn invoke(
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

unsafe extern "C" fn invoke_one_way(
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

unsafe extern "C" fn invoke_batch(
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

unsafe extern "C" fn world(
    handle: *mut CallHandle,
    after: u64,
    timeout_us: i64,
    out: *mut RawView,
) -> i32 {
    // SAFETY: see above.
    let call = unsafe { call(handle) };
    let world = match after {
        u64::MAX => Ok(call.services.world().now()),
        _ => call
            .services
            .world_wait(call.job, after, deadline(timeout_us)),
    };
    match world {
        // SAFETY: see above.
        Ok(world) => unsafe { call.lend_to(out, Buf::from_vec(world_encode(&world)), 0) },
        Err(error) => call.invoke_fail(error),
    }
}

fn world_encode(world: &World) -> Vec<u8> {
    let mut bytes = world.generation.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(world.members.len() as u32).to_le_bytes());
    for member in &world.members {
        bytes.extend_from_slice(&(member.name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(member.name.as_bytes());
        bytes.extend_from_slice(&member.incarnation.0.to_le_bytes());
        bytes.push(match member.state {
            MemberState::Starting => 0,
            MemberState::Ready => 1,
            MemberState::Swapped => 2,
            MemberState::Gone => 3,
        });
    }
    bytes
}

unsafe extern "C" fn log(handle: *mut CallHandle, level: u32, text: Bytes) {
    // SAFETY: see above.
    let (call, text) = unsafe { (call(handle), text.as_slice()) };
    let text = String::from_utf8_lossy(text);
    let function = call.function;
    match level {
        0 => tracing::error!(function, "{text}"),
        1 => tracing::warn!(function, "{text}"),
        2 => tracing::info!(function, "{text}"),
        _ => tracing::debug!(function, "{text}"),
    }
}

unsafe extern "C" fn peer_state(
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

unsafe extern "C" fn state_dir(handle: *mut CallHandle, path: *mut Bytes) -> i32 {
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
