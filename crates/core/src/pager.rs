//! Puts pages of an arriving store into the working view when they are first touched.
//!
//! Used by the store that opens one. The view is anonymous memory registered with userfaultfd: a thread that touches
//! a page which is not there sleeps in the kernel until this module has put a copy of the image's page there. Two
//! threads of the engine do that, neither of which takes the store's mutex, the interpreter's lock, or touches the view:
//! *faults* serves pages that are here at once and asks for the others, *arrivals* waits for those.
//!
//! A page that is not in the view yet was never changed by a commit of this process, so the image's copy stands still
//! and can be compared with its sum. When a page does not come, the access ends with SIGBUS; there is no way to
//! give a thread that reads plain memory an error, and zeros would be a lie.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::arrival::{Arrival, State};
use crate::checksum::page_sum;
use crate::control::boottime_ns;
use crate::error::{Error, Result};
use crate::format::{PAGE, PAGE_U64, Superblock};
use crate::medium::{Anonymous, Medium, PrivateView};
use crate::uffd::{self, Faults};

/// Pages that are copied together, when they are here.
const AROUND: u64 = 16;
const IDLE_NS: u64 = 1_000_000_000;
const BUSY_NS: u64 = 100_000_000;

struct Waiting {
    page: u64,
    since_ns: u64,
}

/// Guarded by one mutex: which pages are in the view, and a page to copy from.
struct Filled {
    bits: Vec<u64>,
    scratch: Anonymous,
}

struct Shared {
    faults: Faults,
    view: usize,
    pages: u64,
    arrival: Arc<Arrival>,
    /// Keeps image and sums mapped.
    medium: Arc<dyn Medium>,
    sb: Superblock,
    filled: Mutex<Filled>,
    waiting: Mutex<Vec<Waiting>>,
    stop: AtomicBool,
    /// The store was closed: others may change the file, and pages are no longer compared with their sums.
    closed: AtomicBool,
    broken: OnceLock<String>,
    complete: Mutex<Option<Call>>,
}

/// What to do once.
type Call = Box<dyn FnOnce() + Send>;

/// See the module.
pub struct Pager {
    shared: Arc<Shared>,
    wake: OwnedFd,
    threads: Vec<JoinHandle<()>>,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pager {
    /// Serve faults in `view`. `None`: this process may not, or the kernel cannot.
    ///
    /// # Errors
    /// No thread, or no memory.
    pub fn start<M: Medium + 'static>(
        view: &PrivateView,
        m: &Arc<M>,
        arrival: &Arc<Arrival>,
        sb: &Superblock,
    ) -> Result<Option<Self>> {
        let Ok(faults) = Faults::over(view) else { return Ok(None) };
        let io = |e| Error::io("serve page faults", e);
        let wake = event().map_err(io)?;
        let medium: Arc<dyn Medium> = Arc::<M>::clone(m);
        let shared = Arc::new(Shared {
            faults,
            view: view.base() as usize,
            pages: sb.pages(),
            arrival: Arc::clone(arrival),
            medium,
            sb: sb.clone(),
            filled: Mutex::new(Filled {
                bits: vec![0; sb.pages().div_ceil(64) as usize],
                scratch: Anonymous::new(PAGE)?,
            }),
            waiting: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            broken: OnceLock::new(),
            complete: Mutex::new(None),
        });
        let mut pager = Self { shared, wake, threads: Vec::new() };
        let (s, wake) = (Arc::clone(&pager.shared), pager.wake.as_raw_fd());
        pager.spawn("sustain-faults", move || s.serve_faults(wake)).map_err(io)?;
        let s = Arc::clone(&pager.shared);
        pager.spawn("sustain-arrivals", move || s.serve_arrivals()).map_err(io)?;
        Ok(Some(pager))
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    /// The descriptor that the view is registered with.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Why a page could not be given; the store must not commit any more.
    #[inline]
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.shared.broken.get().map(String::as_str)
    }

    /// Call `f` once, in a thread of its own, when all pages are here and durable.
    pub fn when_complete(&self, f: impl FnOnce() + Send + 'static) {
        *locked(&self.shared.complete) = Some(Box::new(f));
        self.shared.arrival.announce();
    }

    /// The store was closed; views of its arrays may live on.
    pub fn store_closed(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes into our own event descriptor.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), 8) };
        self.shared.arrival.announce();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn event() -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor that belongs to nobody else.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

impl Shared {
    fn serve_faults(&self, wake: i32) {
        loop {
            let on = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut fds = [on(self.faults.fd()), on(wake)];
            // SAFETY: two valid entries.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            while let Some(at) = self.faults.next() {
                if let Some(offset) = (at as usize).checked_sub(self.view) {
                    self.fault(offset as u64 / PAGE_U64);
                }
            }
        }
    }

    fn fault(&self, page: u64) {
        if page >= self.pages {
            return;
        }
        if !self.arrival.is_here(page) {
            self.arrival.count_asked();
            self.arrival.ask(page);
            locked(&self.waiting).push(Waiting { page, since_ns: boottime_ns() });
            // It may have come before it was in the list, and then nobody looks again.
            if !self.arrival.is_here(page) {
                return;
            }
        }
        self.fill(page);
    }

    fn serve_arrivals(&self) {
        loop {
            let seen = self.arrival.arrivals();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let waiting = std::mem::take(&mut *locked(&self.waiting));
            let now_ns = boottime_ns();
            let mut left = Vec::new();
            for w in waiting {
                if self.arrival.is_here(w.page) {
                    self.fill(w.page);
                } else if let Some(why) = self.arrival.hopeless(now_ns.saturating_sub(w.since_ns)) {
                    self.give_up(w.page, &self.arrival.missing(w.page, &why));
                } else {
                    self.arrival.ask(w.page);
                    left.push(w);
                }
            }
            let idle = left.is_empty();
            locked(&self.waiting).append(&mut left);
            if self.arrival.state() == State::Complete
                && let Some(f) = locked(&self.complete).take()
            {
                // In a thread of its own: it takes the store's mutex, whose holder may wait for a page.
                std::thread::spawn(f);
            }
            self.arrival.sleep_until_arrival(seen, if idle { IDLE_NS } else { BUSY_NS });
        }
    }

    /// Put a page that is here into the view, and those behind it that are here as well.
    fn fill(&self, page: u64) {
        let mut filled = locked(&self.filled);
        if filled.has(page) {
            self.faults.wake(self.address(page));
            return;
        }
        if let Err(why) = self.copy(&mut filled, page) {
            drop(filled);
            self.give_up(page, &why);
            return;
        }
        let end = ((page / AROUND + 1) * AROUND).min(self.pages);
        for next in page + 1..end {
            // A neighbour that is not as its sum says is left to its own fault.
            if filled.has(next) || !self.arrival.is_here(next) || self.copy(&mut filled, next).is_err() {
                return;
            }
        }
    }

    fn address(&self, page: u64) -> u64 {
        self.view as u64 + page * PAGE_U64
    }

    fn copy(&self, filled: &mut Filled, page: u64) -> std::result::Result<(), String> {
        let m = self.medium.mapping();
        let to = filled.scratch.base();
        // SAFETY: one aligned word of the sums; a page of the image; a page of our own.
        let (sum, found) = unsafe {
            let sum = m.at(self.sb.sums_offset + page * 8, 8).cast::<u64>().read_volatile();
            let sum = u64::from_le(sum);
            if sum == 0 {
                std::ptr::write_bytes(to, 0, PAGE);
                (0, 0)
            } else {
                let from = m.at(self.sb.image_offset + page * PAGE_U64, PAGE_U64);
                std::ptr::copy_nonoverlapping(from, to, PAGE);
                (sum, page_sum(page, to))
            }
        };
        if sum != found && !self.closed.load(Ordering::Acquire) {
            return Err(format!("image page {page} does not match its sum"));
        }
        self.faults.copy(self.address(page), to as u64).map_err(|e| format!("page {page}: {e}"))?;
        filled.bits[(page / 64) as usize] |= 1 << (page % 64);
        Ok(())
    }

    fn give_up(&self, page: u64, why: &str) {
        let _ = self.broken.set(why.to_owned());
        eprintln!("sustain: {why}; the access ends with SIGBUS");
        if self.faults.poison(self.address(page)).is_err() {
            // Before Linux 6.6 nothing else ends the access without showing what is not there.
            std::process::abort();
        }
    }
}

impl Filled {
    fn has(&self, page: u64) -> bool {
        self.bits[(page / 64) as usize] >> (page % 64) & 1 == 1
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("arrival", &self.shared.arrival).finish_non_exhaustive()
    }
}

/// Whether this process may serve faults in its own memory, those inside system calls as well.
#[must_use]
pub fn available() -> bool {
    uffd::probe_missing()
}
