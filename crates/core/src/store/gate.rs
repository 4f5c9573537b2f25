//! Where commits wait for the flush that makes them durable.
//!
//! Flushes have numbers; a commit appended while flush *n* runs waits for flush *n* + 1. Commits of two flushes never
//! wait on the same word, so that the end of one wakes those whose commit it was, and of the next group only one: the
//! thread that flushes for it. Nobody who was served touches the store's mutex again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    durable: AtomicU64,
    words: [AtomicU32; 2],
    /// Where a flush that is about to begin waits for company.
    arrivals: AtomicU32,
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

    /// What `wait_for_company` is to be called with. Under the mutex.
    pub(super) fn expecting(&self) -> u32 {
        self.arrivals.load(Ordering::Relaxed)
    }

    /// Sleep until all who are expected have come, at most so long.
    pub(super) fn wait_for_company(&self, seen: u32, at_most: Duration) {
        let ts = libc::timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
        // SAFETY: as in `sleep`, and a valid time-out.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                std::ptr::from_ref(&self.arrivals),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                seen,
                &raw const ts,
            );
        }
    }

    /// All have come. Under the mutex.
    pub(super) fn company_is_complete(&self) {
        self.arrivals.fetch_add(1, Ordering::Release);
        wake(&self.arrivals, 1);
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
        self.company_is_complete();
    }

    fn wake(&self, group: u64, count: i32) {
        wake(&self.words[(group % 2) as usize], count);
    }
}

fn wake(at: &AtomicU32, count: i32) {
    // SAFETY: a futex on a word that lives as long as the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            std::ptr::from_ref(at),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            count,
        );
    }
}

/// How many commits a flush may expect, and whether it pays to wait for them.
///
/// Threads that were served by one flush, and those who came while it ran, are likely to come again. A flush that takes
/// all of them along costs the disk as much as one that takes half of them, so the next one waits for them; not longer
/// than half of what a flush takes, and the less often the more it waited in vain. One thread alone never waits.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// Commits appended since the newest flush began.
    pending: u32,
    /// Commits that the newest flush took along.
    group: u32,
    expected: u32,
    /// A flush is waiting for so many; 0: none is.
    awaited: u32,
    /// Duration of a flush, smoothed.
    flush: Duration,
    skip: u32,
    penalty: u32,
}

impl Crowd {
    /// A commit was appended; whether the flush that waits need wait no longer.
    #[inline]
    pub(super) fn came(&mut self) -> bool {
        self.pending += 1;
        self.awaited != 0 && self.pending >= self.awaited
    }

    /// How long the flush that begins now waits for more.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        if self.pending >= self.expected {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.awaited = self.expected;
        Some((self.flush / 2).min(LONGEST_WAIT))
    }

    /// The flush goes on: with all who are there now.
    pub(super) fn begins(&mut self) {
        if self.awaited != 0 {
            let complete = self.pending >= self.awaited;
            self.penalty = if complete { 0 } else { (self.penalty * 2 + 1).min(63) };
            self.skip = self.penalty;
            self.awaited = 0;
        }
        self.group = std::mem::take(&mut self.pending);
    }

    /// The flush took so long.
    pub(super) fn ended(&mut self, took: Duration) {
        self.expected = self.group + self.pending;
        self.flush = if self.flush.is_zero() { took } else { (self.flush * 7 + took) / 8 };
    }
}

const LONGEST_WAIT: Duration = Duration::from_millis(5);

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
