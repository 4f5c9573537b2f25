//! A store seen by a process that does not write it: a private copy of the committed image, moved forward by the log.
//!
//! The writer changes the image in place while we copy it, but every such change is in the log: a copy that began
//! when the image held everything up to *A*, with the log from *A* to *E* applied on top, is exactly the state at
//! *E*. A mapping that follows the image lazily was rejected: it would show half of a commit.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::base::{epoch_before, walk_log};
use crate::checksum::page_sum;
use crate::control::{Control, Lock, boot_id, word};
use crate::error::{Error, Result};
use crate::format::{FLAG_CLEAN, FLAG_INCOMPLETE, INCOMPAT_ARRIVING, PAGE, PAGE_U64, Point, Superblock};
use crate::medium::{Anonymous, Medium};
use crate::replay::{GroupReader, Step, Target, apply};
use crate::work::Work;

/// See the module.
pub(super) struct Reader<M: Medium> {
    m: Arc<M>,
    control: Control,
    sb: Superblock,
    image: Anonymous,
    sums: Anonymous,
    position: Point,
    epoch: u64,
    name: String,
}

/// How often a copy is begun again because the writer lapped it.
const ATTEMPTS: usize = 20;

/// The copy that groups are applied to.
struct Copy {
    image: *mut u8,
    sums: *mut u64,
}

impl Target for Copy {
    fn range(&mut self, offset: u64, data: &[u8], sum: u64) {
        // SAFETY: verified groups only name ranges inside the image; the copy is as large.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.image.add(offset as usize), data.len());
            self.sums.add((offset / PAGE_U64) as usize).write(sum.to_le());
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        // SAFETY: as above.
        unsafe {
            std::ptr::write_bytes(self.image.add(offset as usize), 0, len as usize);
            std::ptr::write_bytes(self.sums.add((offset / PAGE_U64) as usize), 0, (len / PAGE_U64) as usize);
        }
    }
}

/// The writer was faster than we.
struct Lapped;

impl<M: Medium> Reader<M> {
    pub(super) fn new(m: Arc<M>, sb: Superblock, name: String) -> Result<Self> {
        if sb.flags & FLAG_INCOMPLETE != 0 {
            return Err(Error::StoreUntrusted(format!(
                "{name}: a snapshot is being received and is not complete"
            )));
        }
        if sb.incompat & INCOMPAT_ARRIVING != 0 {
            return Err(Error::StoreArriving(format!(
                "{name} has not arrived completely: a reader would need all of it"
            )));
        }
        let image = Anonymous::new(sb.image_size as usize)?;
        let sums = Anonymous::new(sb.pages() as usize * 8)?;
        let control = Control::of(m.mapping());
        let epoch = sb.epoch;
        let mut r = Self { m, control, sb, image, sums, position: Point::default(), epoch, name };
        r.copy()?;
        Ok(r)
    }

    pub(super) fn position(&self) -> Point {
        self.position
    }

    pub(super) fn superblock(&self) -> &Superblock {
        &self.sb
    }

    pub(super) fn work(&self) -> Work {
        // SAFETY: both copies live as long as the reader, which outlives the view in `Inner`.
        unsafe { Work::new(self.image.base(), self.sb.image_size, self.sums.base().cast(), false) }
    }

    /// The newest superblock, as the writer has it now.
    fn read_superblock(&self) -> Result<Superblock> {
        let mut copy = vec![0u8; 8192];
        let p = self.m.mapping().at(0, 8192);
        // SAFETY: both superblocks are mapped; a copy torn by the writer fails its checksum.
        unsafe { std::ptr::copy_nonoverlapping(p, copy.as_mut_ptr(), copy.len()) };
        crate::medium::pick_superblock(&copy)
    }

    /// Whether what looks wrong can be a writer's doing rather than damage: one is at work, or was a moment ago.
    fn may_be_a_race(&self, attempt: usize) -> bool {
        attempt < 3 || Lock::Writer.is_taken(self.m.mapping().file()).unwrap_or(false)
    }

    fn copy(&mut self) -> Result<()> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(1 << attempt.min(7)));
            }
            match self.read_superblock() {
                Ok(sb) => self.sb = sb,
                Err(e) if attempt + 1 == ATTEMPTS => return Err(e),
                Err(_) => continue,
            }
            let boot = boot_id();
            let live =
                self.control.current(&boot) && self.sb.boot_id == boot && self.sb.flags & FLAG_CLEAN == 0;
            let generation = self.control.get(word::RECOVERY);
            let (start, end) = if live && generation % 2 == 0 {
                let applied = self.control.get(word::APPLIED);
                match self.point_at(applied) {
                    Some(p) => (p, None),
                    None if self.may_be_a_race(attempt) => continue,
                    None => {
                        return Err(Error::corrupt(format!(
                            "the log is damaged before {applied}: no commit ends there, and nobody writes"
                        )));
                    }
                }
            } else {
                if self.sb.durability == crate::format::Durability::Memory
                    && self.sb.flags & FLAG_CLEAN == 0
                    && self.sb.boot_id != boot
                {
                    return Err(Error::StoreUntrusted(format!(
                        "{}: a \"memory\" store that was not closed before its host stopped",
                        self.name
                    )));
                }
                match walk_log(&self.m, &self.sb, None) {
                    Ok(w) => (self.sb.tail, Some(w.end.lsn)),
                    Err(_) if self.may_be_a_race(attempt) => continue,
                    Err(e) => return Err(e),
                }
            };
            self.image.reset();
            self.sums.reset();
            self.copy_pages();
            self.position = start;
            self.epoch = epoch_before(&self.sb.history, start.lsn, self.sb.epoch);
            let control = self.control;
            let same = || control.get(word::RECOVERY) == generation;
            // Whatever the copy caught of a commit that was being applied lies before the word as it is now.
            fence(Ordering::Acquire);
            let end = end.unwrap_or_else(|| self.control.get(word::COMMITTED));
            match self.advance(end) {
                Ok(Ok(())) if same() => return Ok(()),
                Ok(_) => {}
                Err(e) if attempt >= 3 && same() => return Err(e),
                Err(_) => {}
            }
        }
        Err(Error::LogTooSmall(format!(
            "{}: the writer goes round its whole log while it is being copied, {ATTEMPTS} times in a row",
            self.name
        )))
    }

    fn copy_pages(&self) {
        let sums = self.m.mapping().at(self.sb.sums_offset, self.sb.pages() * 8).cast::<u64>();
        let image = self.m.mapping().at(self.sb.image_offset, self.sb.image_size);
        for page in 0..self.sb.pages() as usize {
            // SAFETY: both lie in the mapping and in the copies. The writer may change them meanwhile; what the copy
            // then holds is put right by the log.
            unsafe {
                let sum = sums.add(page).read_volatile();
                if sum != 0 {
                    self.sums.base().cast::<u64>().add(page).write(sum);
                    std::ptr::copy_nonoverlapping(
                        image.add(page * PAGE),
                        self.image.base().add(page * PAGE),
                        PAGE,
                    );
                }
            }
        }
    }

    /// Facts of the group boundary at `lsn`, if it is one.
    fn point_at(&self, lsn: u64) -> Option<Point> {
        crate::tail::point_at(self.m.mapping(), &self.sb, lsn)
    }

    /// Apply the log up to `end` to the copy.
    fn advance(&mut self, end: u64) -> Result<std::result::Result<(), Lapped>> {
        let ring = self.sb.log_size;
        if end.saturating_sub(self.position.lsn) > ring {
            return Ok(Err(Lapped));
        }
        let len = end.saturating_sub(self.position.lsn) as usize;
        if len == 0 {
            return Ok(Ok(()));
        }
        let mut bytes = vec![0u8; len];
        // SAFETY: a ring's length is mapped from any position; the copy is checked below before it is believed.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.m.mapping().ring_at(self.position.lsn),
                bytes.as_mut_ptr(),
                len,
            );
        }
        if self.control.get(word::TAIL) > self.position.lsn {
            return Ok(Err(Lapped));
        }
        let mut reader = GroupReader::new(self.sb.crc_seed(), self.sb.image_size, self.position, self.epoch);
        let mut at = 0;
        while at < len {
            match reader.step(&bytes[at..]) {
                Step::Record(n) | Step::Group(n, _) => at += n,
                Step::NeedMore => return Err(Error::corrupt("the log ends in the middle of a commit")),
                Step::Bad(why) => {
                    return Err(Error::corrupt(format!("the log is damaged at {}: {why}", reader.at())));
                }
            }
        }
        apply(&bytes, &mut Copy { image: self.image.base(), sums: self.sums.base().cast() });
        (self.position, self.epoch) = (reader.after(), reader.epoch());
        Ok(Ok(()))
    }

    /// Move to the newest commit: by the log, or by a new copy when the log does not reach back far enough, another
    /// writer has recovered meanwhile, or the file was replaced by a snapshot's.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let boot = boot_id();
        if self.control.current(&boot) {
            let before = self.control.get(word::RECOVERY);
            let committed = self.control.get(word::COMMITTED);
            if before % 2 == 0
                && committed >= self.position.lsn
                && matches!(self.advance(committed), Ok(Ok(())))
                && self.control.get(word::RECOVERY) == before
            {
                return Ok(());
            }
        }
        self.copy()
    }

    pub(super) fn verify(&self) -> Result<u64> {
        for page in 0..self.sb.pages() {
            // SAFETY: whole pages of the copies.
            let (sum, want) = unsafe {
                (
                    page_sum(page, self.image.base().add(page as usize * PAGE)),
                    self.sums.base().cast::<u64>().add(page as usize).read(),
                )
            };
            if sum != want {
                return Err(Error::corrupt(format!("image page {page} does not match its sum")));
            }
        }
        Ok(self.sb.pages())
    }
}
