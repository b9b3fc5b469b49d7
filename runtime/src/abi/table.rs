//! The tables, as they are in memory. Everything here is `repr(C)`.

/// The version of these tables.
pub const ABI_VERSION: u32 = 1;
/// The one symbol of a module: a function without arguments that returns its [`ModuleTable`].
pub const MODULE_SYMBOL: &[u8] = b"praas_module_v1\0";

/// The function is short: it runs on the leader, which keeps the endpoint.
pub const FLAG_SHORT: u64 = 1;
/// The function runs long: another worker takes over the endpoint at once.
pub const FLAG_LONG: u64 = 2;
/// Running the function twice does no harm.
pub const FLAG_IDEMPOTENT: u64 = 4;

/// Flag of `message_get`: look, do not take.
pub const MESSAGE_PEEK: u32 = 1;

/// Version of `state_commit` that takes any object, and none.
pub const VERSION_ANY: u64 = u64::MAX;

/// Processes that one broadcast may name.
pub const BROADCAST_TO_MAX: u32 = 65_536;

/// Return codes besides those of [`crate::invocation::Status`].
pub mod code {
    /// Done.
    pub const OK: i32 = 0;
    /// No such object or message.
    pub const NOT_FOUND: i32 = 100;
    /// The object is at another version.
    pub const CONFLICT: i32 = 101;
    /// A limit of the process is reached.
    pub const LIMIT_REACHED: i32 = 102;
    /// An argument cannot be.
    pub const BAD_ARGUMENT: i32 = 103;
    /// The other process, or the storage, is not to be had.
    pub const UNAVAILABLE: i32 = 104;
    /// The object did not come back from storage as it was written.
    pub const CORRUPT: i32 = 105;
    /// Whoever asks may not have it.
    pub const FORBIDDEN: i32 = 106;
}

/// Bytes somewhere; for optional arguments a null pointer is "none".
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    /// The first byte; may be null if there are none.
    pub ptr: *const u8,
    /// How many.
    pub len: usize,
}

impl Bytes {
    /// No bytes.
    pub const NONE: Self = Self {
        ptr: std::ptr::null(),
        len: 0,
    };

    /// These bytes.
    pub const fn new(bytes: &[u8]) -> Self {
        Self {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
        }
    }

    /// The bytes.
    ///
    /// # Safety
    /// They are readable, and stay as they are, for as long as `'a`.
    pub unsafe fn as_slice<'a>(self) -> &'a [u8] {
        match self.ptr.is_null() || self.len == 0 {
            true => &[],
            // SAFETY: the caller says so.
            false => unsafe { std::slice::from_raw_parts(self.ptr, self.len) },
        }
    }
}

/// A running invocation, as the host knows it. Opaque to modules.
#[repr(C)]
#[derive(Debug)]
pub struct CallHandle {
    _opaque: [u8; 0],
}

/// Bytes that the host lends: released by `view_release`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RawView {
    /// The bytes.
    pub bytes: Bytes,
    /// The version, of a state object.
    pub version: u64,
    /// What to release; null if nothing.
    pub handle: *mut std::ffi::c_void,
}

impl RawView {
    /// Nothing.
    pub const NONE: Self = Self {
        bytes: Bytes::NONE,
        version: 0,
        handle: std::ptr::null_mut(),
    };
}

/// A message that the host lends.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MessageView {
    /// Who put it.
    pub source: RawView,
    /// What it carries.
    pub payload: RawView,
}

/// How one invocation of a batch ended.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BatchOutcome {
    /// The output, or the text of the error.
    pub view: RawView,
    /// The code: 0 if it was done.
    pub code: i32,
    /// Zero.
    pub reserved: u32,
}

/// The id of an invocation: its client's, and the client's number for it. A repetition has the same
/// id; so has a local invocation of one that is running.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InvocationId {
    /// The client's id, its lower half.
    pub client_low: u64,
    /// The client's id, its upper half.
    pub client_high: u64,
    /// The client's number for the invocation, counted for each process.
    pub sequence: u64,
}

/// Runs a function: reads the input, sets the output or the error, returns a code: zero is done,
/// one an error, three a panic.
pub type EntryFn =
    unsafe extern "C" fn(call: *mut CallHandle, host: *const HostTable, input: Bytes) -> i32;

/// A function of a module.
#[repr(C)]
#[derive(Debug)]
pub struct FunctionTable {
    /// Bytes of this table.
    pub size: usize,
    /// [`FLAG_SHORT`], [`FLAG_LONG`], [`FLAG_IDEMPOTENT`].
    pub flags: u64,
    /// Its name, UTF-8, 1 to 255 bytes.
    pub name: Bytes,
    /// Its code.
    pub entry: EntryFn,
    /// How many of its invocations may run at once; zero is as many as there are workers.
    pub concurrency: u32,
    /// Milliseconds that one invocation may run; zero is as long as it takes.
    pub time_ms: u32,
    /// Bytes that one invocation may hold through the host; zero is as many as there are.
    pub memory_bytes: u64,
}

/// Bytes of a [`FunctionTable`] of the first version, which has no limits.
pub const FUNCTION_TABLE_FIRST_BYTES: usize = 40;

// SAFETY: the table is never written, and points to what is never written nor freed.
unsafe impl Sync for FunctionTable {}

impl FunctionTable {
    /// The table of a function without limits.
    pub const fn new(name: &'static str, flags: u64, entry: EntryFn) -> Self {
        Self {
            size: size_of::<Self>(),
            flags,
            name: Bytes::new(name.as_bytes()),
            entry,
            concurrency: 0,
            time_ms: 0,
            memory_bytes: 0,
        }
    }

    /// The same, with limits; zero is none.
    pub const fn limited(self, concurrency: u32, time_ms: u32, memory_bytes: u64) -> Self {
        Self {
            concurrency,
            time_ms,
            memory_bytes,
            ..self
        }
    }
}

/// A module.
#[repr(C)]
#[derive(Debug)]
pub struct ModuleTable {
    /// Bytes of this table.
    pub size: usize,
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// Functions.
    pub function_count: u32,
    /// Its name, UTF-8, 1 to 255 bytes.
    pub name: Bytes,
    /// Pointers to the functions' tables.
    pub functions: *const *const FunctionTable,
}

// SAFETY: as for `FunctionTable`.
unsafe impl Sync for ModuleTable {}

impl ModuleTable {
    /// The table of a module.
    pub const fn new(name: &'static str, functions: &'static [&'static FunctionTable]) -> Self {
        Self {
            size: size_of::<Self>(),
            abi_version: ABI_VERSION,
            function_count: functions.len() as u32,
            name: Bytes::new(name.as_bytes()),
            functions: functions.as_ptr().cast(),
        }
    }
}

type CallPtr = *mut CallHandle;

/// What a host offers to functions. It grows only at its end: a function looks at `size` before
/// it uses what is beyond the first version. Timeouts are in microseconds, negative is none;
/// every `i32` is a code, whose text `error_text` gives.
#[repr(C)]
#[derive(Debug)]
pub struct HostTable {
    /// Bytes of this table.
    pub size: usize,
    /// Memory for the output: `len` bytes, zeroed or not, at `*out`. A later call replaces it.
    pub output_alloc: unsafe extern "C" fn(call: CallPtr, len: usize, out: *mut *mut u8) -> i32,
    /// Sets the text of the error that the function returns.
    pub error_set: unsafe extern "C" fn(call: CallPtr, text: Bytes),
    /// The text of the last error that a function of this table returned for this call.
    pub error_text: unsafe extern "C" fn(call: CallPtr) -> Bytes,
    /// 0 the application's name, 1 the process's, 2 the function's.
    pub name: unsafe extern "C" fn(call: CallPtr, which: u32) -> Bytes,
    /// The process's incarnation.
    pub incarnation: unsafe extern "C" fn(call: CallPtr) -> u64,
    /// Whether the function should end early: 1 or 0.
    pub cancelled: unsafe extern "C" fn(call: CallPtr) -> i32,
    /// Microseconds that the caller still waits; negative is for ever.
    pub deadline_left_us: unsafe extern "C" fn(call: CallPtr) -> i64,
    /// Gives a view back.
    pub view_release: unsafe extern "C" fn(view: RawView),
    /// Writes a state object; its new version.
    pub state_put:
        unsafe extern "C" fn(call: CallPtr, key: Bytes, value: Bytes, version: *mut u64) -> i32,
    /// Reads a state object without copying.
    pub state_view: unsafe extern "C" fn(call: CallPtr, key: Bytes, view: *mut RawView) -> i32,
    /// Deletes a state object.
    pub state_delete: unsafe extern "C" fn(call: CallPtr, key: Bytes) -> i32,
    /// Lists objects: for each its key's length (u32), key, length, version and milliseconds since
    /// the epoch (u64 each), little-endian.
    pub state_list: unsafe extern "C" fn(
        call: CallPtr,
        prefix: Bytes,
        after: Bytes,
        limit: usize,
        view: *mut RawView,
    ) -> i32,
    /// Writes an object if it is at version `expected` (0: absent); `version` is what it is then.
    pub state_compare_swap: unsafe extern "C" fn(
        call: CallPtr,
        key: Bytes,
        expected: u64,
        value: Bytes,
        version: *mut u64,
    ) -> i32,
    /// Adds bytes to an object; its new length.
    pub state_append:
        unsafe extern "C" fn(call: CallPtr, key: Bytes, value: Bytes, len: *mut u64) -> i32,
    /// Puts a message into a process's mailbox.
    pub message_put: unsafe extern "C" fn(
        call: CallPtr,
        to: Bytes,
        key: Bytes,
        payload: Bytes,
        timeout_us: i64,
    ) -> i32,
    /// Takes a message (or looks at it, by [`MESSAGE_PEEK`]) from `source` (null: anybody); a
    /// timeout of zero does not wait.
    pub message_get: unsafe extern "C" fn(
        call: CallPtr,
        source: Bytes,
        key: Bytes,
        flags: u32,
        timeout_us: i64,
        message: *mut MessageView,
    ) -> i32,
    /// Invokes a function, of this process if `process` is empty.
    pub invoke: unsafe extern "C" fn(
        call: CallPtr,
        process: Bytes,
        function: Bytes,
        input: Bytes,
        timeout_us: i64,
        output: *mut RawView,
    ) -> i32,
    /// The world once its generation is above `after` (`u64::MAX`: as it is): generation (u64),
    /// count (u32), and for each member its name's length (u32), name, incarnation (u64) and state
    /// (u8: 0 starting, 1 ready, 2 swapped, 3 gone), little-endian.
    pub world:
        unsafe extern "C" fn(call: CallPtr, after: u64, timeout_us: i64, view: *mut RawView) -> i32,
    /// Writes a line to the host's log: 0 error, 1 warning, 2 information, 3 debug.
    pub log: unsafe extern "C" fn(call: CallPtr, level: u32, text: Bytes),
    /// Invokes a function, of this process if `process` is empty, without waiting for it and
    /// without its output. The timeout is for its beginning.
    pub invoke_one_way: unsafe extern "C" fn(
        call: CallPtr,
        process: Bytes,
        function: Bytes,
        input: Bytes,
        timeout_us: i64,
    ) -> i32,
    /// Invokes a function with each of `count` inputs, and waits for all; each has an outcome of
    /// its own, in the order of the inputs.
    pub invoke_batch: unsafe extern "C" fn(
        call: CallPtr,
        process: Bytes,
        function: Bytes,
        inputs: *const Bytes,
        count: usize,
        timeout_us: i64,
        outcomes: *mut BatchOutcome,
    ) -> i32,
    /// Reads a state object of a process (empty: this one) by one-sided operations.
    pub peer_state: unsafe extern "C" fn(
        call: CallPtr,
        process: Bytes,
        key: Bytes,
        timeout_us: i64,
        view: *mut RawView,
    ) -> i32,
    /// Memory for the next value of a state object: `len` bytes at `*out`, aligned to 64 bytes,
    /// holding anything. `state_commit` makes it the value; a later call replaces it, and the end
    /// of the function frees it.
    pub state_alloc: unsafe extern "C" fn(call: CallPtr, len: usize, out: *mut *mut u8) -> i32,
    /// Makes the memory of `state_alloc` an object's value, without copying it, if the object is at
    /// version `expected` (0: absent; `u64::MAX`: whatever it is); `version` is what it is then. On
    /// a conflict the memory stays, for another try; after anything else it is gone.
    pub state_commit:
        unsafe extern "C" fn(call: CallPtr, key: Bytes, expected: u64, version: *mut u64) -> i32,
    /// Puts one message into the mailboxes of several processes at once, sharing its bytes: the
    /// `to_count` names at `to`, or (null) all other members of the world that are not gone. Done
    /// if all have acknowledged it; else the code of the first that did not. In any case, but for
    /// arguments that cannot be, `outcomes` has a count (u32) and for each receiver its name's
    /// length (u32), name, code (i32), and the length (u32) and text of its error, little-endian.
    pub message_broadcast: unsafe extern "C" fn(
        call: CallPtr,
        to: *const Bytes,
        to_count: usize,
        key: Bytes,
        payload: Bytes,
        timeout_us: i64,
        outcomes: *mut RawView,
    ) -> i32,
    /// The id of the invocation.
    pub invocation_id: unsafe extern "C" fn(call: CallPtr, id: *mut InvocationId),
    /// Writes a state object that shares a view's memory; the view stays the caller's.
    pub state_put_view:
        unsafe extern "C" fn(call: CallPtr, key: Bytes, view: RawView, version: *mut u64) -> i32,
    /// The path of the process's directory, whose files go into its images; good for the length of
    /// the call.
    pub state_dir: unsafe extern "C" fn(call: CallPtr, path: *mut Bytes) -> i32,
    /// Has what there is under a key, an object or that there is none, written through to storage,
    /// and waits for it: done, it outlives the host. `version` is what is durable, 0 for none.
    pub state_persist:
        unsafe extern "C" fn(call: CallPtr, key: Bytes, timeout_us: i64, version: *mut u64) -> i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_the_documented_one() {
        assert_eq!((size_of::<Bytes>(), size_of::<RawView>()), (16, 32));
        assert_eq!(size_of::<MessageView>(), 64);
        assert_eq!(size_of::<FunctionTable>(), 56);
        assert_eq!(size_of::<BatchOutcome>(), 40);
        assert_eq!(
            (
                offset_of!(FunctionTable, concurrency),
                offset_of!(FunctionTable, time_ms),
                offset_of!(FunctionTable, memory_bytes)
            ),
            (FUNCTION_TABLE_FIRST_BYTES, 44, 48)
        );
        assert_eq!(
            (
                offset_of!(FunctionTable, name),
                offset_of!(FunctionTable, entry)
            ),
            (16, 32)
        );
        assert_eq!(size_of::<ModuleTable>(), 40);
        assert_eq!(offset_of!(ModuleTable, abi_version), 8);
        assert_eq!(offset_of!(ModuleTable, function_count), 12);
        assert_eq!(
            (
                offset_of!(ModuleTable, name),
                offset_of!(ModuleTable, functions)
            ),
            (16, 32)
        );
        assert_eq!(offset_of!(HostTable, output_alloc), 8);
        assert_eq!(offset_of!(HostTable, state_put), 72);
        assert_eq!(offset_of!(HostTable, message_put), 120);
        assert_eq!(offset_of!(HostTable, log), 152);
        assert_eq!(offset_of!(HostTable, invoke_batch), 168);
        assert_eq!(offset_of!(HostTable, peer_state), 176);
        assert_eq!(offset_of!(HostTable, message_broadcast), 200);
        assert_eq!(offset_of!(HostTable, state_put_view), 216);
        assert_eq!(offset_of!(HostTable, state_dir), 224);
        assert_eq!(offset_of!(HostTable, state_persist), 232);
        assert_eq!(size_of::<HostTable>(), 240);
    }
}
