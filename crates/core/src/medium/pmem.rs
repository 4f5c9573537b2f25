//! Cache-line write-back for persistent memory.
//!
//! `clwb` keeps the line cached; where the processor lacks it `clflushopt` or `clflush` do. The intrinsics for `clwb`
//! are not stable in Rust, hence two lines of assembly. arm64 has `dc cvap`.

use std::sync::atomic::{AtomicU8, Ordering};

const LINE: usize = 64;

/// How lines are written back on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteBack {
    /// Not asked yet.
    Unknown = 0,
    /// `clwb`
    Clwb = 1,
    /// `clflushopt`
    ClflushOpt = 2,
    /// `clflush`
    Clflush = 3,
    /// `dc cvap`
    DcCvap = 4,
}

static WAY: AtomicU8 = AtomicU8::new(0);

#[cfg(target_arch = "x86_64")]
fn detect() -> WriteBack {
    let leaf7 = std::arch::x86_64::__cpuid_count(7, 0);
    if leaf7.ebx & (1 << 24) != 0 {
        WriteBack::Clwb
    } else if leaf7.ebx & (1 << 23) != 0 {
        WriteBack::ClflushOpt
    } else {
        WriteBack::Clflush
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> WriteBack {
    WriteBack::DcCvap
}

/// The way of this processor.
#[must_use]
pub fn way() -> WriteBack {
    match WAY.load(Ordering::Relaxed) {
        1 => WriteBack::Clwb,
        2 => WriteBack::ClflushOpt,
        3 => WriteBack::Clflush,
        4 => WriteBack::DcCvap,
        _ => {
            let w = detect();
            WAY.store(w as u8, Ordering::Relaxed);
            w
        }
    }
}

/// Begin to write back every cache line of `len` bytes at `p`.
///
/// # Safety
/// The bytes are mapped.
pub unsafe fn write_back(p: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    let mut line = p as usize & !(LINE - 1);
    let end = p as usize + len;
    let way = way();
    while line < end {
        // SAFETY: the line holds at least one of the bytes that the caller vouches for; these instructions change no
        // memory.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            match way {
                WriteBack::Clwb => {
                    std::arch::asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags))
                }
                WriteBack::ClflushOpt => {
                    std::arch::asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
                }
                _ => std::arch::asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)),
            }
            #[cfg(target_arch = "aarch64")]
            {
                let _ = way;
                std::arch::asm!("dc cvap, {}", in(reg) line, options(nostack, preserves_flags));
            }
        }
        line += LINE;
    }
}

/// Return when everything that was begun is in the persistence domain.
#[inline]
pub fn fence() {
    // SAFETY: a fence has no preconditions.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::x86_64::_mm_sfence();
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("dsb sy", options(nostack, preserves_flags));
    }
}
