//! What the writer and the receiver of a store have in common: superblock, recovery, application, trimming.
//!
//! The order that everything here keeps: log before image (a group reaches the image only after its log bytes are
//! durable), the log is trimmed last (the superblock that moves the tail is written only after the image is durable
//! up to there, and the words that free the space only after the superblock is).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::checksum::{crc, page_sum};
use crate::control::{Control, Lock, UNKNOWN, word};
use crate::copy::settle;
use crate::error::{Error, Result};
use crate::format::{
    COMMIT_RECORD, CommitPayload, Durability, EpochStart, FLAG_CLEAN, FLAG_RECEIVED, INCOMPAT_ARRIVING, PAGE,
    PAGE_U64, Point, RECORD_HEADER, RecordHeader, SUPERBLOCK_SIZE, Superblock, kind,
};
use crate::medium::Medium;
use crate::replay::{Group, GroupReader, Step, Target, apply};

const CHECK_THREADS: usize = 4; // memory has no more to give
const CHECK_PAGES: u64 = 4096; // at a time, for each of them

/// See the module.
pub struct Base<M: Medium> {
    /// The medium.
    pub m: M,
    /// Its control words.
    pub control: Control,
    /// The superblock as last written, or about to be.
    pub sb: Superblock,
    /// End of the log as applied to the image.
    pub applied: Point,
    /// Epoch of the newest group in the log.
    pub log_epoch: u64,
    /// Group boundaries every so often, so that the tail can move to one without reading the log.
    marks: VecDeque<Point>,
    mark_step: u64,
    /// Nobody here reads soon what is applied: this is a replica.
    unread: bool,
    /// This boot.
    pub boot: [u8; 16],
    /// What errors call this store.
    pub name: String,
}

/// Applies groups to the shared image.
pub struct ImageTarget<'a, M: Medium> {
    m: &'a M,
    image: u64,
    sums: u64,
    unread: bool,
}

impl<M: Medium> Target for ImageTarget<'_, M> {
    #[inline]
    fn range(&mut self, offset: u64, data: &[u8], sum: u64) {
        if self.unread && data.len() == PAGE {
            self.m.store_page(self.image + offset, data);
        } else {
            self.m.store(self.image + offset, data);
        }
        self.m.store(self.sums + offset / PAGE_U64 * 8, &sum.to_le_bytes());
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let sums = (self.sums + offset / PAGE_U64 * 8, len / PAGE_U64 * 8);
        for (at, len) in [(self.image + offset, len), sums] {
            // SAFETY: `at` checks the bounds; ordered by the writer's lock.
            unsafe { std::ptr::write_bytes(self.m.mapping().at(at, len), 0, len as usize) };
            self.m.stored(at, len);
        }
    }
}

/// What recovery found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// Log bytes that were replayed.
    pub replayed_bytes: u64,
    /// Groups that were replayed.
    pub groups: u64,
    /// Commit time of the newest group, 0 when there is none.
    pub time_ns: u64,
}

/// What a walk through the log of a store found, before anything is changed.
#[derive(Debug, Clone)]
pub struct LogWalk {
    /// End of the last whole group.
    pub end: Point,
    /// Its epoch.
    pub epoch: u64,
    /// Number of groups.
    pub groups: u64,
    /// Commit time of the last.
    pub time_ns: u64,
    /// Epochs that begin in the walked part.
    pub epochs: Vec<EpochStart>,
    /// Some boundaries.
    pub marks: VecDeque<Point>,
    /// Why it stopped, in words.
    pub stop: &'static str,
}

/// Where the store was closed in order, if nothing was written after it. A superblock that says "closed" may be the
/// older one, and the newer one damaged: then records follow, and the log has to be read.
fn closed_at<M: Medium>(m: &M, sb: &Superblock) -> Option<Point> {
    let end = crate::tail::point_at(m.mapping(), sb, sb.end_lsn)?;
    let epoch = epoch_before(&sb.history, end.lsn, sb.epoch);
    let left = sb.log_size.checked_sub(end.lsn.checked_sub(sb.tail.lsn)?)?;
    // SAFETY: the caller holds the writer's lock, so the log stands still; `left` is at most a ring's length.
    let bytes = unsafe { std::slice::from_raw_parts(m.mapping().ring_at(end.lsn), left as usize) };
    match GroupReader::new(sb.crc_seed(), sb.image_size, end, epoch).step(bytes) {
        Step::Record(_) | Step::Group(..) => None,
        Step::NeedMore | Step::Bad(_) => Some(end),
    }
}

impl LogWalk {
    /// Of a store that was closed in order at `end`.
    fn nothing_to_do(sb: &Superblock, end: Point) -> Self {
        Self {
            end,
            epoch: epoch_before(&sb.history, end.lsn, sb.epoch),
            groups: 0,
            time_ns: 0,
            epochs: Vec::new(),
            marks: if end.lsn > sb.tail.lsn { VecDeque::from([sb.tail, end]) } else { VecDeque::from([end]) },
            stop: "closed",
        }
    }
}

/// The epoch that is current just before `lsn`.
#[must_use]
pub fn epoch_before(history: &[EpochStart], lsn: u64, fallback: u64) -> u64 {
    let first = history.first().map_or(fallback, |h| h.epoch);
    history.iter().rev().find(|h| h.start < lsn).map_or(first, |h| h.epoch)
}

/// Walk the whole groups from the tail on, verifying all, changing nothing.
///
/// # Errors
/// `StoreCorrupt` when something is missing that had been durable.
pub fn walk_log<M: Medium>(m: &M, sb: &Superblock, control_committed: Option<u64>) -> Result<LogWalk> {
    let ring = m.mapping().log_size();
    let limit = sb.tail.lsn + ring;
    let epoch = epoch_before(&sb.history, sb.tail.lsn, sb.epoch);
    let mut reader = GroupReader::new(sb.crc_seed(), sb.image_size, sb.tail, epoch);
    let mut w = LogWalk {
        end: sb.tail,
        epoch,
        groups: 0,
        time_ns: 0,
        epochs: Vec::new(),
        marks: VecDeque::from([sb.tail]),
        stop: "end of the ring",
    };
    // SAFETY: the caller holds the writer's lock (or reads a store that nobody writes), so the log stands still;
    // every whole ring's length from any position is mapped.
    let bytes = unsafe { std::slice::from_raw_parts(m.mapping().ring_at(sb.tail.lsn), ring as usize) };
    let mark_step = ring / 64;
    while reader.at() < limit {
        match reader.step(&bytes[(reader.at() - sb.tail.lsn) as usize..]) {
            Step::Record(_) => {}
            Step::Group(_, g) => {
                w.end = g.end;
                w.epoch = g.epoch;
                w.groups += 1;
                w.time_ns = g.time_ns;
                if g.opens_epoch {
                    w.epochs.push(EpochStart { epoch: g.epoch, start: g.start });
                }
                if w.marks.back().is_none_or(|p| g.end.lsn - p.lsn >= mark_step) {
                    w.marks.push_back(g.end);
                }
            }
            Step::NeedMore => {
                w.stop = "a record that reaches past the ring";
                break;
            }
            Step::Bad(why) => {
                w.stop = why;
                break;
            }
        }
    }
    let end = w.end.lsn;
    if sb.flags & FLAG_CLEAN != 0 {
        if end != sb.end_lsn {
            return Err(Error::corrupt(format!(
                "the log ends at {end} ({}), but the store was closed at {}",
                w.stop, sb.end_lsn
            )));
        }
        return Ok(w);
    }
    if let Some(committed) = control_committed
        && committed > end
    {
        return Err(Error::corrupt(format!(
            "the log ends at {end} ({}), but {committed} had been committed",
            w.stop
        )));
    }
    if end < sb.end_lsn {
        return Err(Error::corrupt(format!(
            "the log ends at {end} ({}), but it had been durable up to {}",
            w.stop, sb.end_lsn
        )));
    }
    if sb.flags & FLAG_RECEIVED == 0
        && let Some(at) = proof_of_damage(bytes, sb, &w)
    {
        return Err(Error::corrupt(format!(
            "the log is damaged at {end} ({}): a later commit at {at} shows that it had been durable",
            w.stop
        )));
    }
    Ok(w)
}

/// A commit record behind the end that proves that what is missing had been durable; see `docs/formats/store.md`.
fn proof_of_damage(bytes: &[u8], sb: &Superblock, w: &LogWalk) -> Option<u64> {
    let first = (w.end.lsn - sb.tail.lsn) as usize;
    let mut at = first;
    while at + COMMIT_RECORD <= bytes.len() {
        let lsn = sb.tail.lsn + at as u64;
        let here = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().expect("eight bytes"));
        if here == lsn {
            let h = RecordHeader::read(bytes[at..].first_chunk().expect("a header fits"));
            if h.plausible(lsn) && h.kind == kind::COMMIT && h.epoch >= w.epoch {
                let record = &bytes[at..at + COMMIT_RECORD];
                let c = CommitPayload::read(&record[RECORD_HEADER..]);
                let valid = crc(crc(sb.crc_seed(), &record[..28]), &record[RECORD_HEADER..]) == h.crc;
                if valid && c.durable_before > w.end.lsn {
                    return Some(lsn);
                }
            }
        }
        at += 8;
    }
    None
}

impl<M: Medium> Base<M> {
    /// Write a new store's first superblocks and make all durable.
    ///
    /// # Errors
    /// What the medium said.
    pub fn format(m: &M, sb: &mut Superblock) -> Result<()> {
        sb.boot_id = crate::control::boot_id();
        sb.flags |= FLAG_CLEAN;
        sb.end_lsn = sb.tail.lsn;
        for sequence in [1, 2] {
            sb.sequence = sequence;
            m.store(sequence % 2 * SUPERBLOCK_SIZE as u64, &sb.encode());
        }
        m.persist(0, 2 * SUPERBLOCK_SIZE as u64).map_err(|e| Error::io("flush the superblocks", e))?;
        m.settle_all().map_err(|e| Error::io("flush the new store", e))
    }

    /// Take over a mapped store for writing: check, recover, mark as open. The writer's lock is already held. A
    /// `receiver` may also have a store whose snapshot is not complete.
    ///
    /// # Errors
    /// `StoreUntrusted`, `StoreCorrupt`, or what the medium said.
    pub fn open(m: M, sb: Superblock, name: String, receiver: bool) -> Result<(Self, Recovery)> {
        let boot = crate::control::boot_id();
        let control = Control::of(m.mapping());
        if sb.flags & crate::format::FLAG_INCOMPLETE != 0 && !receiver {
            return Err(Error::StoreUntrusted(format!(
                "{name}: a snapshot was being received and is not complete"
            )));
        }
        let clean = sb.flags & FLAG_CLEAN != 0;
        if sb.durability == Durability::Memory && !clean && sb.boot_id != boot {
            return Err(Error::StoreUntrusted(format!(
                "{name}: a \"memory\" store that was not closed before its host stopped; parts may be missing"
            )));
        }
        let same_boot = control.current(&boot) && sb.boot_id == boot;
        let committed = (same_boot && !clean).then(|| control.get(word::COMMITTED));
        let named = |e: Error| match e {
            Error::StoreCorrupt(what) => Error::StoreCorrupt(format!("{name}: {what}")),
            e => e,
        };
        // Closed in order: the image holds everything, and the log need not be read at all.
        let closed = if clean { closed_at(&m, &sb) } else { None };
        let walk = match closed {
            Some(end) => LogWalk::nothing_to_do(&sb, end),
            None => {
                let walk = walk_log(&m, &sb, committed).map_err(named)?;
                // Closed at the end that the log has, with what was left of an unfinished group behind it. Then, too,
                // nothing is replayed: a crash amid that would leave a file that says it is closed.
                if clean { LogWalk::nothing_to_do(&sb, walk.end) } else { walk }
            }
        };
        let replay_from = if clean { walk.end.lsn } else { sb.tail.lsn };
        let mark_step = sb.log_size / 64;
        let mut base = Self {
            control,
            applied: sb.tail,
            log_epoch: walk.epoch,
            marks: walk.marks,
            mark_step,
            unread: receiver,
            boot,
            name: name.clone(),
            sb,
            m,
        };
        let (start, end) = (base.sb.tail.lsn, walk.end.lsn);
        if let Some(a) = base.m.arrival() {
            // The log brings pages forward; those that have not arrived must come first.
            base.pages_in_log(replay_from, end).into_iter().try_for_each(|page| a.need(page))?;
        }
        let io = |what: &str, e| Error::io(format!("{what} of {name}"), e);
        if end > replay_from {
            // What was found may have been only in a cache, after a flush that failed or never came: make it so.
            crate::log::stored(&base.m, replay_from, end);
            crate::log::persist(&base.m, replay_from, end).map_err(|e| io("flush the log", e))?;
        }
        // Replay takes words of the image back and forth again: readers in other processes must know.
        base.control.claim(&boot);
        base.control.set(word::RECOVERY, base.control.get(word::RECOVERY) | 1);
        let touched = base.replay(replay_from, end);
        base.check_pages(&touched).map_err(named)?;
        base.applied = walk.end;
        // Of the epoch before `start`, not of the last one: the walk may have met newer ones on its way.
        let before = epoch_before(&base.sb.history, start, walk.epoch);
        base.sb.history.retain(|h| h.start < replay_from);
        if base.sb.history.is_empty() {
            base.sb.history.push(EpochStart { epoch: before, start: 0 });
        }
        for e in &walk.epochs {
            base.sb.push_history(e.epoch, e.start);
        }
        base.sb.epoch = base.sb.epoch.max(walk.epoch);
        base.sb.flags &= !(FLAG_CLEAN | FLAG_RECEIVED);
        if receiver {
            base.sb.flags |= FLAG_RECEIVED;
        }
        base.sb.boot_id = boot;
        let at = base.write_superblock()?;
        if clean {
            // Before anything changes: after a power loss nobody may take the file for the closed one that it was.
            base.m.settle(at, SUPERBLOCK_SIZE as u64).map_err(|e| io("flush the superblock", e))?;
        }
        let c = &base.control;
        c.set(word::POISONED, 0);
        for at in [word::APPENDED, word::COMMITTED, word::APPLIED] {
            c.set(at, end);
        }
        c.set(word::TAIL, start);
        c.set(word::COMMIT_SEQ, walk.end.seq);
        if walk.time_ns != 0 {
            c.set(word::COMMIT_TIME_NS, walk.time_ns);
        }
        c.raise(word::FENCE_EPOCH, base.sb.epoch);
        c.set(word::RECOVERY, (c.get(word::RECOVERY) | 1).wrapping_add(1));
        let found =
            Recovery { replayed_bytes: end - replay_from, groups: walk.groups, time_ns: walk.time_ns };
        Ok((base, found))
    }

    /// Where groups go.
    #[inline]
    pub fn target(&self) -> ImageTarget<'_, M> {
        ImageTarget {
            m: &self.m,
            image: self.sb.image_offset,
            sums: self.sb.sums_offset,
            unread: self.unread,
        }
    }

    /// The log is durable up to `to`, the end of a group: say so, then bring the image there.
    ///
    /// In this order, because others copy the image while it changes, or after this process was killed: whatever
    /// they find in it must lie before `COMMITTED`, so that the log up to there puts their copy right.
    #[inline]
    pub fn publish(&mut self, to: Point) {
        let from = self.applied.lsn;
        self.control.set(word::COMMIT_SEQ, to.seq);
        self.control.set(word::COMMITTED, to.lsn);
        // No store to the image may become visible before the word, and none after the next.
        self.order_stores();
        self.apply_log(from, to.lsn);
        self.order_stores();
        self.control.set(word::APPLIED, to.lsn);
        self.applied = to;
    }

    #[inline]
    fn order_stores(&self) {
        if self.unread { settle() } else { fence(Ordering::Release) }
    }

    /// Apply verified log bytes, built or received by us, to the image.
    #[inline]
    fn apply_log(&self, start: u64, end: u64) {
        let from = self.m.mapping().staged_at(start);
        // SAFETY: whole verified groups; the caller holds the writer's lock.
        let bytes = unsafe { std::slice::from_raw_parts(from, (end - start) as usize) };
        apply(bytes, &mut self.target());
    }

    /// The same, noting the pages.
    fn replay(&self, start: u64, end: u64) -> Vec<u64> {
        struct Noting<'a, M: Medium> {
            inner: ImageTarget<'a, M>,
            pages: Vec<u64>,
        }
        impl<M: Medium> Target for Noting<'_, M> {
            fn range(&mut self, offset: u64, data: &[u8], sum: u64) {
                let page = offset / PAGE_U64;
                self.pages[(page / 64) as usize] |= 1 << (page % 64);
                self.inner.range(offset, data, sum);
            }
            fn zero(&mut self, offset: u64, len: u64) {
                self.inner.zero(offset, len);
            }
        }
        let bits = self.sb.pages().div_ceil(64) as usize;
        let mut noting = Noting { inner: self.target(), pages: vec![0; if end > start { bits } else { 0 }] };
        // SAFETY: as `apply_log`.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.m.mapping().ring_at(start), (end - start) as usize) };
        apply(bytes, &mut noting);
        settle();
        noting.pages
    }

    /// The pages that log bytes change.
    fn pages_in_log(&self, start: u64, end: u64) -> std::collections::BTreeSet<u64> {
        struct Pages(std::collections::BTreeSet<u64>);
        impl Target for Pages {
            fn range(&mut self, offset: u64, _: &[u8], _: u64) {
                self.0.insert(offset / PAGE_U64);
            }
            fn zero(&mut self, offset: u64, len: u64) {
                self.0.extend(offset / PAGE_U64..(offset + len) / PAGE_U64);
            }
        }
        let mut pages = Pages(std::collections::BTreeSet::new());
        // SAFETY: as `apply_log`.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.m.mapping().ring_at(start), (end - start) as usize) };
        apply(bytes, &mut pages);
        pages.0
    }

    /// Every page is here and durable: from now on this is a store like any other.
    ///
    /// # Errors
    /// What the medium said.
    pub fn arrived(&mut self) -> Result<()> {
        if self.sb.incompat & INCOMPAT_ARRIVING == 0 {
            return Ok(());
        }
        self.sb.incompat &= !INCOMPAT_ARRIVING;
        let at = self.write_superblock()?;
        self.m
            .settle(at, SUPERBLOCK_SIZE as u64)
            .map_err(|e| Error::io(format!("flush the superblock of {}", self.name), e))?;
        if let Some(a) = self.m.arrival() {
            a.remove();
        }
        Ok(())
    }

    fn check_pages(&self, bitmap: &[u64]) -> Result<()> {
        for (i, bits) in bitmap.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                self.check_page(i as u64 * 64 + u64::from(bits.trailing_zeros()))?;
                bits &= bits - 1;
            }
        }
        Ok(())
    }

    /// Compare an image page with its sum.
    ///
    /// # Errors
    /// `StoreCorrupt`.
    pub fn check_page(&self, page: u64) -> Result<()> {
        check_page(&self.m, &self.sb, page)
    }

    /// Compare all of the image with its sums, on several processors; holes cost nothing but their sums.
    ///
    /// # Errors
    /// `StoreCorrupt`, or what the medium said.
    pub fn check_image(&self) -> Result<()> {
        let pages = self.sb.pages();
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(CHECK_THREADS));
        let threads = threads.min(pages.div_ceil(CHECK_PAGES) as usize).max(1);
        let next = AtomicU64::new(0);
        let (m, sb) = (&self.m, &self.sb);
        let check = || {
            loop {
                let first = next.fetch_add(CHECK_PAGES, Ordering::Relaxed);
                if first >= pages {
                    return Ok(());
                }
                check_range(m, sb, first, CHECK_PAGES.min(pages - first))?;
            }
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(check)).collect();
            let mine = check();
            others.into_iter().map(|t| t.join().expect("a check does not panic")).fold(mine, Result::and)
        })
    }

    /// The sum of a page as the image has it.
    #[inline]
    #[must_use]
    pub fn sum(&self, page: u64) -> u64 {
        let p = self.m.mapping().at(self.sb.sums_offset + page * 8, 8);
        // SAFETY: one aligned word of the sums.
        u64::from_le(unsafe { p.cast::<u64>().read() })
    }

    /// Pointer to an image page.
    #[inline]
    #[must_use]
    pub fn image_page(&self, page: u64) -> *const u8 {
        self.m.mapping().at(self.sb.image_offset + page * PAGE_U64, PAGE_U64)
    }

    /// Write the superblock to the older copy and make it durable; where it lies.
    ///
    /// # Errors
    /// What the medium said.
    pub fn write_superblock(&mut self) -> Result<u64> {
        self.sb.sequence += 1;
        // What is applied had been made durable in the log before.
        self.sb.end_lsn = self.applied.lsn;
        let offset = self.sb.sequence % 2 * SUPERBLOCK_SIZE as u64;
        self.m.store(offset, &self.sb.encode());
        self.m
            .persist(offset, SUPERBLOCK_SIZE as u64)
            .map_err(|e| Error::io(format!("flush the superblock of {}", self.name), e))?;
        Ok(offset)
    }

    /// A group was applied: it may become the tail one day.
    #[inline]
    pub fn mark(&mut self, p: Point) {
        if self.marks.back().is_none_or(|m| p.lsn - m.lsn >= self.mark_step) {
            self.marks.push_back(p);
        }
    }

    /// The newest boundary at or before `lsn` that is known, if it is newer than the tail.
    fn mark_before(&self, lsn: u64) -> Option<Point> {
        self.marks.iter().rev().copied().find(|p| p.lsn <= lsn && p.lsn > self.sb.tail.lsn)
    }

    /// Least LSN that others still need. What a shipper had pinned for a snapshot to a destination that is not required
    /// counts only while that shipper lives: nobody else would let go of it.
    #[must_use]
    pub fn floor(&self) -> u64 {
        let floor = self.control.get(word::FLOOR);
        let required = self.control.get(word::REQUIRED_FLOOR); // 0: nobody has said
        // Asking for a lock is a call: only where it makes a difference.
        if floor == required || required == 0 || floor == UNKNOWN {
            return floor;
        }
        match Lock::Shipper.is_taken(self.m.mapping().file()) {
            Ok(false) => required,
            _ => floor,
        }
    }

    /// Where the tail could go so that half the log is free: not past `applied`, nor past `floor`, which others need.
    /// `None`: nowhere.
    #[must_use]
    pub fn trim_target(&self, at_least: u64, floor: u64) -> Option<Point> {
        let may = self.applied.lsn.min(floor);
        let want = (self.applied.lsn.saturating_sub(self.sb.log_size / 2)).max(at_least);
        if may >= self.applied.lsn
            && want + self.mark_step >= self.applied.lsn
            && self.applied.lsn > self.sb.tail.lsn
        {
            return Some(self.applied);
        }
        // The first mark that frees what is wanted, else the newest that is allowed.
        self.marks
            .iter()
            .copied()
            .find(|p| p.lsn >= want && p.lsn <= may && p.lsn > self.sb.tail.lsn)
            .or_else(|| self.mark_before(may))
    }

    /// Move the tail to `p`. The image is durable up to there.
    ///
    /// # Errors
    /// What the medium said.
    pub fn trim(&mut self, p: Point) -> Result<()> {
        debug_assert!(p.lsn >= self.sb.tail.lsn && p.lsn <= self.applied.lsn);
        self.sb.tail = p;
        self.write_superblock()?;
        while self.marks.front().is_some_and(|m| m.lsn < p.lsn) {
            self.marks.pop_front();
        }
        self.control.set(word::TAIL, p.lsn);
        Ok(())
    }

    /// Close in order: everything durable, marked as clean.
    ///
    /// # Errors
    /// What the medium said.
    pub fn close(&mut self) -> Result<()> {
        self.m.settle_all().map_err(|e| Error::io(format!("flush {}", self.name), e))?;
        self.sb.flags |= FLAG_CLEAN;
        // The image is durable up to `applied`; the log before stays as long as there is room, for those who resume.
        let at = self.write_superblock()?;
        self.m
            .settle(at, SUPERBLOCK_SIZE as u64)
            .map_err(|e| Error::io(format!("flush the superblock of {}", self.name), e))
    }

    /// Note a group that was applied.
    pub fn note_group(&mut self, g: &Group) {
        self.log_epoch = g.epoch;
        if g.opens_epoch {
            self.sb.push_history(g.epoch, g.start);
            self.sb.epoch = self.sb.epoch.max(g.epoch);
        }
    }
}

/// Compare `count` pages from `first` on with their sums; not those in holes whose sum is 0.
fn check_range<M: Medium>(m: &M, sb: &Superblock, first: u64, count: u64) -> Result<()> {
    let io = |e| Error::io("read the image back", e);
    let mut sums = vec![0u8; count as usize * 8];
    m.load(sb.sums_offset + first * 8, &mut sums).map_err(io)?;
    let want = |page: u64| {
        let at = (page - first) as usize * 8;
        u64::from_le_bytes(sums[at..at + 8].try_into().expect("eight bytes"))
    };
    let at = |page: u64| sb.image_offset + page * PAGE_U64;
    let check = |pages: Range<u64>| {
        let start = m.mapping().at(at(pages.start), (pages.end - pages.start) * PAGE_U64);
        crate::medium::touch(start, (pages.end - pages.start) as usize * PAGE, false);
        for page in pages {
            check_page(m, sb, page)?;
        }
        Ok(())
    };
    let (mut page, end) = (first, first + count);
    while page < end {
        let zero = want(page) == 0;
        let same = (page..end).find(|p| (want(*p) == 0) != zero).unwrap_or(end);
        // Of pages that should be zero, those in holes are.
        let data = if zero { m.next_data(at(page)..at(same)).map_err(io)? } else { Some(at(page)..at(same)) };
        let Some(data) = data else {
            page = same;
            continue;
        };
        let page_of = |offset: u64| offset - sb.image_offset;
        let data = page_of(data.start) / PAGE_U64..page_of(data.end).div_ceil(PAGE_U64);
        page = data.end;
        check(data)?;
    }
    Ok(())
}

/// Compare an image page with its sum.
///
/// # Errors
/// `StoreCorrupt`.
pub fn check_page<M: Medium>(m: &M, sb: &Superblock, page: u64) -> Result<()> {
    let p = m.mapping().at(sb.image_offset + page * PAGE_U64, PAGE_U64);
    let s = m.mapping().at(sb.sums_offset + page * 8, 8);
    // SAFETY: a whole page of the image and its word of the sums, both mapped and aligned.
    let (sum, want) = unsafe { (page_sum(page, p), u64::from_le(s.cast::<u64>().read())) };
    if sum == want {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "image page {page} (file offset {:#x}) does not match its sum",
        sb.image_offset + page * PAGE_U64
    )))
}
