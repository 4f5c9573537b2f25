//! The control words: what the processes around a store tell each other through shared memory.
//!
//! Used by the writer (commit path), the shipper, the supervisor and everyone who only looks. They are advice and
//! state of the running system, not data: recovery never depends on them, and words of another boot are ignored.
//! All of them are atomics, because several processes use them at once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::error::{Error, Result};
use crate::format::CONTROL_OFFSET;
use crate::medium::Mapping;

/// "Not known" in a word that could otherwise hold a position.
pub const UNKNOWN: u64 = u64::MAX;
const MAGIC: u64 = u64::from_le_bytes(*b"SUSCTRL1");
/// Destinations that a store can have.
pub const SLOTS: usize = 16;
const SLOTS_AT: usize = 1024;
const SLOT_SIZE: usize = 192;
const URL_MAX: usize = 96;
const NOTES_AT: usize = 4096;
const NOTE_SIZE: usize = 256;
const WHY_MAX: usize = 240;

/// Offsets of the 8-byte words in the control page.
pub mod word {
    #![allow(missing_docs)] // docs/formats/store.md has the table
    pub const MAGIC: usize = 0;
    pub const BOOT: usize = 8;
    pub const APPENDED: usize = 64;
    pub const COMMITTED: usize = 72;
    pub const APPLIED: usize = 80;
    pub const TAIL: usize = 88;
    pub const COMMIT_SEQ: usize = 96;
    pub const COMMIT_TIME_NS: usize = 104;
    pub const RECOVERY: usize = 112;
    pub const LEASE_DEADLINE_NS: usize = 128;
    pub const LEASE_EPOCH: usize = 136;
    pub const FENCE_EPOCH: usize = 144;
    pub const WRITER_PID: usize = 192;
    pub const WRITER_START: usize = 200;
    pub const POISONED: usize = 208;
    pub const HOLDER: usize = 216;
    pub const COMMIT_FUTEX: usize = 256;
    pub const SLEEPERS: usize = 260;
    pub const ACK_FUTEX: usize = 264;
    pub const SHIPPER_PID: usize = 272;
    pub const SHIPPER_START: usize = 280;
    pub const FLOOR: usize = 288;
    pub const REQUIRED_FLOOR: usize = 296;
    pub const BUDGET_BYTES: usize = 320;
    pub const DELAY_LSN: usize = 328;
    pub const LIMIT_LSN: usize = 336;
    pub const DELAY_LIMIT_NS: usize = 344;
    pub const USABLE_NS: usize = 352;
    pub const POWER_AT_NS: usize = 360;
    pub const POWER_STATE: usize = 368;
    pub const WAITING_SINCE_NS: usize = 376;
    pub const PRIMARY_COMMITTED: usize = 384;
    pub const PRIMARY_HEARD_NS: usize = 392;
    pub const PRIMARY_TIME_NS: usize = 400;
}

/// Offsets of the 8-byte words in a destination slot.
pub mod slot {
    #![allow(missing_docs)] // docs/formats/store.md has the table
    pub const STATE: usize = 0;
    pub const REQUIRED: usize = 8;
    pub const SENT: usize = 16;
    pub const ACKED: usize = 24;
    pub const ACKED_BOOT_NS: usize = 32;
    pub const ACKED_TIME_NS: usize = 40;
    pub const SNAPSHOT_DONE: usize = 48;
    pub const SNAPSHOT_TOTAL: usize = 56;
    pub const BYTES_SENT: usize = 64;
    pub const CONNECTIONS: usize = 72;
    pub const BANDWIDTH: usize = 80;
    pub const BUDGET: usize = 88;
    pub const URL: usize = 96;
}

/// Offsets in the note beside a destination slot.
pub mod note {
    #![allow(missing_docs)] // docs/formats/store.md has the table
    pub const ALONE_UNTIL_NS: usize = 0;
    pub const SEQUENCE: usize = 8;
    pub const WHY: usize = 16;
}

/// In `note::ALONE_UNTIL_NS`: the destination is not left alone. 0 there: nobody has said anything.
const NOT_ALONE: u64 = 1;

/// Names of the slot states, by number.
pub const SLOT_STATES: [&str; 7] =
    ["unused", "connecting", "streaming", "snapshot", "needs-snapshot", "refused", "stopped"];

/// What bounds the commits of a store whose log has to get away on a battery. The default: nothing does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// For people.
    pub budget_bytes: u64,
    /// Commits that end behind it are delayed.
    pub delay_lsn: u64,
    /// Commits that would end behind it wait; 0: none does.
    pub limit_lsn: u64,
    /// The delay at the limit.
    pub delay_limit_ns: u64,
}

impl Limits {
    /// Before the first byte: every commit waits.
    pub const NO_CREDIT: Self = Self { budget_bytes: 0, delay_lsn: 1, limit_lsn: 1, delay_limit_ns: 0 };
}

/// Who holds a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Holder {
    /// Nobody.
    None = 0,
    /// An application.
    Application = 1,
    /// A receiver.
    Receiver = 2,
}

/// The lock bytes of a store file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// The one that changes it.
    Writer = 0,
    /// The one that ships it.
    Shipper = 1,
    /// The one that runs it.
    Supervisor = 2,
}

impl Lock {
    fn range(self, kind: libc::c_int) -> libc::flock {
        // SAFETY: all-zero is a valid value of this plain struct.
        let mut l: libc::flock = unsafe { std::mem::zeroed() };
        l.l_type = kind as libc::c_short;
        l.l_whence = libc::SEEK_SET as libc::c_short;
        l.l_start = self as libc::off_t;
        l.l_len = 1;
        l
    }

    /// Take it for the life of `file`'s open description; false: someone else has it.
    ///
    /// # Errors
    /// What the system said.
    pub fn take(self, file: &File) -> io::Result<bool> {
        let l = self.range(libc::F_WRLCK);
        // SAFETY: a valid descriptor and struct.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const l) } == 0 {
            return Ok(true);
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            _ => Err(e),
        }
    }

    /// Give it back.
    pub fn release(self, file: &File) {
        let l = self.range(libc::F_UNLCK);
        // SAFETY: a valid descriptor and struct; unlocking what is not locked is allowed.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const l) };
    }

    /// Whether another open description holds it.
    ///
    /// # Errors
    /// What the system said.
    pub fn is_taken(self, file: &File) -> io::Result<bool> {
        let mut l = self.range(libc::F_WRLCK);
        // SAFETY: a valid descriptor and struct.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut l) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(i32::from(l.l_type) != libc::F_UNLCK)
    }
}

/// CLOCK_BOOTTIME in nanoseconds: goes on during suspend, like a lease does.
#[must_use]
#[inline]
pub fn boottime_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// Wall clock in nanoseconds since 1970, to the tick: it is read in every commit.
#[must_use]
#[inline]
pub fn realtime_coarse_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME_COARSE)
}

#[inline]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and struct.
    unsafe { libc::clock_gettime(clock, &raw mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// This boot's id; zeros when the kernel tells none.
#[must_use]
pub fn boot_id() -> [u8; 16] {
    static ID: std::sync::OnceLock<[u8; 16]> = std::sync::OnceLock::new();
    *ID.get_or_init(read_boot_id)
}

fn read_boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    if hex.len() == 32 {
        for (i, b) in id.iter_mut().enumerate() {
            let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
            *b = digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]);
        }
    }
    id
}

/// When a process started, in clock ticks since boot; 0 when it is gone.
#[must_use]
pub fn start_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold spaces: count fields behind the last one.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().nth(19).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// The control words of a mapped store.
#[derive(Clone, Copy)]
pub struct Control {
    base: *const u8,
}

// SAFETY: every access is an atomic on shared memory that outlives the value (its owner holds the mapping).
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

impl Control {
    /// Of `mapping`, which the owner keeps alive as long as this value.
    #[must_use]
    pub fn of(mapping: &Mapping) -> Self {
        Self { base: mapping.at(CONTROL_OFFSET, crate::format::CONTROL_SIZE) }
    }

    #[inline]
    fn w(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at % 8 == 0 && at < 8192);
        // SAFETY: inside the mapped control page, aligned, and only ever accessed as an atomic.
        unsafe { &*self.base.add(at).cast::<AtomicU64>() }
    }

    #[inline]
    fn w32(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as `w`, with 4 bytes.
        unsafe { &*self.base.add(at).cast::<AtomicU32>() }
    }

    /// A word.
    #[inline]
    #[must_use]
    pub fn get(&self, at: usize) -> u64 {
        self.w(at).load(Ordering::Acquire)
    }

    /// Change a word.
    #[inline]
    pub fn set(&self, at: usize, value: u64) {
        self.w(at).store(value, Ordering::Release);
    }

    /// Raise a word; true when it was lower.
    pub fn raise(&self, at: usize, value: u64) -> bool {
        self.w(at).fetch_max(value, Ordering::AcqRel) < value
    }

    /// Why a store of `epoch` may not commit now, by lease and fence; `None`: it may.
    #[inline]
    #[must_use]
    pub fn refusal(&self, epoch: u64) -> Option<&'static str> {
        let deadline = self.get(word::LEASE_DEADLINE_NS);
        if deadline != 0 && boottime_ns() >= deadline {
            return Some("the lease has passed");
        }
        (self.get(word::FENCE_EPOCH) > epoch).then_some("a newer epoch has begun elsewhere")
    }

    /// Whether the words are of this boot.
    #[must_use]
    pub fn current(&self, boot: &[u8; 16]) -> bool {
        let (a, b) = halves(boot);
        self.get(word::MAGIC) == MAGIC && self.get(word::BOOT) == a && self.get(word::BOOT + 8) == b
    }

    /// Make the words this boot's; words of another boot are cleared first.
    pub fn claim(&self, boot: &[u8; 16]) {
        if self.current(boot) {
            return;
        }
        for at in (0..8192).step_by(8) {
            self.set(at, 0);
        }
        self.set(word::FLOOR, UNKNOWN);
        let (a, b) = halves(boot);
        self.set(word::BOOT, a);
        self.set(word::BOOT + 8, b);
        self.set(word::MAGIC, MAGIC);
    }

    /// Say who writes.
    pub fn set_writer(&self, holder: Holder) {
        let pid = std::process::id();
        self.set(word::WRITER_PID, if holder == Holder::None { 0 } else { u64::from(pid) });
        self.set(word::WRITER_START, if holder == Holder::None { 0 } else { start_ticks(pid) });
        self.set(word::HOLDER, holder as u64);
        self.set(word::WAITING_SINCE_NS, 0);
        if holder == Holder::Receiver {
            // What lies there is of a primary that this replica was once.
            let watched = self.get(word::POWER_AT_NS) != 0 && self.get(word::USABLE_NS) != UNKNOWN;
            self.set_limits(if watched { Limits::NO_CREDIT } else { Limits::default() });
        }
    }

    /// What the battery allows to be unshipped. Commits that wait for it look again.
    pub fn set_limits(&self, to: Limits) {
        self.set(word::BUDGET_BYTES, to.budget_bytes);
        self.set(word::DELAY_LIMIT_NS, to.delay_limit_ns);
        self.set(word::DELAY_LSN, to.delay_lsn);
        self.set(word::LIMIT_LSN, to.limit_lsn);
        fence(Ordering::SeqCst); // with that of `wait_limit`: one of the two sees what the other wrote
        if self.get(word::WAITING_SINCE_NS) != 0 {
            self.wake_acks();
        }
    }

    /// How long a commit that ends at `end` is held back, in ns.
    #[inline]
    #[must_use]
    pub fn delay_ns(&self, end: u64) -> u64 {
        let limit = self.get(word::LIMIT_LSN);
        if limit == 0 {
            return 0;
        }
        let first = self.get(word::DELAY_LSN);
        if first == 0 || end <= first {
            return 0;
        }
        let share = if end >= limit { 1.0 } else { (end - first) as f64 / (limit - first) as f64 };
        (self.get(word::DELAY_LIMIT_NS) as f64 * share * share) as u64
    }

    /// Sleep until the limit is no longer `seen`, or the time-out. The caller has said in `WAITING_SINCE_NS` that it
    /// waits.
    pub fn wait_limit(&self, seen: u64, timeout_ns: u64) {
        let acks = self.w32(word::ACK_FUTEX).load(Ordering::Acquire);
        fence(Ordering::SeqCst);
        if self.get(word::LIMIT_LSN) == seen {
            self.sleep(word::ACK_FUTEX, acks, timeout_ns);
        }
    }

    /// A shipper that lingers for more to send is to send now.
    pub fn urge(&self) {
        self.bump(word::COMMIT_FUTEX);
    }

    /// Wake those who wait for commits, if any sleeps.
    #[inline]
    pub fn wake_commit(&self) {
        if self.w32(word::SLEEPERS).load(Ordering::Relaxed) != 0 {
            self.wake_commit_slow();
        }
    }

    #[cold]
    fn wake_commit_slow(&self) {
        self.w32(word::SLEEPERS).store(0, Ordering::Relaxed);
        self.bump(word::COMMIT_FUTEX);
    }

    /// Say that acknowledgements arrived.
    pub fn wake_acks(&self) {
        self.bump(word::ACK_FUTEX);
    }

    fn bump(&self, at: usize) {
        self.w32(at).fetch_add(1, Ordering::Release);
        // SAFETY: a futex on a word of a shared mapping.
        unsafe {
            libc::syscall(libc::SYS_futex, std::ptr::from_ref(self.w32(at)), libc::FUTEX_WAKE, i32::MAX);
        }
    }

    fn sleep(&self, at: usize, seen: u32, timeout_ns: u64) {
        let ts = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (timeout_ns % 1_000_000_000) as _,
        };
        // SAFETY: a futex on a word of a shared mapping, and a valid time-out.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                std::ptr::from_ref(self.w32(at)),
                libc::FUTEX_WAIT,
                seen,
                &raw const ts,
            );
        }
    }

    /// Sleep until `committed` passes `beyond` or the time-out. The writer pays for a wake-up only while someone
    /// sleeps here, and its look at `sleepers` is not ordered against ours, so no sleep is longer than 5 ms.
    #[must_use]
    pub fn wait_commit(&self, beyond: u64, timeout_ns: u64) -> u64 {
        let end = boottime_ns().saturating_add(timeout_ns);
        loop {
            let seen = self.w32(word::COMMIT_FUTEX).load(Ordering::Acquire);
            self.w32(word::SLEEPERS).store(1, Ordering::SeqCst);
            let committed = self.get(word::COMMITTED);
            let now = boottime_ns();
            if committed > beyond || now >= end {
                self.w32(word::SLEEPERS).store(0, Ordering::Relaxed);
                return committed;
            }
            self.sleep(word::COMMIT_FUTEX, seen, (end - now).min(5_000_000));
        }
    }

    /// Sleep until the time-out, or until someone waits for copies of what was committed: a commit alone wakes nobody
    /// here, and costs the writer nothing. Not at all when `committed` is past `beyond`.
    pub fn nap(&self, beyond: u64, timeout_ns: u64) {
        let seen = self.w32(word::COMMIT_FUTEX).load(Ordering::Acquire);
        if self.get(word::COMMITTED) <= beyond {
            self.sleep(word::COMMIT_FUTEX, seen, timeout_ns);
        }
    }

    /// Sleep until `copies` destinations hold `pos` durably, or the time-out; whether they do.
    #[must_use]
    pub fn wait_copies(&self, pos: u64, copies: usize, timeout_ns: u64) -> bool {
        let end = boottime_ns().saturating_add(timeout_ns);
        let mut urged = false;
        loop {
            let seen = self.w32(word::ACK_FUTEX).load(Ordering::Acquire);
            if (0..SLOTS).filter(|s| self.holds(*s, pos)).count() >= copies {
                return true;
            }
            let now = boottime_ns();
            if now >= end {
                return false;
            }
            if !urged {
                self.urge();
                urged = true;
            }
            self.sleep(word::ACK_FUTEX, seen, (end - now).min(100_000_000));
        }
    }

    fn holds(&self, s: usize, pos: u64) -> bool {
        let acked = self.slot(s, slot::ACKED);
        self.slot(s, slot::STATE) != 0 && acked != UNKNOWN && acked >= pos
    }

    /// A word of a slot.
    #[must_use]
    pub fn slot(&self, s: usize, at: usize) -> u64 {
        self.get(SLOTS_AT + s * SLOT_SIZE + at)
    }

    /// Change a word of a slot.
    pub fn set_slot(&self, s: usize, at: usize, value: u64) {
        self.set(SLOTS_AT + s * SLOT_SIZE + at, value);
    }

    /// The slot for `url`: the one it had before, or a free one; `None` when all are taken.
    #[must_use]
    pub fn claim_slot(&self, url: &str, required: bool) -> Option<usize> {
        if url.len() > URL_MAX {
            return None;
        }
        let s = (0..SLOTS)
            .find(|s| self.slot(*s, slot::STATE) != 0 && self.url(*s) == url)
            .or_else(|| (0..SLOTS).find(|s| self.slot(*s, slot::STATE) == 0))?;
        for at in (slot::REQUIRED..slot::URL).step_by(8) {
            self.set_slot(s, at, 0);
        }
        let mut padded = [0u8; URL_MAX];
        padded[..url.len()].copy_from_slice(url.as_bytes());
        for (i, chunk) in padded.chunks(8).enumerate() {
            self.set_slot(s, slot::URL + i * 8, u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        self.set_slot(s, slot::REQUIRED, u64::from(required));
        for at in [slot::ACKED, slot::BANDWIDTH, slot::BUDGET] {
            self.set_slot(s, at, UNKNOWN);
        }
        self.leave_alone(s, None, "");
        self.set_slot(s, slot::STATE, 1);
        Some(s)
    }

    /// Give back the slots of all destinations but `urls`: what they hold counts for nobody any more.
    pub fn release_others(&self, urls: &[String]) {
        for s in (0..SLOTS).filter(|s| self.slot(*s, slot::STATE) != 0) {
            if !urls.contains(&self.url(s)) {
                self.set_slot(s, slot::STATE, 0);
                self.set_slot(s, slot::ACKED, UNKNOWN);
            }
        }
    }

    /// Say that a destination is not tried for `for_ns` from now on, and why (what does not fit is cut); `None`: it is
    /// not left alone.
    pub fn leave_alone(&self, s: usize, for_ns: Option<u64>, why: &str) {
        let at = NOTES_AT + s * NOTE_SIZE;
        let mut padded = [0u8; WHY_MAX];
        let cut = (0..=why.len().min(WHY_MAX)).rev().find(|n| why.is_char_boundary(*n)).unwrap_or(0);
        padded[..cut].copy_from_slice(&why.as_bytes()[..cut]);
        let sequence = self.get(at + note::SEQUENCE) | 1; // odd: being written
        self.set(at + note::SEQUENCE, sequence);
        for (i, chunk) in padded.chunks(8).enumerate() {
            self.set(at + note::WHY + i * 8, u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        let until = for_ns.map_or(NOT_ALONE, |ns| boottime_ns().saturating_add(ns).max(NOT_ALONE + 1));
        self.set(at + note::ALONE_UNTIL_NS, until);
        self.set(at + note::SEQUENCE, sequence.wrapping_add(1));
    }

    /// Until when (CLOCK_BOOTTIME, ns) a destination is left alone and why; 0: it is not. `None`: nobody has said, or it
    /// is being written again and again.
    #[must_use]
    pub fn left_alone(&self, s: usize) -> Option<(u64, String)> {
        let at = NOTES_AT + s * NOTE_SIZE;
        for _ in 0..100 {
            let sequence = self.get(at + note::SEQUENCE);
            let until = self.get(at + note::ALONE_UNTIL_NS);
            let why = self.text(at + note::WHY, WHY_MAX);
            if sequence % 2 == 0 && self.get(at + note::SEQUENCE) == sequence {
                return match until {
                    0 => None,
                    NOT_ALONE => Some((0, String::new())),
                    _ => Some((until, why)),
                };
            }
            std::thread::yield_now();
        }
        None
    }

    /// A destination holds everything up to `lsn` durably: note it with its time, and wake those who wait for copies.
    pub fn acknowledge(&self, s: usize, lsn: u64) {
        self.set_slot(s, slot::ACKED, lsn);
        self.set_slot(s, slot::ACKED_BOOT_NS, boottime_ns());
        self.wake_acks();
    }

    /// URL of a slot.
    #[must_use]
    pub fn url(&self, s: usize) -> String {
        self.text(SLOTS_AT + s * SLOT_SIZE + slot::URL, URL_MAX)
    }

    fn text(&self, at: usize, len: usize) -> String {
        let bytes: Vec<u8> = (0..len / 8).flat_map(|i| self.get(at + i * 8).to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }
}

fn writable(mapping: &Mapping) -> Result<Control> {
    if mapping.writable() {
        return Ok(Control::of(mapping));
    }
    Err(Error::StoreReadOnly("the control words were opened to be looked at only".into()))
}

/// Say until when (CLOCK_BOOTTIME) and for which epoch the lease is held.
///
/// # Errors
/// `StoreReadOnly` for a mapping that cannot be written.
pub fn set_lease(mapping: &Mapping, epoch: u64, deadline_ns: u64) -> Result<()> {
    let c = writable(mapping)?;
    c.set(word::LEASE_EPOCH, epoch);
    c.set(word::LEASE_DEADLINE_NS, deadline_ns);
    Ok(())
}

/// Say that `epoch` has begun somewhere; never lowers it.
///
/// # Errors
/// As [`set_lease`].
pub fn set_fence(mapping: &Mapping, epoch: u64) -> Result<()> {
    writable(mapping)?.raise(word::FENCE_EPOCH, epoch);
    Ok(())
}

/// Say how long the battery lasts for a drain (`None`: unknown), and the state of the power.
///
/// From the moment that a battery is watched, nothing may be unshipped before a shipper has said how much: an
/// application that starts faster than its shipper would use a budget that nobody has measured.
///
/// # Errors
/// As [`set_lease`].
pub fn set_power(mapping: &Mapping, state: u64, usable_ns: Option<u64>) -> Result<()> {
    let c = writable(mapping)?;
    c.set(word::POWER_STATE, state);
    c.set(word::USABLE_NS, usable_ns.unwrap_or(UNKNOWN));
    c.set(word::POWER_AT_NS, boottime_ns());
    if usable_ns.is_none() {
        c.set_limits(Limits::default());
    } else if c.get(word::LIMIT_LSN) == 0 {
        c.set_limits(Limits::NO_CREDIT);
    }
    Ok(())
}

/// Nobody watches the power any more: no budget either, also when no shipper runs that would say so.
///
/// # Errors
/// As [`set_lease`].
pub fn clear_power(mapping: &Mapping) -> Result<()> {
    let c = writable(mapping)?;
    c.set(word::POWER_AT_NS, 0);
    c.set(word::USABLE_NS, 0);
    c.set(word::POWER_STATE, 0);
    c.set_limits(Limits::default());
    Ok(())
}

fn halves(id: &[u8; 16]) -> (u64, u64) {
    let h = |r: std::ops::Range<usize>| u64::from_le_bytes(id[r].try_into().expect("eight bytes"));
    (h(0..8), h(8..16))
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("committed", &self.get(word::COMMITTED)).finish_non_exhaustive()
    }
}
