//! Memory that several processes have mapped: what is in it may change at any time.
//!
//! It is only ever accessed by atomics, and by copies that the compiler cannot see into, so that
//! what a peer writes meanwhile is no undefined behaviour here. Nothing read from it is believed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_get_seals, fstatfs, ftruncate, memfd_create as memfd,
};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::sync::atomic::{AtomicU32, AtomicU64};

/// A shared mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) at: NonNull<u8>,
    pub(crate) len: usize,
}

// SAFETY: the mapping is shared memory, accessed only by atomics and by the copies below.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> io::Result<Self> {
        Self::map_with(fd, len, prot, MapFlags::SHARED)
    }

    pub(crate) fn map_with(
        fd: BorrowedFd<'_>,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping, placed by the kernel, overlaps nothing of ours.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) }?;
        // A forked child has no business with our channels.
        // SAFETY: the range is the mapping just made.
        let advised = unsafe { rustix::mm::madvise(at, len, Advice::LinuxDontFork) };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { at, len };
        advised?;
        Ok(mapping)
    }

    /// The 32-bit word at a byte offset.
    #[inline]
    pub(crate) fn word32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        // SAFETY: in range and aligned; the memory is only ever accessed atomically as a word or
        // by the racy copies of this module, and lives as long as `self`.
        unsafe { &*self.at.as_ptr().add(at).cast::<AtomicU32>() }
    }

    /// The 64-bit word at a byte offset.
    #[inline]
    pub(crate) fn word64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: as in `word32`.
        unsafe { &*self.at.as_ptr().add(at).cast::<AtomicU64>() }
    }

    /// Copies into the mapping.
    #[inline]
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        // SAFETY: the destination is in range; the source is private memory, so they do not
        // overlap.
        unsafe { copy_in(self.at.as_ptr().add(at), bytes.as_ptr(), bytes.len()) };
    }

    /// Copies out of the mapping.
    #[inline]
    pub(crate) fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at <= self.len && into.len() <= self.len - at);
        // SAFETY: the source is in range; the destination is private memory.
        unsafe { copy_out(into.as_mut_ptr(), self.at.as_ptr().add(at), into.len()) };
    }
}

impl Mapping {
    /// Copies from one place of the mapping to another, as fast as the processor can. Both sides
    /// must agree that neither writes there meanwhile; nothing that guards against a peer is made
    /// of this.
    #[inline]
    pub(crate) fn copy_within(&self, from: usize, to: usize, len: usize) {
        assert!(from <= self.len && len <= self.len - from);
        assert!(to <= self.len && len <= self.len - to && from.abs_diff(to) >= len);
        // SAFETY: both ranges are within the mapping and do not overlap, by the assertions.
        unsafe {
            let base = self.at.as_ptr();
            std::ptr::copy_nonoverlapping(base.add(from), base.add(to), len);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping; whoever borrowed from it borrowed `self`.
        // Unmapping what was mapped cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// Copies out of shared memory while the peer may write to it.
///
/// A plain copy would be a data race in the eyes of the compiler, which might read a byte twice
/// and find it changed. So the shared side is accessed by instructions that the compiler cannot
/// see into, word by word for what is short, and what they read is private.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_out(to: *mut u8, from: *const u8, len: usize) {
    if len > WORDS_BYTES_MAX {
        // SAFETY: the caller says so.
        return unsafe { copy_long(to, from, len) };
    }
    let mut at = 0;
    // SAFETY: every access is within both ranges, by the caller's promise; alignment is not asked
    // for.
    unsafe {
        while at + 8 <= len {
            to.add(at)
                .cast::<u64>()
                .write_unaligned(word::load8(from.add(at)));
            at += 8;
        }
        if len - at >= 4 {
            to.add(at)
                .cast::<u32>()
                .write_unaligned(word::load4(from.add(at)));
            at += 4;
        }
        while at < len {
            to.add(at).write(word::load1(from.add(at)));
            at += 1;
        }
    }
}

/// Copies into shared memory while the peer may write to it; see [`copy_out`].
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_in(to: *mut u8, from: *const u8, len: usize) {
    if len > WORDS_BYTES_MAX {
        // SAFETY: the caller says so.
        return unsafe { copy_long(to, from, len) };
    }
    let mut at = 0;
    // SAFETY: as in `copy_out`.
    unsafe {
        while at + 8 <= len {
            word::store8(to.add(at), from.add(at).cast::<u64>().read_unaligned());
            at += 8;
        }
        if len - at >= 4 {
            word::store4(to.add(at), from.add(at).cast::<u32>().read_unaligned());
            at += 4;
        }
        while at < len {
            word::store1(to.add(at), from.add(at).read());
            at += 1;
        }
    }
}

/// Up to this many bytes are copied word by word.
const WORDS_BYTES_MAX: usize = 192;
/// Up to this many bytes are copied line by line: less than it takes for the processor's own copy
/// to be worth its start.
#[cfg(target_arch = "x86_64")]
const LINES_BYTES_MAX: usize = 4096;

/// Copies by instructions that the compiler cannot see into.
///
/// # Safety
/// Both ranges are valid for `len` bytes and do not overlap; `len` is above [`WORDS_BYTES_MAX`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn copy_long(to: *mut u8, from: *const u8, len: usize) {
    if len > LINES_BYTES_MAX {
        // SAFETY: `rep movsb` copies `len` bytes between the two ranges, which are valid and do
        // not overlap; the direction flag is clear by the ABI.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rdi") to => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    // SAFETY: the loop copies whole lines, of which there is at least one, and after it the last
    // 64 bytes, some of them again; both within the ranges.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, xmmword ptr [{from}]",
            "movdqu {b}, xmmword ptr [{from} + 16]",
            "movdqu {c}, xmmword ptr [{from} + 32]",
            "movdqu {d}, xmmword ptr [{from} + 48]",
            "movdqu xmmword ptr [{to}], {a}",
            "movdqu xmmword ptr [{to} + 16], {b}",
            "movdqu xmmword ptr [{to} + 32], {c}",
            "movdqu xmmword ptr [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "cmp {from}, {end}",
            "jb 2b",
            "movdqu {a}, xmmword ptr [{last_from}]",
            "movdqu {b}, xmmword ptr [{last_from} + 16]",
            "movdqu {c}, xmmword ptr [{last_from} + 32]",
            "movdqu {d}, xmmword ptr [{last_from} + 48]",
            "movdqu xmmword ptr [{last_to}], {a}",
            "movdqu xmmword ptr [{last_to} + 16], {b}",
            "movdqu xmmword ptr [{last_to} + 32], {c}",
            "movdqu xmmword ptr [{last_to} + 48], {d}",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            end = in(reg) from.add(len - len % 64),
            last_from = in(reg) from.add(len - 64),
            last_to = in(reg) to.add(len - 64),
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack)
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_long(to: *mut u8, from: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: within both ranges, by the caller's promise.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}

/// Single accesses to shared memory. Volatile ones of the language ask for alignment, which
/// payloads have not, or go byte by byte.
#[cfg(target_arch = "x86_64")]
mod word {
    use std::arch::asm;

    /// # Safety
    /// The word is readable.
    #[inline(always)]
    pub(super) unsafe fn load8(from: *const u8) -> u64 {
        let value;
        // SAFETY: one load of what the caller says is readable.
        unsafe {
            asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) from,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// The word is readable.
    #[inline(always)]
    pub(super) unsafe fn load4(from: *const u8) -> u32 {
        let value;
        // SAFETY: one load of what the caller says is readable.
        unsafe {
            asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) from,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// The byte is readable.
    #[inline(always)]
    pub(super) unsafe fn load1(from: *const u8) -> u8 {
        // SAFETY: the caller says so; bytes are aligned.
        unsafe { from.read_volatile() }
    }

    /// # Safety
    /// The word is writable.
    #[inline(always)]
    pub(super) unsafe fn store8(to: *mut u8, value: u64) {
        // SAFETY: one store to what the caller says is writable.
        unsafe {
            asm!("mov qword ptr [{}], {}", in(reg) to, in(reg) value,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// The word is writable.
    #[inline(always)]
    pub(super) unsafe fn store4(to: *mut u8, value: u32) {
        // SAFETY: one store to what the caller says is writable.
        unsafe {
            asm!("mov dword ptr [{}], {:e}", in(reg) to, in(reg) value,
                options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// The byte is writable.
    #[inline(always)]
    pub(super) unsafe fn store1(to: *mut u8, value: u8) {
        // SAFETY: the caller says so; bytes are aligned.
        unsafe { to.write_volatile(value) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod word {
    macro_rules! accesses {
        ($($load:ident $store:ident $word:ty;)*) => {
            $(
                /// # Safety
                /// The word is readable.
                #[inline(always)]
                pub(super) unsafe fn $load(from: *const u8) -> $word {
                    // SAFETY: the caller says so; an array of bytes is aligned.
                    let bytes = unsafe { from.cast::<[u8; size_of::<$word>()]>().read_volatile() };
                    <$word>::from_ne_bytes(bytes)
                }

                /// # Safety
                /// The word is writable.
                #[inline(always)]
                pub(super) unsafe fn $store(to: *mut u8, value: $word) {
                    let to = to.cast::<[u8; size_of::<$word>()]>();
                    // SAFETY: the caller says so; an array of bytes is aligned.
                    unsafe { to.write_volatile(value.to_ne_bytes()) };
                }
            )*
        };
    }

    accesses! {
        load8 store8 u64;
        load4 store4 u32;
        load1 store1 u8;
    }
}

/// What `fstatfs` says of memory files that are made of ordinary pages.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A memory file of zeros, which may be sealed.
pub(crate) fn memfd_create_sized(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    // Beyond this limit the kernel would not refuse but end the process by a signal.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    if let Some(limit) = limit.filter(|limit| bytes as u64 > *limit) {
        let text = format!("{bytes} bytes are above the limit on files (RLIMIT_FSIZE, {limit})");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag.
    let fd = memfd(name, flags | MemfdFlags::NOEXEC_SEAL).or_else(|_| memfd(name, flags))?;
    ftruncate(&fd, bytes as u64)?;
    Ok(fd)
}

/// Checks that a descriptor from a peer is a memfd which cannot be shrunk and has the size.
pub(crate) fn memfd_check(fd: BorrowedFd<'_>, bytes: u64, seals: SealFlags) -> io::Result<()> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let have = fcntl_get_seals(fd).map_err(|_| wrong("the peer's memory is no memfd"))?;
    if !have.contains(seals) {
        return Err(wrong("the peer's memory is not sealed"));
    }
    // Huge pages may be missing when they are touched, which is a fault.
    if fstatfs(fd)?.f_type as i64 != TMPFS_MAGIC {
        return Err(wrong("the peer's memory is not of ordinary pages"));
    }
    match rustix::fs::fstat(fd)?.st_size as u64 == bytes {
        true => Ok(()),
        false => Err(wrong("the peer's memory has the wrong size")),
    }
}
