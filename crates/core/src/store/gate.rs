//! Where commits wait for the flush that makes them durable.
//!
//! Flushes have numbers; a commit appended while flush *n* runs waits for flush *n* + 1. Commits of two flushes never
//! wait on the same word, so that the end of one wakes those whose commit it was, and of the next group only one: the
//! thread that flushes for it. Nobody who was served touches the store's mutex again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    durable: AtomicU64,
    words: [AtomicU32; 2],
}

/// A place in a group: the word to sleep on, and what it said under the mutex.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    word: usize,
    seen: u32,
}

impl Gate {
    /// Nothing before `durable` waits.
    pub(super) fn new(durable: u64) -> Self {
        Self { durable: AtomicU64::new(durable), ..Self::default() }
    }

    /// Log bytes before this are durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// A place in the group that flush number `flush` serves. Under the mutex.
    pub(super) fn place(&self, flush: u64) -> Place {
        let word = (flush % 2) as usize;
        Place { word, seen: self.words[word].load(Ordering::Relaxed) }
    }

    /// Sleep until that group is served, or this thread is to flush for it, or for no reason.
    pub(super) fn sleep(&self, at: Place) {
        // SAFETY: a futex on a word of our own that lives as long as the call.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                std::ptr::from_ref(&self.words[at.word]),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                at.seen,
                std::ptr::null::<libc::timespec>(),
            );
        }
    }

    /// Flush number `flush` ended; everything before `durable` is durable. Under the mutex.
    pub(super) fn served(&self, flush: u64, durable: u64) -> Duty<'_> {
        self.durable.store(durable, Ordering::Release);
        for group in [flush, flush + 1] {
            // Of the next group too: whoever has a place in it but does not sleep yet comes back and looks.
            self.words[(group % 2) as usize].fetch_add(1, Ordering::Release);
        }
        Duty { gate: self, flush }
    }

    /// Nothing will be flushed any more: everybody is to come and look. Under the mutex.
    pub(super) fn open_for_all(&self) {
        for group in [0, 1] {
            self.words[group as usize].fetch_add(1, Ordering::Release);
            self.wake(group, i32::MAX);
        }
    }

    fn wake(&self, group: u64, count: i32) {
        // SAFETY: as in `sleep`.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                std::ptr::from_ref(&self.words[(group % 2) as usize]),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                count,
            );
        }
    }
}

/// To wake those who wait for a flush that ended: done when it is dropped, best without the mutex.
#[derive(Debug)]
#[must_use]
pub(super) struct Duty<'a> {
    gate: &'a Gate,
    flush: u64,
}

impl Drop for Duty<'_> {
    fn drop(&mut self) {
        // The one who flushes next comes first: the disk waits for nothing else.
        self.gate.wake(self.flush + 1, 1);
        self.gate.wake(self.flush, i32::MAX);
    }
}
