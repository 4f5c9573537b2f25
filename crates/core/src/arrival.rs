//! Which pages of a store are here, while the rest is on its way: the file `PATH.arriving`.
//!
//! Used by the fetcher ([`crate::fetcher`]), which sets bits, and by the process that has the store open, which asks for
//! pages and waits for them ([`Arrival::need`], [`crate::pager`]). The model is in `docs/formats/arriving.md`: a page
//! whose bit is not set is touched by nobody but the fetcher, a page whose bit is set never again by the fetcher.
//! The requests lie in shared memory, not in a socket, so that either side may die and be started again at any
//! moment: whoever waits asks again, and a bit that is set stays set.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::checksum::crc;
use crate::control::{boot_id, boottime_ns};
use crate::error::{Error, Result};
use crate::format::{PAGE_U64, Point, Superblock};

const MAGIC: [u8; 8] = *b"SUSARRV1";
const HEADER: usize = 80;
const WORDS: usize = 0x1000;
const BITS: usize = 0x2000;
const SLOTS: usize = 128;
const FAILURE_MAX: usize = 500;
/// Whoever waits asks again this often: a fetcher that died had perhaps taken the request with it.
const ASK_AGAIN_NS: u64 = 100_000_000;

/// Offsets in the page of words.
mod word {
    pub const BOOT: usize = 0;
    pub const STATE: usize = 16;
    pub const HERE: usize = 24;
    pub const ASKED: usize = 32;
    pub const LIMIT_NS: usize = 40;
    pub const FETCHER_PID: usize = 48;
    pub const ARRIVED_FUTEX: usize = 64;
    pub const WAITERS: usize = 68;
    pub const WANTED_FUTEX: usize = 72;
    pub const FAILURE: usize = 512;
    pub const SLOTS_AT: usize = 1024;
}

/// Bytes of the file that are locked.
const LOCK_RESET: libc::off_t = 0;
const LOCK_FETCHER: libc::off_t = 1;

/// What became of the arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Pages are missing, or not all are durable.
    Arriving,
    /// All are here and durable.
    Complete,
    /// The fetcher gave up.
    Failed,
}

/// See the module.
pub struct Arrival {
    file: File,
    base: NonNull<u8>,
    len: usize,
    pages: u64,
    point: Point,
    path: PathBuf,
}

// SAFETY: every access is an atomic on shared memory that the value owns.
unsafe impl Send for Arrival {}
// SAFETY: as above.
unsafe impl Sync for Arrival {}

/// Where the file of the store at `path` lies.
#[must_use]
pub fn path_beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".arriving");
    PathBuf::from(name)
}

fn bitmap_bytes(pages: u64) -> usize {
    (pages as usize).div_ceil(64).next_multiple_of(512) * 8
}

fn halves(id: [u8; 16]) -> (u64, u64) {
    let half = |at: usize| u64::from_le_bytes(id[at..at + 8].try_into().expect("eight bytes"));
    (half(0), half(8))
}

impl Arrival {
    /// Make the file for the store that will have the name `path`: no page is here.
    ///
    /// # Errors
    /// The file exists, no space, or what else the system said.
    pub fn create(path: &Path, sb: &Superblock, limit: Duration) -> Result<Self> {
        let own = path_beside(path);
        let shown = own.display();
        let io = |e| Error::io(format!("create {shown}"), e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_CLOEXEC);
        let file = options.open(&own).map_err(io)?;
        let mut header = [0u8; HEADER];
        header[0..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&1u32.to_le_bytes());
        header[16..32].copy_from_slice(&sb.store_uuid);
        header[32..48].copy_from_slice(&sb.replica_uuid);
        for (at, v) in [(48, sb.pages()), (56, sb.tail.lsn), (64, sb.tail.seq)] {
            header[at..at + 8].copy_from_slice(&v.to_le_bytes());
        }
        header[72..76].copy_from_slice(&sb.tail.chain.to_le_bytes());
        let sum = crc(0, &header[..76]);
        header[76..].copy_from_slice(&sum.to_le_bytes());
        let len = BITS + 2 * bitmap_bytes(sb.pages());
        // Room is reserved now: a full disk must be an error here, not a SIGBUS later.
        // SAFETY: our own descriptor.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len as libc::off_t) } != 0 {
            return Err(io(io::Error::last_os_error()));
        }
        file.write_all_at(&header, 0).map_err(io)?;
        let a = Self::map(file, own, sb.pages(), sb.tail)?;
        a.w(word::LIMIT_NS).store(limit.as_nanos() as u64, Ordering::Relaxed);
        a.of_this_boot()?;
        a.sync()?;
        Ok(a)
    }

    /// The one that belongs to the store at `path`, whose superblock is `sb`.
    ///
    /// # Errors
    /// `StoreCorrupt` when it is missing or belongs to another store.
    pub fn open(path: &Path, sb: &Superblock) -> Result<Self> {
        let own = path_beside(path);
        let wrong = |why: String| {
            Error::corrupt(format!(
                "{} has not arrived completely, and {} {why}: which pages are here is not known",
                path.display(),
                own.display()
            ))
        };
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&own)
            .map_err(|e| wrong(format!("cannot be opened ({e})")))?;
        let mut header = [0u8; HEADER];
        file.read_exact_at(&mut header, 0).map_err(|e| wrong(format!("cannot be read ({e})")))?;
        let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if header[0..8] != MAGIC || crc(0, &header[..76]) != u32_at(76) {
            return Err(wrong("is damaged".into()));
        }
        if u32_at(8) != 1 {
            return Err(Error::NewerVersion(format!("{} has version {}", own.display(), u32_at(8))));
        }
        let long = file.metadata().map_err(|e| wrong(format!("cannot be read ({e})")))?.len();
        if header[16..32] != sb.store_uuid
            || header[32..48] != sb.replica_uuid
            || u64_at(48) != sb.pages()
            || long < (BITS + 2 * bitmap_bytes(sb.pages())) as u64
        {
            return Err(wrong("belongs to another copy".into()));
        }
        let point = Point { lsn: u64_at(56), seq: u64_at(64), chain: u32_at(72) };
        let a = Self::map(file, own, sb.pages(), point)?;
        a.of_this_boot()?;
        Ok(a)
    }

    fn map(file: File, path: PathBuf, pages: u64, point: Point) -> Result<Self> {
        let len = BITS + 2 * bitmap_bytes(pages);
        // SAFETY: a fresh shared mapping touches nothing that exists.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(Error::last_os(format!("map {}", path.display())));
        }
        // SAFETY: advice about our own mapping: a forked child must not set bits.
        unsafe { libc::madvise(p, len, libc::MADV_DONTFORK) };
        Ok(Self { file, base: NonNull::new(p.cast()).expect("mmap gives no null"), len, pages, point, path })
    }

    /// After a reboot what was only in memory is gone: then only durable pages are here.
    fn of_this_boot(&self) -> Result<()> {
        self.lock(LOCK_RESET, true)?;
        let (a, b) = halves(boot_id());
        let (first, second) = (self.w(word::BOOT), self.w(word::BOOT + 8));
        if first.load(Ordering::Acquire) != a || second.load(Ordering::Acquire) != b {
            let mut here = 0;
            for i in 0..self.words_of_bits() {
                let bits = self.durable(i).load(Ordering::Acquire);
                self.here(i).store(bits, Ordering::Release);
                here += u64::from(bits.count_ones());
            }
            self.w(word::HERE).store(here, Ordering::Release);
            for slot in 0..SLOTS {
                self.w(word::SLOTS_AT + slot * 8).store(0, Ordering::Release);
            }
            first.store(a, Ordering::Release);
            second.store(b, Ordering::Release);
        }
        self.unlock(LOCK_RESET);
        Ok(())
    }

    fn lock(&self, byte: libc::off_t, wait: bool) -> Result<bool> {
        // SAFETY: all-zero is a valid value of this plain struct.
        let mut l: libc::flock = unsafe { std::mem::zeroed() };
        l.l_type = libc::F_WRLCK as libc::c_short;
        l.l_whence = libc::SEEK_SET as libc::c_short;
        l.l_start = byte;
        l.l_len = 1;
        let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
        loop {
            // SAFETY: a valid descriptor and struct.
            if unsafe { libc::fcntl(self.file.as_raw_fd(), command, &raw const l) } == 0 {
                return Ok(true);
            }
            let e = io::Error::last_os_error();
            match e.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::EACCES) => return Ok(false),
                _ => return Err(Error::io(format!("lock {}", self.path.display()), e)),
            }
        }
    }

    fn unlock(&self, byte: libc::off_t) {
        // SAFETY: as in `lock`.
        unsafe {
            let mut l: libc::flock = std::mem::zeroed();
            l.l_type = libc::F_UNLCK as libc::c_short;
            l.l_whence = libc::SEEK_SET as libc::c_short;
            l.l_start = byte;
            l.l_len = 1;
            libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const l);
        }
    }

    fn atomic(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= self.len, "a word outside of the file");
        // SAFETY: inside the mapping that we own, aligned, only ever accessed as an atomic.
        unsafe { &*self.base.as_ptr().add(at).cast::<AtomicU64>() }
    }

    fn w(&self, at: usize) -> &AtomicU64 {
        self.atomic(WORDS + at)
    }

    fn w32(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at % 4 == 0 && at < 4096);
        // SAFETY: as `atomic`, with 4 bytes of the page of words.
        unsafe { &*self.base.as_ptr().add(WORDS + at).cast::<AtomicU32>() }
    }

    fn here(&self, i: usize) -> &AtomicU64 {
        self.atomic(BITS + i * 8)
    }

    fn durable(&self, i: usize) -> &AtomicU64 {
        self.atomic(BITS + bitmap_bytes(self.pages) + i * 8)
    }

    fn words_of_bits(&self) -> usize {
        (self.pages as usize).div_ceil(64)
    }

    /// Where the copy began: the source held everything up to here.
    #[must_use]
    pub fn point(&self) -> Point {
        self.point
    }

    /// Where this file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a page and its sum are here.
    #[inline]
    #[must_use]
    pub fn is_here(&self, page: u64) -> bool {
        self.here((page / 64) as usize).load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    /// Pages of the image, pages here, pages that were asked for on first access.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let get = |at| self.w(at).load(Ordering::Acquire);
        (self.pages, get(word::HERE), get(word::ASKED))
    }

    /// What became of it.
    #[must_use]
    pub fn state(&self) -> State {
        match self.w(word::STATE).load(Ordering::Acquire) {
            1 => State::Complete,
            2 => State::Failed,
            _ => State::Arriving,
        }
    }

    /// How long one access may wait.
    #[must_use]
    pub fn limit(&self) -> Duration {
        Duration::from_nanos(self.w(word::LIMIT_NS).load(Ordering::Acquire))
    }

    /// See [`Arrival::limit`].
    pub fn set_limit(&self, limit: Duration) {
        self.w(word::LIMIT_NS).store(limit.as_nanos() as u64, Ordering::Release);
    }

    /// Why the fetcher gave up; "" when it has not.
    #[must_use]
    pub fn failure(&self) -> String {
        if self.state() != State::Failed {
            return String::new();
        }
        let len = (self.w32(word::FAILURE).load(Ordering::Acquire) as usize).min(FAILURE_MAX);
        let mut text = vec![0u8; len];
        for (i, b) in text.iter_mut().enumerate() {
            let at = word::FAILURE + 4 + i;
            *b = (self.w32(at & !3).load(Ordering::Relaxed) >> (at % 4 * 8)) as u8;
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    // The side that waits.

    /// Return when a page is here.
    ///
    /// # Errors
    /// `StoreArriving` when the fetcher gave up, or the limit has passed.
    #[inline]
    pub fn need(&self, page: u64) -> Result<()> {
        if self.is_here(page) { Ok(()) } else { self.wait_for(page) }
    }

    #[cold]
    fn wait_for(&self, page: u64) -> Result<()> {
        let began = boottime_ns();
        self.count_asked();
        loop {
            let seen = self.arrivals();
            if self.is_here(page) {
                return Ok(());
            }
            let waited = boottime_ns() - began;
            if let Some(why) = self.hopeless(waited) {
                return Err(Error::StoreArriving(self.missing(page, &why)));
            }
            self.ask(page);
            self.sleep_until_arrival(seen, ASK_AGAIN_NS);
        }
    }

    /// Why waiting longer than `waited_ns` makes no sense; `None`: it does.
    #[must_use]
    pub fn hopeless(&self, waited_ns: u64) -> Option<String> {
        if self.state() == State::Failed {
            return Some(self.failure());
        }
        let limit = self.limit();
        if u128::from(waited_ns) < limit.as_nanos() {
            return None;
        }
        let fetching = !self.lock_is_free();
        let who = if fetching { "the source does not send it" } else { "nobody fetches at all" };
        Some(format!("it was waited for {} s, and {who}", limit.as_secs_f64()))
    }

    /// An error's words.
    #[must_use]
    pub fn missing(&self, page: u64, why: &str) -> String {
        let (pages, here, _) = self.counts();
        format!(
            "{}: page {page} has not arrived: {why} ({} of {pages} pages are missing)",
            self.store_name(),
            pages - here
        )
    }

    fn store_name(&self) -> String {
        let own = self.path.display().to_string();
        own.strip_suffix(".arriving").unwrap_or(&own).to_owned()
    }

    fn lock_is_free(&self) -> bool {
        // Asked through a descriptor of our own: the fetcher's lock belongs to another open description.
        let Ok(other) = OpenOptions::new().read(true).write(true).open(&self.path) else { return true };
        // SAFETY: all-zero is a valid value of this plain struct; a valid descriptor.
        unsafe {
            let mut l: libc::flock = std::mem::zeroed();
            l.l_type = libc::F_WRLCK as libc::c_short;
            l.l_whence = libc::SEEK_SET as libc::c_short;
            l.l_start = LOCK_FETCHER;
            l.l_len = 1;
            libc::fcntl(other.as_raw_fd(), libc::F_OFD_GETLK, &raw mut l) == 0
                && i32::from(l.l_type) == libc::F_UNLCK
        }
    }

    /// Count a page that is asked for because it was accessed.
    pub fn count_asked(&self) {
        self.w(word::ASKED).fetch_add(1, Ordering::Relaxed);
    }

    /// Ask for a page. When all slots are taken, others are served first; who waits asks again.
    pub fn ask(&self, page: u64) {
        let slots = || (0..SLOTS).map(|s| self.w(word::SLOTS_AT + s * 8));
        if !slots().any(|s| s.load(Ordering::Relaxed) == page + 1) {
            let _ =
                slots().any(|s| s.compare_exchange(0, page + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        }
        self.bump(word::WANTED_FUTEX);
    }

    /// A number that changes when pages arrive: to be read before [`Arrival::is_here`], and given to
    /// [`Arrival::sleep_until_arrival`].
    #[must_use]
    pub fn arrivals(&self) -> u32 {
        self.w32(word::ARRIVED_FUTEX).load(Ordering::Acquire)
    }

    /// Sleep until pages arrive, or the time-out, or for no reason.
    pub fn sleep_until_arrival(&self, seen: u32, timeout_ns: u64) {
        self.w32(word::WAITERS).store(1, Ordering::SeqCst);
        self.sleep(word::ARRIVED_FUTEX, seen, timeout_ns);
    }

    fn sleep(&self, at: usize, seen: u32, timeout_ns: u64) {
        let ts = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (timeout_ns % 1_000_000_000) as _,
        };
        let on = std::ptr::from_ref(self.w32(at));
        // SAFETY: a futex on a word of a shared mapping, and a valid time-out.
        unsafe { libc::syscall(libc::SYS_futex, on, libc::FUTEX_WAIT, seen, &raw const ts) };
    }

    fn bump(&self, at: usize) {
        let on = self.w32(at);
        on.fetch_add(1, Ordering::Release);
        // SAFETY: a futex on a word of a shared mapping.
        unsafe { libc::syscall(libc::SYS_futex, std::ptr::from_ref(on), libc::FUTEX_WAKE, i32::MAX) };
    }

    // Durability: both sides.

    /// The pages that are here now. To be asked before a flush, and given to [`Arrival::settle`] after it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u64> {
        (0..self.words_of_bits()).map(|i| self.here(i).load(Ordering::Acquire)).collect()
    }

    /// The pages in `snapshot` are durable in the store: make this known, durably.
    ///
    /// # Errors
    /// What the system said.
    pub fn settle(&self, snapshot: &[u64]) -> io::Result<()> {
        let mut changed = false;
        for (i, bits) in snapshot.iter().enumerate() {
            if *bits != 0 {
                changed |= self.durable(i).fetch_or(*bits, Ordering::AcqRel) & bits != *bits;
            }
        }
        if changed { self.file.sync_data() } else { Ok(()) }
    }

    /// Make the whole file and its name durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let io = |e| Error::io(format!("flush {}", self.path.display()), e);
        self.file.sync_all().map_err(io)?;
        let folder = self.path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|f| f.sync_all()).map_err(io)
    }

    /// Remove the file: the store is an ordinary one, durably.
    pub fn remove(&self) {
        // A file that stays is of no use and does no harm: no superblock refers to it.
        let _ = std::fs::remove_file(&self.path);
    }

    // The fetcher's side.

    /// Become the one fetcher; false: there is one.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn claim(&self) -> Result<bool> {
        if !self.lock(LOCK_FETCHER, false)? {
            return Ok(false);
        }
        self.w(word::FETCHER_PID).store(u64::from(std::process::id()), Ordering::Release);
        // What an earlier one gave up, this one tries.
        let failed = (2, 0);
        let state = self.w(word::STATE);
        let _ = state.compare_exchange(failed.0, failed.1, Ordering::AcqRel, Ordering::Relaxed);
        Ok(true)
    }

    pub(crate) fn release(&self) {
        self.w(word::FETCHER_PID).store(0, Ordering::Release);
        self.unlock(LOCK_FETCHER);
    }

    /// A page and its sum are in place.
    pub(crate) fn set_here(&self, page: u64) {
        let bit = 1 << (page % 64);
        if self.here((page / 64) as usize).fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.w(word::HERE).fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Wake those who wait for pages.
    pub(crate) fn announce(&self) {
        self.w32(word::ARRIVED_FUTEX).fetch_add(1, Ordering::SeqCst);
        if self.w32(word::WAITERS).swap(0, Ordering::SeqCst) != 0 {
            self.bump(word::ARRIVED_FUTEX);
        }
    }

    /// The pages that are asked for; waits at most `timeout_ns` for the first.
    pub(crate) fn take_wanted(&self, timeout_ns: u64) -> Vec<u64> {
        let seen = self.w32(word::WANTED_FUTEX).load(Ordering::Acquire);
        let take = || -> Vec<u64> {
            (0..SLOTS)
                .map(|s| self.w(word::SLOTS_AT + s * 8).swap(0, Ordering::AcqRel))
                .filter(|p| *p != 0 && *p <= self.pages && !self.is_here(p - 1))
                .map(|p| p - 1)
                .collect()
        };
        let wanted = take();
        if !wanted.is_empty() {
            return wanted;
        }
        self.sleep(word::WANTED_FUTEX, seen, timeout_ns);
        take()
    }

    /// The first page from `from` on that is not here, and how many follow it that are not here either, it included; at
    /// most `most`.
    #[must_use]
    pub fn next_missing(&self, from: u64, most: u64) -> Option<(u64, u64)> {
        let mut page = from;
        while page < self.pages {
            let left = !self.here((page / 64) as usize).load(Ordering::Acquire) >> (page % 64);
            if left == 0 {
                page = (page / 64 + 1) * 64;
                continue;
            }
            page += u64::from(left.trailing_zeros());
            if page >= self.pages {
                return None;
            }
            let count = (1..most.min(self.pages - page)).find(|n| self.is_here(page + n));
            return Some((page, count.unwrap_or(most.min(self.pages - page))));
        }
        None
    }

    /// Whether every page is durable.
    #[must_use]
    pub fn all_durable(&self) -> bool {
        (0..self.words_of_bits()).all(|i| {
            let last = (self.pages - i as u64 * 64).min(64);
            let all = if last == 64 { u64::MAX } else { (1 << last) - 1 };
            self.durable(i).load(Ordering::Acquire) & all == all
        })
    }

    pub(crate) fn set_complete(&self) -> io::Result<()> {
        self.w(word::STATE).store(1, Ordering::Release);
        self.file.sync_data()?;
        self.bump(word::ARRIVED_FUTEX);
        Ok(())
    }

    pub(crate) fn set_failed(&self, why: &str) {
        let mut end = why.len().min(FAILURE_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        for (i, part) in why.as_bytes()[..end].chunks(4).enumerate() {
            let mut four = [0u8; 4];
            four[..part.len()].copy_from_slice(part);
            self.w32(word::FAILURE + 4 + i * 4).store(u32::from_le_bytes(four), Ordering::Relaxed);
        }
        self.w32(word::FAILURE).store(end as u32, Ordering::Release);
        self.w(word::STATE).store(2, Ordering::Release);
        self.bump(word::ARRIVED_FUTEX);
    }

    /// Bytes of the whole image.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.pages * PAGE_U64
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival")
            .field("path", &self.path)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
