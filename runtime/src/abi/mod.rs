//! The function ABI: C tables between a process and the modules with its functions.
//!
//! ```text
//!   module (any language)                          host
//!     praas_module_v1() --> ModuleTable ---------> Registry
//!     entry(call, host, input) <------------------ Function::call
//!        host->state_put(call, ...) -------------> Services
//! ```
//!
//! No Rust type, allocator or unwinding crosses. Tables begin with their size and grow only at
//! their ends; output memory is the host's; panics are caught inside the module. `docs/abi.md`
//! has the tables to the byte, `bindings/c/include/praas.h` is their print.

#![allow(unsafe_code)]

mod broadcast;
mod calls;
mod draft;
mod guest;
mod host;
mod messages;
mod module;
mod persist;
mod state;
mod table;

pub(crate) use self::guest::Guest;
pub use self::guest::{GuestFunction, Output, View};
pub(crate) use self::host::call_run;
pub use self::host::invoke_code;
pub use self::module::{MODULE_FUNCTIONS_MAX, ModuleError};
pub(crate) use self::module::{module_check, module_load};
pub use self::table::{
    ABI_VERSION, BROADCAST_TO_MAX, BatchOutcome, Bytes, CallHandle, EntryFn, FLAG_IDEMPOTENT,
    FLAG_LONG, FLAG_SHORT, FUNCTION_TABLE_FIRST_BYTES, FunctionTable, HostTable, InvocationId,
    MESSAGE_PEEK, MODULE_SYMBOL, MessageView, ModuleTable, RawView, VERSION_ANY, code,
};
