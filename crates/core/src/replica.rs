//! The receiving side of a store: takes log bytes as they come, applies complete groups only.
//!
//! Bytes are received straight into the ring behind what is there, verified record by record, and published when
//! their group is whole: made durable, applied, and only then counted in `end`. Nothing that is not a continuation
//! of this log, in this order, is ever applied.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arrival::Arrival;
use crate::base::Base;
use crate::checksum::page_sums;
use crate::control::{Control, Holder, Lock, boottime_ns, word};
use crate::error::{Error, Result};
use crate::format::{
    Durability, EpochStart, FLAG_INCOMPLETE, INCOMPAT_ARRIVING, PAGE, PAGE_U64, Point, RECORD_MAX, Superblock,
};
use crate::log::{GroupBuilder, persist, stored};
use crate::medium::{FileMedium, Medium};
use crate::replay::{Group, GroupReader, Step};
use crate::store::take_writer_lock;

const RECEIVE_MAX: usize = 8 << 20; // at once: small enough that what is applied is still in a cache

/// What a snapshot begins with.
#[derive(Debug, Clone)]
pub struct SnapshotStart {
    /// Bytes of the image.
    pub image_size: u64,
    /// Bytes of the log.
    pub log_size: u64,
    /// Same on every replica.
    pub store_uuid: [u8; 16],
    /// Epoch of the primary.
    pub epoch: u64,
    /// Its history.
    pub history: Vec<EpochStart>,
    /// Where the log begins.
    pub start: Point,
}

/// See the module. Holds the writer's lock.
pub struct Replica<M: Medium> {
    base: Base<M>,
    reader: GroupReader,
    /// End of the bytes in the ring, verified or not.
    received: u64,
    time_ns: u64,
    /// Groups that are whole but not yet durable and applied.
    pending: Vec<Group>,
    failed: Option<String>,
    promoted: bool,
    closed: bool,
}

impl Replica<FileMedium> {
    /// Open the store at `path` and recover it.
    ///
    /// # Errors
    /// As for opening a store for writing; `StoreArriving` for one that has not arrived completely.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, false)
    }

    /// The same, also of a store that has not arrived completely: it can be promoted, and nothing else. A fetcher is
    /// to be at work if it was not closed in order.
    ///
    /// # Errors
    /// As for opening a store for writing.
    pub fn open_arriving(path: &Path) -> Result<Self> {
        Self::open_as(path, true)
    }

    fn open_as(path: &Path, arriving: bool) -> Result<Self> {
        let (m, _) = FileMedium::open(path, true)?;
        take_writer_lock(&m, path)?;
        let (m2, sb) = FileMedium::open(path, true)?;
        drop(m2);
        if sb.incompat & INCOMPAT_ARRIVING != 0 && !arriving {
            return Err(Error::StoreArriving(format!(
                "{} has not arrived completely: it may hold commits that nobody else has, and cannot receive yet",
                path.display()
            )));
        }
        if sb.incompat & INCOMPAT_ARRIVING == 0 {
            m.reserve_holes()?;
        }
        Self::open_on(m, sb, path.display().to_string())
    }

    /// Make a store at `path` that holds no page yet, and begins where the copy it is fetched from ends. It is closed
    /// again; a fetcher and an application may open it.
    ///
    /// # Errors
    /// As for creating a store.
    pub fn create_arriving(
        path: &Path,
        s: &SnapshotStart,
        durability: Option<Durability>,
        limit: Duration,
    ) -> Result<()> {
        let mut sb = Superblock::new(s.store_uuid, s.image_size, s.log_size, Durability::Memory, s.epoch)?;
        sb.replica_uuid = random16()?;
        sb.history.clone_from(&s.history);
        sb.tail = s.start;
        sb.incompat = INCOMPAT_ARRIVING;
        sb.created_ns = crate::control::realtime_coarse_ns();
        let shown = path.display();
        let io = |e| Error::io(format!("create {shown}"), e);
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(io(std::io::Error::from_raw_os_error(libc::EEXIST)));
        }
        // Under another name until all is in place: no crash leaves a store without the file that belongs to it.
        let mut draft = path.as_os_str().to_owned();
        draft.push(".draft");
        let draft = PathBuf::from(draft);
        for stale in [&draft, &crate::arrival::path_beside(path)] {
            match std::fs::remove_file(stale) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
                _ => {}
            }
        }
        let m = FileMedium::create(&draft, &mut sb, durability)?;
        let made = Arrival::create(path, &sb, limit).and_then(|a| {
            Base::format(&m, &mut sb)?;
            // Unlike a rename, a link does not replace a store that came there meanwhile.
            std::fs::hard_link(&draft, path).map_err(io)?;
            Ok(a)
        });
        let _ = std::fs::remove_file(&draft); // the store has its own name now, or is of no use
        let a = made.inspect_err(|_| drop(std::fs::remove_file(crate::arrival::path_beside(path))))?;
        a.sync()
    }

    /// Make a new, incomplete store at `path` for a snapshot; whatever incomplete one was there goes.
    ///
    /// # Errors
    /// As for creating a store.
    pub fn create(path: &Path, s: &SnapshotStart, durability: Option<Durability>) -> Result<Self> {
        let mut sb = Superblock::new(s.store_uuid, s.image_size, s.log_size, Durability::Memory, s.epoch)?;
        sb.replica_uuid = random16()?;
        sb.history.clone_from(&s.history);
        sb.tail = s.start;
        sb.flags = FLAG_INCOMPLETE;
        sb.created_ns = crate::control::realtime_coarse_ns();
        let m = FileMedium::create(path, &mut sb, durability)?;
        Base::format(&m, &mut sb)?;
        take_writer_lock(&m, path)?;
        Self::open_on(m, sb, path.display().to_string())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.base.m.path().to_owned()
    }
}

/// Sixteen random bytes, as a version 4 UUID.
///
/// # Errors
/// The system has none.
pub fn random16() -> Result<[u8; 16]> {
    let mut b = [0u8; 16];
    // SAFETY: fills the buffer.
    if unsafe { libc::getrandom(b.as_mut_ptr().cast(), 16, 0) } != 16 {
        return Err(Error::last_os("ask for random bytes"));
    }
    b[6] = b[6] & 0x0F | 0x40;
    b[8] = b[8] & 0x3F | 0x80;
    Ok(b)
}

impl<M: Medium> Replica<M> {
    /// Over a mapped store.
    ///
    /// # Errors
    /// As for opening a store for writing.
    pub fn open_on(m: M, sb: Superblock, name: String) -> Result<Self> {
        let (base, found) = Base::open(m, sb, name, true)?;
        base.m.stage().map_err(|e| Error::io(format!("get memory for the log of {}", base.name), e))?;
        base.control.set_writer(Holder::Receiver);
        let reader = GroupReader::new(base.sb.crc_seed(), base.sb.image_size, base.applied, base.log_epoch);
        let received = base.applied.lsn;
        Ok(Self {
            base,
            reader,
            received,
            time_ns: found.time_ns,
            pending: Vec::new(),
            failed: None,
            promoted: false,
            closed: false,
        })
    }

    fn ready(&self) -> Result<()> {
        if self.closed {
            return Err(Error::StoreClosed(format!("{} is closed", self.base.name)));
        }
        match &self.failed {
            None => Ok(()),
            Some(why) => {
                Err(Error::StorePoisoned(format!("{}: takes nothing after a failure: {why}", self.base.name)))
            }
        }
    }

    fn fail<T>(&mut self, r: Result<T>) -> Result<T> {
        if let Err(e) = &r {
            self.failed.get_or_insert_with(|| e.to_string());
            self.base.control.set(word::POISONED, 1);
        }
        r
    }

    /// The superblock.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.base.sb
    }

    /// The control words.
    #[must_use]
    pub fn control(&self) -> Control {
        self.base.control
    }

    /// End of the last complete, durable, applied group.
    #[must_use]
    pub fn end(&self) -> Point {
        self.base.applied
    }

    /// Newest epoch this replica has seen.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.base.sb.epoch
    }

    /// Commit time of the newest group, ns since 1970; 0: none since it was opened.
    #[must_use]
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// Make a newer epoch durable.
    ///
    /// # Errors
    /// `StoreFenced` for an older one.
    pub fn set_epoch(&mut self, epoch: u64) -> Result<()> {
        self.ready()?;
        if epoch < self.base.sb.epoch {
            return Err(Error::StoreFenced(format!(
                "{}: epoch {epoch} is older than {}, which this replica has seen",
                self.base.name, self.base.sb.epoch
            )));
        }
        if epoch > self.base.sb.epoch {
            self.base.sb.epoch = epoch;
            let r = self.base.write_superblock();
            self.fail(r)?;
            self.base.control.raise(word::FENCE_EPOCH, epoch);
        }
        Ok(())
    }

    /// Room behind what was received: pointer and length, at most `want` bytes.
    ///
    /// # Errors
    /// `StorePoisoned`; `StoreCorrupt` when a group does not fit into the log.
    pub fn buffer(&mut self, want: usize) -> Result<(*mut u8, usize)> {
        self.ready()?;
        let used = self.received - self.base.sb.tail.lsn;
        if used + want as u64 > self.base.sb.log_size {
            self.trim()?;
        }
        let free = self.base.sb.log_size - (self.received - self.base.sb.tail.lsn);
        let len = (want as u64).min(free) as usize;
        if len == 0 {
            return Err(Error::LogTooSmall(format!(
                "{}: one commit of the primary is larger than the log here",
                self.base.name
            )));
        }
        Ok((self.base.m.mapping().staged_at(self.received), len))
    }

    fn trim(&mut self) -> Result<()> {
        let want = self.received.saturating_sub(self.base.sb.log_size / 2);
        // What a receiver holds nobody else needs: no floor counts, also not one that is left from when this host shipped.
        let target = self.base.trim_target(want.min(self.base.applied.lsn), u64::MAX);
        if let Some(p) = target.filter(|p| p.lsn > self.base.sb.tail.lsn) {
            let r = self
                .base
                .m
                .persist_all()
                .map_err(|e| Error::io(format!("flush the image of {}", self.base.name), e))
                .and_then(|()| self.base.trim(p));
            self.fail(r)?;
        }
        Ok(())
    }

    /// `len` bytes more lie behind what was received: verify them, and take in every group that is whole.
    ///
    /// # Errors
    /// `StoreCorrupt` for bytes that are no continuation of this log: everything since the last whole group is then
    /// forgotten. An I/O error poisons.
    pub fn advance(&mut self, len: usize) -> Result<Point> {
        self.ready()?;
        let from = self.reader.at();
        self.received += len as u64;
        let have = (self.received - from) as usize;
        let ring = self.base.m.mapping().staged_at(from);
        // SAFETY: bytes behind the published end of the ring, which only the holder of this replica touches.
        let bytes = unsafe { std::slice::from_raw_parts(ring.cast_const(), have) };
        let mut at = 0;
        let bad = loop {
            match self.reader.step(&bytes[at..]) {
                Step::Record(n) => at += n,
                Step::Group(n, g) => {
                    at += n;
                    self.pending.push(g);
                }
                // A record header that can be read has a length that fits: more bytes will decide.
                Step::NeedMore => break None,
                Step::Bad(why) => break Some((self.reader.at(), why)),
            }
            debug_assert!(at <= have);
        };
        self.publish()?;
        if let Some((lsn, why)) = bad {
            self.discard_partial();
            return Err(Error::corrupt(format!(
                "{}: what arrived for {lsn} is wrong: {why}",
                self.base.name
            )));
        }
        Ok(self.base.applied)
    }

    /// Take in `data`, as [`Replica::buffer`] and [`Replica::advance`] do piece by piece.
    ///
    /// # Errors
    /// As for these.
    pub fn receive(&mut self, mut data: &[u8]) -> Result<Point> {
        while !data.is_empty() {
            let (room, len) = self.buffer(data.len().min(RECEIVE_MAX))?;
            crate::medium::touch(room, len, true);
            // SAFETY: `buffer` gives `len` bytes of room, which only the holder of this replica touches.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), room, len) };
            self.advance(len)?;
            data = &data[len..];
        }
        Ok(self.base.applied)
    }

    /// Make whole groups durable, apply them, count them.
    fn publish(&mut self) -> Result<()> {
        let Some(last) = self.pending.last().copied() else { return Ok(()) };
        let start = self.base.applied.lsn;
        stored(&self.base.m, start, last.end.lsn);
        self.base.control.set(word::APPENDED, last.end.lsn);
        let r = persist(&self.base.m, start, last.end.lsn)
            .map_err(|e| Error::io(format!("flush the log of {}", self.base.name), e));
        self.fail(r)?;
        self.base.control.set(word::COMMIT_TIME_NS, last.time_ns);
        self.base.publish(last.end);
        let mut new_epoch = false;
        for g in std::mem::take(&mut self.pending) {
            self.base.note_group(&g);
            new_epoch |= g.opens_epoch;
            self.base.mark(g.end);
        }
        self.time_ns = last.time_ns;
        if new_epoch {
            let r = self.base.write_superblock();
            self.fail(r)?;
        }
        let c = self.base.control;
        c.raise(word::FENCE_EPOCH, self.base.sb.epoch);
        c.wake_commit();
        Ok(())
    }

    /// Forget what arrived since the last whole group (the connection is gone).
    pub fn discard_partial(&mut self) {
        self.reader.discard_partial();
        self.received = self.base.applied.lsn;
    }

    /// What the primary says of itself.
    pub fn note_primary(&self, committed: u64, time_ns: u64) {
        let c = self.base.control;
        c.set(word::PRIMARY_COMMITTED, committed);
        c.set(word::PRIMARY_TIME_NS, time_ns);
        c.set(word::PRIMARY_HEARD_NS, boottime_ns());
    }

    /// Pages of a snapshot, and their [`page_sums`], where the caller has them already.
    ///
    /// # Errors
    /// `InvalidArgument` when the store is complete or the pages are outside.
    pub fn write_pages(&mut self, first: u64, data: &[u8], sums: Option<&[u8]>) -> Result<()> {
        self.ready()?;
        let pages = (data.len() / PAGE) as u64;
        let outside = first.checked_add(pages).is_none_or(|end| end > self.base.sb.pages());
        let odd = data.len() % PAGE != 0 || sums.is_some_and(|s| s.len() as u64 != pages * 8);
        if self.base.sb.flags & FLAG_INCOMPLETE == 0 || odd || outside {
            return Err(Error::InvalidArgument(format!("{}: no such pages of a snapshot", self.base.name)));
        }
        // Sums are of what arrived; words that the log changes later carry sums of their own.
        let made;
        let sums = match sums {
            Some(s) => s,
            None => {
                made = page_sums(first, data);
                &made
            }
        };
        let (m, sb) = (&self.base.m, &self.base.sb);
        let r = m
            .store_new(sb.image_offset + first * PAGE_U64, data)
            .and_then(|()| m.store_new(sb.sums_offset + first * 8, sums))
            .map_err(|e| Error::io(format!("write pages of {}", self.base.name), e));
        self.fail(r)
    }

    /// Digests of pages.
    ///
    /// # Errors
    /// `InvalidArgument` outside of the image.
    pub fn digests(&self, first: u64, pages: u64) -> Result<Vec<u8>> {
        let (p, len) = crate::tail::image_pages(self.base.m.mapping(), &self.base.sb, first, pages)?;
        Ok(crate::tail::digests(p, len))
    }

    /// The snapshot is complete: check every page, make all durable, drop the flag.
    ///
    /// # Errors
    /// `StoreCorrupt`, or what the medium said.
    pub fn finish_snapshot(&mut self) -> Result<()> {
        self.ready()?;
        self.base.check_image()?;
        let r = self.base.m.persist_all().map_err(|e| Error::io(format!("flush {}", self.base.name), e));
        self.fail(r)?;
        self.base.sb.flags &= !FLAG_INCOMPLETE;
        let applied = self.base.applied;
        let r = self.base.trim(applied);
        self.fail(r)
    }

    /// Log bytes that are still in the ring.
    ///
    /// # Errors
    /// `InvalidArgument` when they are not.
    pub fn read_log(&self, lsn: u64, len: u64) -> Result<Vec<u8>> {
        let end = lsn.saturating_add(len);
        if lsn < self.base.sb.tail.lsn || end > self.base.applied.lsn {
            return Err(Error::InvalidArgument(format!(
                "{}: the log holds {}..{}, not {lsn}..{end}",
                self.base.name, self.base.sb.tail.lsn, self.base.applied.lsn
            )));
        }
        let mut out = vec![0u8; len as usize];
        // SAFETY: at most a ring's length, from any position.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.m.mapping().ring_at(lsn), out.as_mut_ptr(), out.len());
        }
        Ok(out)
    }

    /// Open `epoch` here: this replica becomes the primary's store. Where the epoch begins.
    ///
    /// # Errors
    /// `StoreFenced` unless `epoch` is newer than all seen; what the medium said.
    pub fn promote(&mut self, epoch: u64) -> Result<u64> {
        self.ready()?;
        self.discard_partial();
        let seen = self.base.sb.epoch.max(self.base.control.get(word::FENCE_EPOCH));
        if epoch < seen || epoch <= self.base.log_epoch {
            return Err(Error::StoreFenced(format!(
                "{}: epoch {epoch} cannot begin, {seen} has been seen",
                self.base.name
            )));
        }
        if self.base.sb.flags & FLAG_INCOMPLETE != 0 {
            return Err(Error::StoreUntrusted(format!("{}: its snapshot is not complete", self.base.name)));
        }
        if self.base.sb.log_size - (self.received - self.base.sb.tail.lsn) < RECORD_MAX as u64 {
            let applied = self.base.applied;
            let r = self
                .base
                .m
                .persist_all()
                .map_err(|e| Error::io(format!("flush the image of {}", self.base.name), e))
                .and_then(|()| self.base.trim(applied));
            self.fail(r)?;
        }
        let after = self.base.applied;
        let previous = self.base.log_epoch;
        let limit = self.base.sb.tail.lsn + self.base.sb.log_size;
        let seed = self.base.sb.crc_seed();
        let mut b = GroupBuilder::new(self.base.m.mapping(), seed, epoch, after.lsn, limit);
        let too_small = |_| Error::LogTooSmall(format!("{}: no room to open an epoch", self.base.name));
        b.epoch(previous, &self.base.sb.replica_uuid).map_err(too_small)?;
        let time_ns = crate::control::realtime_coarse_ns();
        let end = b.commit(after, time_ns, after.lsn);
        self.base.sb.epoch = epoch;
        let r = self.base.write_superblock();
        self.fail(r)?;
        self.pending.push(Group { start: after.lsn, end, epoch, opens_epoch: true, time_ns });
        self.publish()?;
        self.reader = GroupReader::new(seed, self.base.sb.image_size, end, epoch);
        self.received = end.lsn;
        self.promoted = true;
        Ok(after.lsn)
    }

    /// Make the image durable and trim the log.
    ///
    /// # Errors
    /// What the medium said.
    pub fn checkpoint(&mut self) -> Result<u64> {
        self.ready()?;
        self.trim()?;
        Ok(self.base.sb.tail.lsn)
    }

    /// Close. In order, unless the replica was just promoted: then the command opens it at once, and flushing a
    /// whole image first would only make it wait; recovery from the log does the same for less.
    ///
    /// # Errors
    /// What the medium said.
    pub fn close(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        self.closed = true;
        self.discard_partial();
        self.base.control.set_writer(Holder::None);
        let closed = if self.failed.is_none() && !self.promoted { self.base.close() } else { Ok(()) };
        // At once, not when the last reference goes: the file is opened again, here or by an application.
        Lock::Writer.release(self.base.m.mapping().file());
        closed
    }
}
