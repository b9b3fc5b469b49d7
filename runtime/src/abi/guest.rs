//! The module's side: a call as a function sees it, over the host's table. The code here is
//! compiled into the module; it shares nothing with the host but the tables.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;

use super::table::{
    BatchOutcome, Bytes, CallHandle, FunctionTable, HostTable, InvocationId, MessageView, RawView,
    code,
};
use crate::context::{CallError, Context, FunctionError};
use crate::invocation::Status;

/// What the attribute macro makes of a function.
pub trait GuestFunction: Sized + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Its flags.
    const FLAGS: u64;
    /// How many of its invocations may run at once; zero is no limit.
    const CONCURRENCY: u32 = 0;
    /// Milliseconds that one of its invocations may run; zero is no limit.
    const TIME_MS: u32 = 0;
    /// Bytes that one of its invocations may hold through the host; zero is no limit.
    const MEMORY_BYTES: u64 = 0;
    /// Its table, for [`crate::module!`].
    const TABLE: &'static FunctionTable = &FunctionTable::new(
        Self::NAME,
        Self::FLAGS,
        entry::<Self>,
    )
    .limited(Self::CONCURRENCY, Self::TIME_MS, Self::MEMORY_BYTES);

    /// Runs it: reads the input, sets the output.
    ///
    /// # Errors
    /// What the function returns.
    fn run(context: &Context<'_>, input: &[u8]) -> Result<(), FunctionError>;
}

/// The code behind [`GuestFunction::TABLE`].
unsafe extern "C" fn entry<F: GuestFunction>(
    call: *mut CallHandle,
    host: *const HostTable,
    input: Bytes,
) -> i32 {
    // SAFETY: the host keeps its table, and the input for the length of the call.
    let (host, input) = unsafe { (&*host, input.as_slice()) };
    let guest = Guest {
        call,
        host,
        output_taken: Cell::new(false),
        not_send: PhantomData,
    };
    let context = Context::new(guest);
    let outcome = catch_unwind(AssertUnwindSafe(|| F::run(&context, input)));
    let (code, text) = match &outcome {
        Ok(Ok(())) => return code::OK,
        Ok(Err(error)) => (error.status() as i32, error.text()),
        Err(panic) => (Status::Panicked as i32, panic_text(&**panic)),
    };
    // SAFETY: the call still runs.
    unsafe { (host.error_set)(call, Bytes::new(text.as_bytes())) };
    // What was thrown may panic when it is dropped.
    if let Err(panic) = outcome
        && let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        std::mem::forget(again);
    }
    code
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a text")
}

/// Makes an object's next value of the one that it has.
pub(crate) type Writer<'a> = dyn FnMut(&[u8], &mut [u8]) -> Result<(), CallError> + 'a;

/// One running call.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    call: *mut CallHandle,
    host: &'a HostTable,
    output_taken: Cell<bool>,
    /// Hosts may tell callers by their threads.
    not_send: PhantomData<*const ()>,
}

impl Guest<'_> {
    /// Turns a code into an error with the host's text.
    fn check(&self, code: i32) -> Result<(), CallError> {
        if code == code::OK {
            return Ok(());
        }
        // SAFETY: the call still runs; the text stays until the next call of the table.
        let text = unsafe { (self.host.error_text)(self.call).as_slice() };
        Err(CallError::from_code(code, &String::from_utf8_lossy(text)))
    }

    /// Names: 0 application, 1 process, 2 function.
    pub(crate) fn name(&self, which: u32) -> &str {
        // SAFETY: names stay for the length of the call, and are UTF-8 as the table says.
        let name = unsafe { (self.host.name)(self.call, which).as_slice() };
        std::str::from_utf8(name).unwrap_or_default()
    }

    pub(crate) fn incarnation(&self) -> u64 {
        // SAFETY: the call still runs.
        unsafe { (self.host.incarnation)(self.call) }
    }

    /// The client, and its number for the invocation.
    pub(crate) fn invocation_id(&self) -> Result<(u128, u64), CallError> {
        self.offers(offset_of!(HostTable, invocation_id))?;
        let mut id = InvocationId::default();
        // SAFETY: the call still runs; the id is writable.
        unsafe { (self.host.invocation_id)(self.call, &raw mut id) };
        let client = u128::from(id.client_high) << 64 | u128::from(id.client_low);
        Ok((client, id.sequence))
    }

    pub(crate) fn cancelled(&self) -> bool {
        // SAFETY: the call still runs.
        unsafe { (self.host.cancelled)(self.call) != 0 }
    }

    pub(crate) fn deadline_left_us(&self) -> Option<u64> {
        // SAFETY: the call still runs.
        u64::try_from(unsafe { (self.host.deadline_left_us)(self.call) }).ok()
    }

    /// Memory for the output; once per call, since a second piece would replace the first.
    pub(crate) fn output(&self, len: usize) -> Result<Output<'_>, CallError> {
        if self.output_taken.replace(true) {
            return Err(CallError::BadArgument("the output was made already".into()));
        }
        let mut memory = ptr::null_mut();
        // SAFETY: the call still runs; `memory` is writable.
        let code = unsafe { (self.host.output_alloc)(self.call, len, &raw mut memory) };
        self.check(code)?;
        let bytes = match len {
            0 => &mut [],
            // SAFETY: the host has given so many initialised bytes, to us alone, until the call
            // ends; the flag above keeps it at one loan.
            _ => unsafe { std::slice::from_raw_parts_mut(memory, len) },
        };
        Ok(Output { bytes })
    }

    pub(crate) fn state_put(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        let (key, value) = (Bytes::new(key.as_bytes()), Bytes::new(value));
        let mut version = 0;
        // SAFETY: the call still runs; arguments live across it.
        let code = unsafe { (self.host.state_put)(self.call, key, value, &raw mut version) };
        self.check(code).map(|()| version)
    }

    pub(crate) fn state_view(&self, key: &str) -> Result<View, CallError> {
        let mut view = RawView::NONE;
        let key = Bytes::new(key.as_bytes());
        // SAFETY: as above.
        let code = unsafe { (self.host.state_view)(self.call, key, &raw mut view) };
        self.view(code, view)
    }

    /// The version that is durable.
    pub(crate) fn state_persist(&self, key: &str, timeout_us: i64) -> Result<u64, CallError> {
        self.offers(offset_of!(HostTable, state_persist))?;
        let key = Bytes::new(key.as_bytes());
        let mut version = 0;
        // SAFETY: as above; the table has it.
        let code =
            unsafe { (self.host.state_persist)(self.call, key, timeout_us, &raw mut version) };
        self.check(code).map(|()| version)
    }

    pub(crate) fn state_delete(&self, key: &str) -> Result<(), CallError> {
        // SAFETY: as above.
        self.check(unsafe { (self.host.state_delete)(self.call, Bytes::new(key.as_bytes())) })
    }

    pub(crate) fn state_list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<View, CallError> {
        let after = after.map_or(Bytes::NONE, |after| Bytes::new(after.as_bytes()));
        let prefix = Bytes::new(prefix.as_bytes());
        let mut view = RawView::NONE;
        // SAFETY: as above.
        let code =
            unsafe { (self.host.state_list)(self.call, prefix, after, limit, &raw mut view) };
        self.view(code, view)
    }

    /// The new version, or the one that the object has.
    pub(crate) fn state_compare_swap(
        &self,
        key: &str,
        expected: u64,
        value: &[u8],
    ) -> Result<Result<u64, u64>, CallError> {
        let (key, value) = (Bytes::new(key.as_bytes()), Bytes::new(value));
        let mut version = 0;
        // SAFETY: as above.
        let code = unsafe {
            (self.host.state_compare_swap)(self.call, key, expected, value, &raw mut version)
        };
        match code {
            code::CONFLICT => Ok(Err(version)),
            code => self.check(code).map(|()| Ok(version)),
        }
    }

    pub(crate) fn state_append(&self, key: &str, value: &[u8]) -> Result<u64, CallError> {
        let (key, value) = (Bytes::new(key.as_bytes()), Bytes::new(value));
        let mut len = 0;
        // SAFETY: as above.
        let code = unsafe { (self.host.state_append)(self.call, key, value, &raw mut len) };
        self.check(code).map(|()| len)
    }

    /// Memory for the next value of a state object, to be filled before it is committed.
    ///
    /// # Safety
    /// Nothing of it is used after a commit that is done, or another call of this.
    #[allow(clippy::mut_from_ref)] // Each call gives memory of its own.
    unsafe fn state_alloc(&self, len: usize) -> Result<&mut [u8], CallError> {
        self.offers(offset_of!(HostTable, state_commit))?;
        let mut memory = ptr::null_mut();
        // SAFETY: as above.
        let code = unsafe { (self.host.state_alloc)(self.call, len, &raw mut memory) };
        self.check(code)?;
        match len {
            0 => Ok(&mut []),
            // SAFETY: the host has given so many initialised bytes, to us alone, until what the
            // caller of this keeps to.
            _ => Ok(unsafe { std::slice::from_raw_parts_mut(memory, len) }),
        }
    }

    /// Writes an object in its own memory: `write` is given the value that it has and memory of
    /// `len` bytes for the next one, until nobody was faster.
    pub(crate) fn state_update(
        &self,
        key: &str,
        len: usize,
        write: &mut Writer<'_>,
    ) -> Result<u64, CallError> {
        // SAFETY: the loop ends with the first commit that is done, and allocates once.
        let draft = match unsafe { self.state_alloc(len) } {
            // The limit has no room for both values, but it may have for one.
            Err(CallError::LimitReached(_)) => return self.state_update_copied(key, len, write),
            draft => draft?,
        };
        let bytes = Bytes::new(key.as_bytes());
        loop {
            let old = self.state_view_any(key)?;
            write(old.as_deref().unwrap_or(&[]), draft)?;
            let (expected, mut version) = (old.map_or(0, |view| view.version()), 0);
            // SAFETY: as above.
            let code =
                unsafe { (self.host.state_commit)(self.call, bytes, expected, &raw mut version) };
            match code {
                code::CONFLICT if self.cancelled() => return Err(CallError::Cancelled),
                code::CONFLICT => {}
                code => return self.check(code).map(|()| version),
            }
        }
    }

    /// As [`Self::state_update`], in memory of the function's own, of which the object is a copy.
    fn state_update_copied(
        &self,
        key: &str,
        len: usize,
        write: &mut Writer<'_>,
    ) -> Result<u64, CallError> {
        // No more is asked of the system than could be an object in the place of the old one.
        let bytes = self.state_view_any(key)?.map_or(0, |old| old.len());
        // SAFETY: what is had is not used; the second call gives it back.
        unsafe {
            self.state_alloc(len.saturating_sub(bytes))?;
            self.state_alloc(0)?;
        }
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(len)
            .map_err(|error| CallError::Exhausted(error.to_string()))?;
        memory.resize(len, 0);
        loop {
            let old = self.state_view_any(key)?;
            write(old.as_deref().unwrap_or(&[]), &mut memory)?;
            let expected = old.map_or(0, |view| view.version());
            match self.state_compare_swap(key, expected, &memory)? {
                Ok(version) => return Ok(version),
                Err(_) if self.cancelled() => return Err(CallError::Cancelled),
                Err(_) => {}
            }
        }
    }

    /// An object, if there is one.
    fn state_view_any(&self, key: &str) -> Result<Option<View>, CallError> {
        match self.state_view(key) {
            Ok(view) => Ok(Some(view)),
            Err(CallError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names, codes and texts of a broadcast to these processes, or to all others.
    pub(crate) fn message_broadcast(
        &self,
        to: Option<&[&str]>,
        key: &str,
        payload: &[u8],
        timeout_us: i64,
    ) -> Result<View, CallError> {
        self.offers(offset_of!(HostTable, message_broadcast))?;
        let names: Vec<Bytes> = to
            .unwrap_or_default()
            .iter()
            .map(|name| Bytes::new(name.as_bytes()))
            .collect();
        let to = to.map_or(ptr::null(), |_| names.as_ptr());
        let (key, payload) = (Bytes::new(key.as_bytes()), Bytes::new(payload));
        let mut view = RawView::NONE;
        // SAFETY: as above.
        let code = unsafe {
            (self.host.message_broadcast)(
                self.call,
                to,
                names.len(),
                key,
                payload,
                timeout_us,
                &raw mut view,
            )
        };
        match view.handle.is_null() {
            // The outcomes say more than the code does.
            false => self.view(code::OK, view),
            true => self.view(code, view),
        }
    }

    pub(crate) fn message_put(
        &self,
        to: &str,
        key: &str,
        payload: &[u8],
        timeout_us: i64,
    ) -> Result<(), CallError> {
        let (to, key) = (Bytes::new(to.as_bytes()), Bytes::new(key.as_bytes()));
        let payload = Bytes::new(payload);
        // SAFETY: as above.
        self.check(unsafe { (self.host.message_put)(self.call, to, key, payload, timeout_us) })
    }

    /// Source and payload.
    pub(crate) fn message_get(
        &self,
        source: Option<&str>,
        key: &str,
        flags: u32,
        timeout_us: i64,
    ) -> Result<(View, View), CallError> {
        let source = source.map_or(Bytes::NONE, |source| Bytes::new(source.as_bytes()));
        let key = Bytes::new(key.as_bytes());
        let mut message = MessageView {
            source: RawView::NONE,
            payload: RawView::NONE,
        };
        // SAFETY: as above.
        let code = unsafe {
            (self.host.message_get)(self.call, source, key, flags, timeout_us, &raw mut message)
        };
        self.check(code)?;
        Ok((
            self.view(code, message.source)?,
            self.view(code, message.payload)?,
        ))
    }

    pub(crate) fn invoke(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
        timeout_us: i64,
    ) -> Result<View, CallError> {
        let (process, function) = (
            Bytes::new(process.as_bytes()),
            Bytes::new(function.as_bytes()),
        );
        let input = Bytes::new(input);
        let mut view = RawView::NONE;
        // SAFETY: as above.
        let code = unsafe {
            (self.host.invoke)(
                self.call,
                process,
                function,
                input,
                timeout_us,
                &raw mut view,
            )
        };
        self.view(code, view)
    }

    pub(crate) fn invoke_one_way(
        &self,
        process: &str,
        function: &str,
        input: &[u8],
        timeout_us: i64,
    ) -> Result<(), CallError> {
        self.offers(offset_of!(HostTable, invoke_one_way))?;
        let (process, function) = (
            Bytes::new(process.as_bytes()),
            Bytes::new(function.as_bytes()),
        );
        let input = Bytes::new(input);
        // SAFETY: as above; the table has it.
        self.check(unsafe {
            (self.host.invoke_one_way)(self.call, process, function, input, timeout_us)
        })
    }

    /// The outcomes, in the order of the inputs.
    pub(crate) fn invoke_batch(
        &self,
        process: &str,
        function: &str,
        inputs: &[Bytes],
        timeout_us: i64,
    ) -> Result<Vec<Result<View, CallError>>, CallError> {
        self.offers(offset_of!(HostTable, invoke_batch))?;
        let (process, function) = (
            Bytes::new(process.as_bytes()),
            Bytes::new(function.as_bytes()),
        );
        let none = BatchOutcome {
            view: RawView::NONE,
            code: 0,
            reserved: 0,
        };
        let mut outcomes = vec![none; inputs.len()];
        // SAFETY: as above; there are as many outcomes as inputs.
        self.check(unsafe {
            (self.host.invoke_batch)(
                self.call,
                process,
                function,
                inputs.as_ptr(),
                inputs.len(),
                timeout_us,
                outcomes.as_mut_ptr(),
            )
        })?;
        let release = self.host.view_release;
        let outcomes = outcomes.into_iter().map(|outcome| {
            let view = View {
                raw: outcome.view,
                release,
            };
            match outcome.code {
                code::OK => Ok(view),
                code => Err(CallError::from_code(code, &String::from_utf8_lossy(&view))),
            }
        });
        Ok(outcomes.collect())
    }

    /// Whether the host's table has the field at `offset`: an older one ends before it.
    fn offers(&self, offset: usize) -> Result<(), CallError> {
        match offset + size_of::<usize>() <= self.host.size {
            true => Ok(()),
            false => Err(CallError::Other {
                code: code::BAD_ARGUMENT,
                text: "this host is older than the function, and does not offer that".into(),
            }),
        }
    }

    pub(crate) fn world(&self, after: u64, timeout_us: i64) -> Result<View, CallError> {
        let mut view = RawView::NONE;
        // SAFETY: as above.
        let code = unsafe { (self.host.world)(self.call, after, timeout_us, &raw mut view) };
        self.view(code, view)
    }

    pub(crate) fn peer_state(
        &self,
        process: &str,
        key: &str,
        timeout_us: i64,
    ) -> Result<View, CallError> {
        self.has(offset_of!(HostTable, peer_state))?;
        let (process, key) = (Bytes::new(process.as_bytes()), Bytes::new(key.as_bytes()));
        let mut view = RawView::NONE;
        // SAFETY: as above; the table has the field.
        let code =
            unsafe { (self.host.peer_state)(self.call, process, key, timeout_us, &raw mut view) };
        self.view(code, view)
    }

    pub(crate) fn state_put_view(&self, key: &str, view: &View) -> Result<u64, CallError> {
        self.has(offset_of!(HostTable, state_put_view))?;
        let key = Bytes::new(key.as_bytes());
        let mut version = 0;
        // SAFETY: as above; the view lives across the call.
        let code =
            unsafe { (self.host.state_put_view)(self.call, key, view.raw, &raw mut version) };
        self.check(code).map(|()| version)
    }

    pub(crate) fn state_dir(&self) -> Result<PathBuf, CallError> {
        self.has(offset_of!(HostTable, state_dir))?;
        let mut path = Bytes::NONE;
        // SAFETY: as above; the table has the field.
        let code = unsafe { (self.host.state_dir)(self.call, &raw mut path) };
        self.check(code)?;
        // SAFETY: the path stays for the length of the call.
        let path = unsafe { path.as_slice() };
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
    }

    /// Whether the host's table goes on behind the function at `offset`: hosts may be older.
    fn has(&self, offset: usize) -> Result<(), CallError> {
        // SAFETY: the size is the first word of every version's table.
        let size = unsafe { (&raw const *self.host).cast::<usize>().read() };
        match offset < size {
            true => Ok(()),
            false => Err(CallError::Other {
                code: 0,
                text: "the host is older than the module, and has no such function".into(),
            }),
        }
    }

    pub(crate) fn log(&self, level: u32, text: &str) {
        // SAFETY: as above.
        unsafe { (self.host.log)(self.call, level, Bytes::new(text.as_bytes())) };
    }

    fn view(&self, code: i32, raw: RawView) -> Result<View, CallError> {
        self.check(code)?;
        Ok(View {
            raw,
            release: self.host.view_release,
        })
    }
}

/// Bytes that the host lends without copying: a state object as it was when it was looked at, a
/// message, an output. They stay as they are for as long as the view lives, whatever becomes of
/// the object.
pub struct View {
    raw: RawView,
    release: unsafe extern "C" fn(RawView),
}

// SAFETY: the bytes are never written while the host lends them, and the host takes them back
// from any thread.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The version of a state object; zero for other bytes.
    pub fn version(&self) -> u64 {
        self.raw.version
    }
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the host lends them until they are released.
        unsafe { self.raw.bytes.as_slice() }
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} bytes, version {})", self.len(), self.version())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: given back once.
        unsafe { (self.release)(self.raw) };
    }
}

/// The output, in the memory that it is sent from. A function that fills it and returns it saves
/// a copy.
#[derive(Debug)]
pub struct Output<'a> {
    bytes: &'a mut [u8],
}

impl Deref for Output<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Output<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}
