//! Cloud processes: functions, invocations, state, mailboxes, swap, and the client SDK.
//!
//! A function is an ordinary Rust function with an attribute, in a shared library or linked in:
//!
//! ```
//! use praas_runtime::prelude::*;
//!
//! #[praas_runtime::function]
//! fn greet(_context: &Context, name: String) -> String {
//!     format!("hello {name}")
//! }
//!
//! praas_runtime::module!(static "greeting", [greet]);
//! # fn main() { module(); }
//! ```

pub mod abi;
pub mod client;
pub mod codec;
pub mod context;
pub mod directory;
pub mod files;
pub mod function;
pub mod host;
pub mod invocation;
pub mod locate;
pub mod mailbox;
pub mod process;
pub mod services;
pub mod state;
pub mod swap;
pub mod transfer;
pub mod world;

/// Makes a cloud process's function of an ordinary one.
///
/// ```text
/// #[function]                         name: the function's own
/// #[function(name = "a.b", short)]    flags: short, long, idempotent
/// #[function(concurrency = 1)]        limits: concurrency, time_ms, memory_bytes
/// fn f(context: &Context, input: I) -> O
/// ```
/// Both parameters may be left out. `I` is `&[u8]` (raw) or any type that serde reads; `O`, or the
/// `O` of a `Result<O, E>` whose error turns into a [`context::FunctionError`], is `Vec<u8>`,
/// [`abi::View`] or [`abi::Output`] (raw), `()` (nothing), or any type that serde writes.
pub use praas_macros::function;

/// What functions use.
pub mod prelude {
    pub use crate::abi::{Output, View};
    pub use crate::context::{
        CallError, Context, FunctionError, LogLevel, Message, StateEntry, Told, WorldMember,
        WorldMembers,
    };
    pub use crate::function;
    pub use crate::world::MemberState;
}

/// Names the functions of a module: `module!("name", [function, ...])` in a cdylib gives it its
/// one C symbol; `module!(static "name", [...])` does without the symbol, for functions that are
/// only linked in. Both define `module()`, the table for [`function::Registry::module_add`].
#[macro_export]
macro_rules! module {
    (static $name:literal, [$($function:path),* $(,)?]) => {
        /// The table of this module.
        pub fn module() -> &'static $crate::abi::ModuleTable {
            static FUNCTIONS: &[&$crate::abi::FunctionTable] =
                &[$(<$function as $crate::abi::GuestFunction>::TABLE),*];
            static MODULE: $crate::abi::ModuleTable =
                $crate::abi::ModuleTable::new($name, FUNCTIONS);
            &MODULE
        }
    };
    ($name:literal, [$($function:path),* $(,)?]) => {
        $crate::module!(static $name, [$($function),*]);

        /// The symbol by which hosts find the module.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        pub extern "C" fn praas_module_v1() -> *const $crate::abi::ModuleTable {
            module()
        }
    };
}
