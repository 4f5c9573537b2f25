//! A store, open in an application: the writer with its working view, or a reader of someone else's.
//!
//! One mutex guards everything of a handle. A commit holds it while it appends; where durability is slow (a disk) it
//! lets go while the flush runs, so that commits of many threads share one flush, and applies afterwards. Meanwhile
//! the image is older than the log: pages touched by groups in flight have a *shadow*, their contents as of the
//! newest appended group, and differences are taken against that.

mod append;
mod commit;
mod gate;
mod reader;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::arrival::{Arrival, State};
use crate::base::Base;
use crate::capture::{Capture, Mode};
use crate::control::{Control, Holder, Lock, boottime_ns, word};
use crate::error::{Error, Result};
use crate::format::{Durability, INCOMPAT_ARRIVING, PAGE, PAGE_U64, Point, Superblock};
use crate::medium::{Anonymous, FileMedium, Medium, PrivateView};
use crate::objects::Objects;
use crate::pager::Pager;
use crate::work::Work;

pub use append::Appended;
pub use commit::{Attempt, Ticket};
use gate::Gate;
use reader::Reader;

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How changed array pages are found; `None`: the best way.
    pub capture: Option<Mode>,
    /// Compare the whole image with its sums at once, rather than pages when they are first used.
    pub verify_all: bool,
    /// How long a commit waits for room in the log.
    pub log_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { capture: None, verify_all: false, log_timeout: Duration::from_secs(60) }
    }
}

/// Contents of a page as of the newest appended group that touched it.
struct Shadow {
    data: Box<[u8; PAGE]>,
    sum: u64,
    last: u64,
}

/// Everything behind the mutex. The view is dropped after `work`, which points into it.
struct Inner<M: Medium> {
    work: Work,
    objects: Objects,
    capture: Option<Capture>,
    /// Of a store that was arriving when it was opened: fills the view. Ends before the view goes.
    pager: Option<Pager>,
    /// A change of objects that stopped half way because a page did not come.
    half_done: Option<String>,
    /// Keeps the memory of `work` mapped.
    _view: Option<PrivateView>,
    writer: Option<Base<Arc<M>>>,
    reader: Option<Reader<M>>,
    /// End of the log as appended.
    appended: Point,
    /// Log bytes before this are durable.
    durable: u64,
    flushing: bool,
    /// Number of the newest flush that began, and the end of what it makes durable.
    flush: u64,
    flush_end: u64,
    checkpointing: bool,
    shadow: HashMap<u64, Shadow>,
    candidates: Vec<u64>,
    scratch: Box<[u8; PAGE]>,
    transaction: Option<ThreadId>,
    /// End of a commit inside the transaction that is still to be held back.
    owed: u64,
    /// Commits that wait for the budget.
    waiting: u32,
    gate: Arc<Gate>,
    poisoned: Option<String>,
    closed: bool,
    options: Options,
    name: String,
}

struct Shared<M: Medium> {
    inner: Mutex<Inner<M>>,
    changed: Condvar,
    gate: Arc<Gate>,
    m: Arc<M>,
    alive: ForkGuard,
    readonly: bool,
}

/// An open store. Cheap to share between threads.
pub struct Store<M: Medium + 'static> {
    shared: Arc<Shared<M>>,
}

/// One page that a forked child finds empty: mappings of the store are not inherited, so it must not use them.
struct ForkGuard(Anonymous);

impl ForkGuard {
    fn new() -> Result<Self> {
        let page = Anonymous::new(PAGE)?;
        // SAFETY: our own fresh page.
        unsafe {
            if libc::madvise(page.base().cast(), PAGE, libc::MADV_WIPEONFORK) != 0 {
                return Err(Error::last_os("mark a page to be wiped on fork"));
            }
            page.base().write_volatile(1);
        }
        Ok(Self(page))
    }

    #[inline]
    fn is_parent(&self) -> bool {
        // SAFETY: our own page.
        unsafe { self.0.base().read_volatile() == 1 }
    }
}

type Guard<'a, M> = MutexGuard<'a, Inner<M>>;

/// Say in an error which store it is about.
#[inline]
fn annotate<T>(name: &str, r: Result<T>) -> Result<T> {
    r.map_err(|e| named(name, e))
}

#[cold]
fn named(name: &str, e: Error) -> Error {
    let with = |what: String| if what.starts_with(name) { what } else { format!("{name}: {what}") };
    match e {
        Error::StoreCorrupt(what) => Error::StoreCorrupt(with(what)),
        Error::StoreFull(what) => Error::StoreFull(with(what)),
        Error::NoSuchObject(what) => Error::NoSuchObject(with(what)),
        Error::ObjectInUse(what) => Error::ObjectInUse(with(what)),
        Error::StoreReadOnly(what) => Error::StoreReadOnly(with(what)),
        Error::InvalidArgument(what) => Error::InvalidArgument(with(what)),
        e => e,
    }
}

/// Lay out and format a new store file; it is closed again.
///
/// # Errors
/// The file exists, there is no space, or the sizes or the durability cannot be.
pub fn create(path: &Path, mut sb: Superblock, durability: Option<Durability>) -> Result<()> {
    let seed = crate::replica::random16()?;
    let seed = u64::from_le_bytes(seed[8..].try_into().expect("eight bytes"));
    sb.created_ns = crate::control::realtime_coarse_ns();
    let m = FileMedium::create(path, &mut sb, durability)?;
    let made = Base::format(&m, &mut sb).and_then(|()| {
        let store = Store::open_on(m, sb, path.display().to_string(), Options::default())?;
        store.change(|work, _| Objects::format(work, seed))?;
        store.commit()?;
        store.close()
    });
    if made.is_err() && path.is_file() {
        let _ = std::fs::remove_file(path); // ours, just made, and unusable; the first error is what matters
    }
    made.map(|_| ())
}

impl Store<FileMedium> {
    /// Open the store at `path` for writing.
    ///
    /// # Errors
    /// `NotAStore`, `NewerVersion`, `StoreBusy`, `StoreCorrupt`, `StoreUntrusted`, `StoreFenced`, or the system's.
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        let (m, _) = FileMedium::open(path, true)?;
        take_writer_lock(&m, path)?;
        // Read again: until the lock was ours another writer could change it.
        let (m2, sb) = FileMedium::open(path, true)?;
        drop(m2);
        if sb.incompat & INCOMPAT_ARRIVING == 0 {
            m.reserve_holes()?;
        }
        Self::open_on(m, sb, path.display().to_string(), options)
    }

    /// Open the store at `path` to look at it, whether or not another process writes it.
    ///
    /// # Errors
    /// As [`Store::open`], but never `StoreBusy`.
    pub fn open_readonly(path: &Path, options: Options) -> Result<Self> {
        let (m, sb) = FileMedium::open(path, false)?;
        Self::reader_on(Arc::new(m), sb, path.display().to_string(), options)
    }
}

/// A newer epoch that is known to have begun elsewhere is an error.
fn not_fenced<M: Medium>(base: &Base<M>) -> Result<()> {
    let fence = base.control.get(word::FENCE_EPOCH);
    if fence <= base.sb.epoch {
        return Ok(());
    }
    Err(Error::StoreFenced(format!(
        "{}: epoch {fence} has begun elsewhere, this copy is of epoch {}",
        base.name, base.sb.epoch
    )))
}

/// Wait until a store has arrived completely, as long as pages keep coming.
fn wait_for_all(arrival: &Arrival) -> Result<()> {
    let (mut here, mut since_ns) = (arrival.counts().1, boottime_ns());
    loop {
        let seen = arrival.arrivals();
        let (_, now_here, _) = arrival.counts();
        if arrival.state() == State::Complete {
            return Ok(());
        }
        if now_here > here {
            (here, since_ns) = (now_here, boottime_ns());
        }
        // The last page may be here and the flush take long: that is not for us to limit.
        let missing = arrival.next_missing(0, 1);
        if let Some((page, _)) = missing
            && let Some(why) = arrival.hopeless(boottime_ns() - since_ns)
        {
            return Err(Error::StoreArriving(arrival.missing(page, &why)));
        }
        arrival.sleep_until_arrival(seen, 100_000_000);
    }
}

/// How long a fetcher may hold the writer's lock at the end of its work: as long as a superblock takes to be written.
const FINISHING: Duration = Duration::from_secs(5);

/// Take the writer's lock on a mapped store file, or say who has it.
///
/// # Errors
/// `StoreBusy`.
pub fn take_writer_lock(m: &FileMedium, path: &Path) -> Result<()> {
    let file = m.mapping().file();
    let take = || Lock::Writer.take(file).map_err(|e| Error::io(format!("lock {}", path.display()), e));
    let c = Control::of(m.mapping());
    let began = Instant::now();
    while !take()? {
        // A fetcher says nowhere that it has it. It is one when whoever said so last has ended, or the store arrives.
        let pid = c.get(word::WRITER_PID);
        let transient = !is_alive(pid) || FileMedium::open(path, true)?.1.incompat & INCOMPAT_ARRIVING != 0;
        if transient && began.elapsed() < FINISHING {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let who = match c.get(word::HOLDER) {
            1 => "an application",
            2 => "a receiver",
            _ => "another process",
        };
        return Err(Error::StoreBusy(format!("{}: {who} (pid {pid}) holds the store", path.display())));
    }
    Ok(())
}

/// Whether there is a process of that number, in this namespace of them.
fn is_alive(pid: u64) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 is not sent.
    let sent = pid > 0 && unsafe { libc::kill(pid, 0) } == 0;
    sent || pid > 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

impl<M: Medium + 'static> Store<M> {
    /// Open a mapped store for writing; the writer's lock is held by the caller's medium.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(m: M, sb: Superblock, name: String, options: Options) -> Result<Self> {
        let m = Arc::new(m);
        let (mut base, _) = Base::open(Arc::clone(&m), sb, name.clone(), false)?;
        if let Some(a) = m.arrival() {
            if a.state() != State::Complete {
                return Self::over_arriving(&m, base, &Arc::clone(a), options);
            }
            base.arrived()?;
        }
        Self::over(m, base, options)
    }

    /// The working view over a store whose pages are still coming: memory that is filled on first access. Where this
    /// process may not do that, all pages are waited for.
    fn over_arriving(
        m: &Arc<M>,
        mut base: Base<Arc<M>>,
        arrival: &Arc<Arrival>,
        options: Options,
    ) -> Result<Self> {
        let name = base.name.clone();
        not_fenced(&base)?;
        let view = PrivateView::of_memory(base.sb.image_size)?;
        let pager = if options.verify_all { None } else { Pager::start(&view, m, arrival, &base.sb)? };
        let Some(pager) = pager else {
            annotate(&name, wait_for_all(arrival))?;
            base.arrived()?;
            return Self::over(Arc::clone(m), base, options);
        };
        let sums = m.mapping().at(base.sb.sums_offset, base.sb.pages() * 8).cast::<u64>();
        // SAFETY: as in `over`.
        let mut work = unsafe { Work::new(view.base(), base.sb.image_size, sums, true) };
        work.compared_with(m.mapping().at(base.sb.image_offset, base.sb.image_size));
        work.comes_on_demand(Arc::clone(arrival));
        let objects = annotate(&name, Objects::open(&work))?;
        let capture = Capture::on_demand(&view, pager.faults(), options.capture)
            .map_err(|e| Error::io(format!("find changed pages of {name} in the way asked for"), e))?;
        m.stage().map_err(|e| Error::io(format!("get memory for the log of {name}"), e))?;
        base.control.set_writer(Holder::Application);
        let mut inner = Inner::new(work, objects, base.applied, options, name);
        inner.capture = Some(capture);
        inner.pager = Some(pager);
        inner._view = Some(view);
        inner.writer = Some(base);
        let store = Self { shared: Arc::new(Shared::new(inner, Arc::clone(m), false)?) };
        let shared = Arc::downgrade(&store.shared);
        if let Some(pager) = &store.relock().pager {
            pager.when_complete(move || {
                if let Some(shared) = shared.upgrade() {
                    Self { shared }.arrived();
                }
            });
        }
        Ok(store)
    }

    /// All pages are here and durable: say so in the superblock.
    fn arrived(&self) {
        let mut g = self.relock();
        if g.closed {
            return; // the fetcher does it
        }
        if let Some(Err(e)) = g.writer.as_mut().map(Base::arrived) {
            g.poison(&e);
        }
    }

    /// The working view over a recovered store.
    fn over(m: Arc<M>, base: Base<Arc<M>>, options: Options) -> Result<Self> {
        let name = base.name.clone();
        not_fenced(&base)?;
        if options.verify_all {
            for page in 0..base.sb.pages() {
                annotate(&name, base.check_page(page))?;
            }
        }
        let view = m.mapping().private_view(base.sb.image_offset, base.sb.image_size)?;
        if !view.file_backed {
            for page in (0..base.sb.pages()).filter(|p| base.sum(*p) != 0) {
                // SAFETY: the same page in the image and in its copy.
                unsafe {
                    let to = view.base().add(page as usize * PAGE);
                    std::ptr::copy_nonoverlapping(base.image_page(page), to, PAGE);
                }
            }
        }
        let sums = m.mapping().at(base.sb.sums_offset, base.sb.pages() * 8).cast::<u64>();
        // SAFETY: the view and the sums live as long as `Inner`, which drops `work` first.
        let mut work = unsafe { Work::new(view.base(), base.sb.image_size, sums, true) };
        work.compared_with(m.mapping().at(base.sb.image_offset, base.sb.image_size));
        // A store that is only just being formatted has no objects yet.
        let fresh = base.applied.seq == 0;
        let objects = if fresh { Objects::new(&work) } else { annotate(&name, Objects::open(&work))? };
        let capture = Capture::new(&view, options.capture)
            .map_err(|e| Error::io(format!("find changed pages of {name} in the way asked for"), e))?;
        m.stage().map_err(|e| Error::io(format!("get memory for the log of {name}"), e))?;
        base.control.set_writer(Holder::Application);
        let appended = base.applied;
        let mut inner = Inner::new(work, objects, appended, options, name);
        inner.capture = Some(capture);
        inner._view = Some(view);
        inner.writer = Some(base);
        Ok(Self { shared: Arc::new(Shared::new(inner, m, false)?) })
    }

    fn reader_on(m: Arc<M>, sb: Superblock, name: String, options: Options) -> Result<Self> {
        let reader = annotate(&name, Reader::new(Arc::clone(&m), sb, name.clone()))?;
        if options.verify_all {
            annotate(&name, reader.verify().map(|_| ()))?;
        }
        let work = reader.work();
        let objects = annotate(&name, Objects::open(&work))?;
        let mut inner = Inner::new(work, objects, reader.position(), options, name);
        inner.reader = Some(reader);
        Ok(Self { shared: Arc::new(Shared::new(inner, m, true)?) })
    }

    #[inline]
    fn lock(&self) -> Result<Guard<'_, M>> {
        let s = &*self.shared;
        if !s.alive.is_parent() {
            return Err(Error::StoreClosed("the store was opened by the parent of this process".into()));
        }
        let g = s.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if g.closed {
            return Err(Error::StoreClosed(format!("{} is closed", g.name)));
        }
        Ok(g)
    }

    /// Look at objects.
    ///
    /// # Errors
    /// `StoreClosed`, and what `f` says.
    #[inline]
    pub fn look<R>(&self, f: impl FnOnce(&Work, &mut Objects) -> Result<R>) -> Result<R> {
        let mut g = self.lock()?;
        let inner = &mut *g;
        annotate(&inner.name, f(&inner.work, &mut inner.objects))
    }

    /// Change objects; nothing is committed.
    ///
    /// # Errors
    /// `StoreClosed`, and what `f` says.
    #[inline]
    pub fn change<R>(&self, f: impl FnOnce(&mut Work, &mut Objects) -> Result<R>) -> Result<R> {
        let mut g = self.lock()?;
        let inner = &mut *g;
        let r = f(&mut inner.work, &mut inner.objects);
        inner.whole(annotate(&inner.name, r))
    }

    /// Open, create or grow an array through `f` and watch its pages.
    ///
    /// # Errors
    /// `StoreClosed`, what `f` says, or damage in one of the array's pages.
    pub fn array<R>(
        &self,
        f: impl FnOnce(&mut Work, &mut Objects) -> Result<(R, u64, u64)>,
    ) -> Result<(R, *mut u8)> {
        let mut g = self.lock()?;
        let inner = &mut *g;
        let made = annotate(&inner.name, f(&mut inner.work, &mut inner.objects));
        let (r, offset, len) = inner.whole(made)?;
        if inner.work.on_demand() {
            // Compared page by page, when they are put into the view.
            inner.work.trust(offset, len);
        } else {
            // Every page is compared with its sum here: from now on the core does not see the accesses.
            inner.work.bytes(offset, len)?;
        }
        if let (Some(capture), true) = (&inner.capture, len > 0) {
            let padded = len.next_multiple_of(PAGE_U64);
            capture
                .watch(offset, padded)
                .map_err(|e| Error::io(format!("watch an array of {}", inner.name), e))?;
        }
        // SAFETY: whoever made the array checked the range.
        Ok((r, unsafe { inner.work.base().add(offset as usize) }))
    }

    fn wait_turn<'a>(&'a self, mut g: Guard<'a, M>) -> Result<Guard<'a, M>> {
        if g.transaction.is_some() {
            let me = std::thread::current().id();
            while g.transaction.is_some_and(|t| t != me) {
                g = self.wait(g, Duration::from_secs(3600))?;
            }
        }
        Ok(g)
    }

    fn wait<'a>(&'a self, g: Guard<'a, M>, at_most: Duration) -> Result<Guard<'a, M>> {
        let r = self.shared.changed.wait_timeout(g, at_most);
        let g = r.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        if g.closed { Err(Error::StoreClosed(format!("{} was closed", g.name))) } else { Ok(g) }
    }

    /// Begin a transaction of this thread: commits of other threads wait for [`Store::end`].
    ///
    /// # Errors
    /// `InvalidArgument` when this thread is in one already.
    pub fn begin(&self) -> Result<()> {
        let mut g = self.lock()?;
        if g.transaction == Some(std::thread::current().id()) {
            return Err(Error::InvalidArgument("this thread is in a transaction already".into()));
        }
        g = self.wait_turn(g)?;
        g.transaction = Some(std::thread::current().id());
        g.owed = 0;
        Ok(())
    }

    /// End the transaction of this thread, if there is one. Holds back what a commit in it was to be held back.
    ///
    /// # Errors
    /// `StoreClosed`; `StoreFenced` as for a commit.
    pub fn end(&self) -> Result<()> {
        let mut g = self.lock()?;
        if g.transaction == Some(std::thread::current().id()) {
            g.transaction = None;
            self.shared.changed.notify_all();
            let owed = std::mem::take(&mut g.owed);
            drop(g);
            self.hold_back(owed)?; // 0: behind no limit
        }
        Ok(())
    }

    /// Undo everything since the last commit.
    ///
    /// # Errors
    /// `StoreClosed`, or what the kernel said when asked for changed pages.
    pub fn rollback(&self) -> Result<()> {
        let g = self.lock()?;
        let mut g = self.wait_turn(g)?;
        if self.shared.readonly {
            return Ok(());
        }
        g.undo()
    }

    /// Position of the last commit that this handle made or sees.
    ///
    /// # Errors
    /// `StoreClosed`.
    pub fn position(&self) -> Result<u64> {
        let g = self.lock()?;
        Ok(if g.reader.is_some() { g.appended.lsn } else { g.durable })
    }

    /// Reader: move forward to the newest commit; the position now seen. Writer: its position.
    ///
    /// # Errors
    /// `StoreCorrupt`, or `LogTooSmall` when the writer laps the reader again and again.
    pub fn refresh(&self) -> Result<u64> {
        let mut g = self.lock()?;
        let inner = &mut *g;
        let Some(reader) = &mut inner.reader else { return Ok(inner.durable) };
        let moved = annotate(&inner.name, reader.refresh());
        inner.appended = reader.position();
        inner.work.forget_checked();
        inner.objects.reset();
        moved?;
        Ok(inner.appended.lsn)
    }

    /// Wait until `copies` destinations hold `pos` durably; whether they do before the time-out.
    ///
    /// # Errors
    /// `StoreClosed`; `StoreFenced` when the lease has passed meanwhile: another host may have taken over without
    /// what those destinations hold.
    pub fn wait_copies(&self, pos: u64, copies: usize, timeout: Duration) -> Result<bool> {
        drop(self.lock()?);
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX / 4);
        let held = self.control().wait_copies(pos, copies, nanos);
        if held && !self.shared.readonly {
            self.lock()?.not_past_deadline()?;
        }
        Ok(held)
    }

    /// The control words. They are mapped as long as this handle lives.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::of(self.shared.m.mapping())
    }

    /// Whether somebody ships this store now.
    ///
    /// # Errors
    /// `StoreClosed`, or what the system said.
    pub fn shipper_locked(&self) -> Result<bool> {
        let g = self.lock()?;
        let taken = Lock::Shipper.is_taken(self.shared.m.mapping().file());
        taken.map_err(|e| Error::io(format!("ask for a lock of {}", g.name), e))
    }

    /// The superblock as this handle knows it.
    ///
    /// # Errors
    /// `StoreClosed`.
    pub fn superblock(&self) -> Result<Superblock> {
        let g = self.lock()?;
        match (&g.writer, &g.reader) {
            (Some(b), _) => Ok(b.sb.clone()),
            (None, Some(r)) => Ok(r.superblock().clone()),
            (None, None) => Err(Error::StoreClosed(format!("{} is closed", g.name))),
        }
    }

    /// How changed pages are found; `None` for readers.
    ///
    /// # Errors
    /// `StoreClosed`.
    pub fn capture_mode(&self) -> Result<Option<Mode>> {
        Ok(self.lock()?.capture.as_ref().map(Capture::mode))
    }

    /// Whether it was opened read-only.
    #[must_use]
    pub fn readonly(&self) -> bool {
        self.shared.readonly
    }

    /// Whether it was closed (or belongs to the parent of this process).
    #[must_use]
    pub fn closed(&self) -> bool {
        self.lock().is_err()
    }

    /// Compare every page of the committed image with its sum; pages checked.
    ///
    /// # Errors
    /// `StoreCorrupt`.
    pub fn verify(&self) -> Result<u64> {
        let mut g = self.lock()?;
        let appended = g.appended.lsn;
        if g.writer.is_some() {
            g = self.flush_until(g, appended)?;
        }
        let name = g.name.clone();
        if let Some(r) = &g.reader {
            return annotate(&name, r.verify());
        }
        let base = g.base()?;
        if base.sb.incompat & INCOMPAT_ARRIVING != 0 {
            return Err(Error::StoreArriving(format!(
                "{name} has not arrived completely: nothing is verified"
            )));
        }
        for page in 0..base.sb.pages() {
            annotate(&name, base.check_page(page))?;
        }
        Ok(base.sb.pages())
    }

    /// Close: changes that were not committed are forgotten; everything committed is made durable and marked clean.
    /// Closing twice is fine. NumPy views keep reading their memory; it is given back when the last is gone.
    ///
    /// # Errors
    /// What the medium said; the next open then recovers.
    pub fn close(&self) -> Result<()> {
        let Ok(mut g) = self.lock() else { return Ok(()) };
        let appended = g.appended.lsn;
        let mut result = Ok(());
        if g.writer.is_some() && g.poisoned.is_none() {
            match self.flush_until(g, appended) {
                Ok(back) => g = back,
                Err(e) => {
                    result = Err(e);
                    g = self.lock()?;
                }
            }
            while g.checkpointing {
                g = self.wait(g, Duration::from_secs(3600))?;
            }
        }
        g.closed = true;
        if let Some(pager) = &g.pager {
            pager.store_closed();
        }
        let clean = g.poisoned.is_none() && result.is_ok();
        if let Some(base) = &mut g.writer {
            if clean {
                result = base.close();
            }
            base.control.set_writer(Holder::None);
            Lock::Writer.release(self.shared.m.mapping().file());
        }
        // The memory of a reader's copy stays: NumPy views may still look at it.
        g.capture = None;
        self.shared.changed.notify_all();
        result
    }
}

impl<M: Medium> Shared<M> {
    fn new(inner: Inner<M>, m: Arc<M>, readonly: bool) -> Result<Self> {
        let gate = Arc::clone(&inner.gate);
        Ok(Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            gate,
            m,
            alive: ForkGuard::new()?,
            readonly,
        })
    }
}

impl<M: Medium> Inner<M> {
    /// Neither writer nor reader yet; everything up to `at` is durable.
    fn new(work: Work, objects: Objects, at: Point, options: Options, name: String) -> Self {
        Self {
            work,
            objects,
            capture: None,
            pager: None,
            half_done: None,
            _view: None,
            writer: None,
            reader: None,
            appended: at,
            durable: at.lsn,
            flushing: false,
            flush: 0,
            flush_end: 0,
            checkpointing: false,
            shadow: HashMap::new(),
            candidates: Vec::new(),
            scratch: Box::new([0; PAGE]),
            transaction: None,
            owed: 0,
            waiting: 0,
            gate: Arc::new(Gate::new(at.lsn)),
            poisoned: None,
            closed: false,
            options,
            name,
        }
    }

    fn base(&self) -> Result<&Base<Arc<M>>> {
        self.writer.as_ref().ok_or_else(|| Error::StoreReadOnly(format!("{} is open read-only", self.name)))
    }

    fn base_mut(&mut self) -> Result<&mut Base<Arc<M>>> {
        let name = &self.name;
        self.writer.as_mut().ok_or_else(|| Error::StoreReadOnly(format!("{name} is open read-only")))
    }

    #[inline]
    fn not_poisoned(&self) -> Result<()> {
        match &self.poisoned {
            None => Ok(()),
            Some(why) => {
                Err(Error::StorePoisoned(format!("{}: no commits after a failure: {why}", self.name)))
            }
        }
    }

    /// A change that stopped half way must not be committed; nor anything, once memory could not be given.
    #[inline]
    fn not_half_done(&self) -> Result<()> {
        if let Some(why) = self.pager.as_ref().and_then(Pager::broken) {
            return Err(Error::StorePoisoned(format!("{}: no commits after a failure: {why}", self.name)));
        }
        match &self.half_done {
            None => Ok(()),
            Some(why) => Err(Error::StoreArriving(format!(
                "{}: a change stopped half way and has to be rolled back: {why}",
                self.name
            ))),
        }
    }

    /// The result of a change, noted if it stopped half way.
    #[inline]
    fn whole<R>(&mut self, r: Result<R>) -> Result<R> {
        if let Err(e @ Error::StoreArriving(_)) = &r {
            self.half_done.get_or_insert_with(|| e.to_string());
        }
        r
    }

    fn poison(&mut self, why: &Error) {
        self.poisoned.get_or_insert_with(|| why.to_string());
        if let Some(b) = &self.writer {
            b.control.set(word::POISONED, 1);
        }
        self.gate.open_for_all();
    }

    /// Whether this store may still commit, by lease and fence.
    #[inline]
    fn not_past_deadline(&self) -> Result<()> {
        let base = self.base()?;
        base.control.refusal(base.sb.epoch).map_or(Ok(()), |why| Err(self.fenced(why)))
    }

    #[cold]
    fn fenced(&self, why: &str) -> Error {
        Error::StoreFenced(format!("{}: {why}; nothing more may be committed here", self.name))
    }
}
