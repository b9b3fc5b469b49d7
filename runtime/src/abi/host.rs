//! The host's side: one running call, and the functions of the host table over [`Services`].

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::clock;
use praas_transport::{Buf, BufMut};

use super::table::{Bytes, CallHandle, EntryFn, HostTable, InvocationId, RawView, code};
use crate::invocation::{InlineBytes, InvokeError, PAYLOAD_INLINE_BYTES, Payload, Status};
use crate::services::{Charge, Held, Job, Services};
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
        state_put: super::state::state_put,
        state_view: super::state::state_view,
        state_delete: super::state::state_delete,
        state_list: super::state::state_list,
        state_compare_swap: super::state::state_compare_swap,
        state_append: super::state::state_append,
        message_put: super::messages::message_put,
        message_get: super::messages::message_get,
        invoke: super::calls::invoke,
        world,
        log,
        invoke_one_way: super::calls::invoke_one_way,
        invoke_batch: super::calls::invoke_batch,
        peer_state: super::state::peer_state,
        state_alloc: super::draft::state_alloc,
        state_commit: super::draft::state_commit,
        message_broadcast: super::broadcast::message_broadcast,
        invocation_id,
        state_put_view: super::state::state_put_view,
        state_dir: super::state::state_dir,
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
pub(super) struct Lent {
    pub(super) buf: Buf,
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
    pub(super) unsafe fn put(&mut self, key: Bytes, buf: Buf, version: *mut u64) -> i32 {
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
pub(super) fn invoke_told(error: InvokeError) -> (i32, String) {
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
