//! Atomics and the few primitives that lock-free code here is built from.
//!
//! One shim, so that the same source runs on the real atomics and, under `--cfg praas_loom`, on
//! loom's, which explores every interleaving. Nothing else in the workspace names
//! `std::sync::atomic`.

#[allow(unsafe_code)]
mod token;

pub use token::{Owned, OwnerToken};

/// Atomic types and orderings: the standard library's, or loom's under `--cfg praas_loom`.
pub mod atomic {
    #[cfg(not(praas_loom))]
    pub use self::standard::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
    #[cfg(praas_loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(praas_loom)]
    pub use std::sync::atomic::compiler_fence;
    #[cfg(not(praas_loom))]
    pub use std::sync::atomic::{Ordering, compiler_fence, fence};

    /// Aliases, not re-exports: clippy.toml bans the originals, and would find them behind a `use`.
    #[cfg(not(praas_loom))]
    #[expect(
        clippy::disallowed_types,
        reason = "this is the one place that names them"
    )]
    mod standard {
        /// See the standard library's.
        pub type AtomicBool = std::sync::atomic::AtomicBool;
        /// See the standard library's.
        pub type AtomicU8 = std::sync::atomic::AtomicU8;
        /// See the standard library's.
        pub type AtomicU32 = std::sync::atomic::AtomicU32;
        /// See the standard library's.
        pub type AtomicU64 = std::sync::atomic::AtomicU64;
        /// See the standard library's.
        pub type AtomicUsize = std::sync::atomic::AtomicUsize;
    }
}

/// Tells the processor (or loom's scheduler) that this is a busy-wait loop.
#[inline]
pub fn spin_hint() {
    #[cfg(praas_loom)]
    loom::thread::yield_now();
    #[cfg(not(praas_loom))]
    std::hint::spin_loop();
}
