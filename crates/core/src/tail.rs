//! The shipping side: the log of a store that another process writes, seen through the shared mapping.

use std::path::Path;

use crate::base::epoch_before;
use crate::checksum::{crc, page_digest};
use crate::control::{Control, Lock, start_ticks, word};
use crate::error::{Error, Result};
use crate::format::{
    COMMIT_RECORD, CommitPayload, INCOMPAT_ARRIVING, PAGE, PAGE_U64, Point, RECORD_HEADER, RecordHeader,
    Superblock, kind,
};
use crate::medium::{FileMedium, Mapping, Medium};

/// Facts of the group boundary at `lsn`: `None` when no group ends there, as far as the ring still shows.
#[must_use]
pub fn point_at(mapping: &Mapping, sb: &Superblock, lsn: u64) -> Option<Point> {
    if lsn == sb.tail.lsn {
        return Some(sb.tail);
    }
    let start = lsn.checked_sub(COMMIT_RECORD as u64)?;
    let mut record = [0u8; COMMIT_RECORD];
    // SAFETY: a ring's length is mapped from any position; the copy is verified before it is believed.
    unsafe { std::ptr::copy_nonoverlapping(mapping.ring_at(start), record.as_mut_ptr(), COMMIT_RECORD) };
    let h = RecordHeader::read(record.first_chunk().expect("a header fits"));
    if !h.plausible(start) || h.kind != kind::COMMIT {
        return None;
    }
    let c = CommitPayload::read(&record[RECORD_HEADER..]);
    (crc(crc(sb.crc_seed(), &record[..28]), &record[RECORD_HEADER..]) == h.crc).then_some(Point {
        lsn,
        seq: c.seq,
        chain: h.crc,
    })
}

/// See the module. Holds the shipper's lock.
#[derive(Debug)]
pub struct LogTail {
    m: FileMedium,
    control: Control,
}

impl LogTail {
    /// Of the store at `path`.
    ///
    /// # Errors
    /// `StoreBusy` when another shipper is at work, or as for opening a store.
    pub fn open(path: &Path) -> Result<Self> {
        // Writable because of the control words; the log and the image are only read.
        let (m, sb) = FileMedium::open(path, true)?;
        let taken = Lock::Shipper.take(m.mapping().file());
        let control = Control::of(m.mapping());
        if !taken.map_err(|e| Error::io(format!("lock {}", path.display()), e))? {
            let pid = control.get(word::SHIPPER_PID);
            return Err(Error::StoreBusy(format!(
                "{}: another shipper (pid {pid}) is at work",
                path.display()
            )));
        }
        let boot = crate::control::boot_id();
        if !control.current(&boot) {
            control.claim(&boot);
            for at in [word::APPENDED, word::COMMITTED, word::APPLIED] {
                control.set(
                    at,
                    if sb.flags & crate::format::FLAG_CLEAN != 0 { sb.end_lsn } else { sb.tail.lsn },
                );
            }
            control.set(word::TAIL, sb.tail.lsn);
        }
        control.set(word::SHIPPER_PID, u64::from(std::process::id()));
        control.set(word::SHIPPER_START, start_ticks(std::process::id()));
        Ok(Self { m, control })
    }

    /// The control words.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control
    }

    /// Give the shipper's lock back.
    pub fn release(&self) {
        self.control.set(word::SHIPPER_PID, 0);
        Lock::Shipper.release(self.m.mapping().file());
    }

    /// The superblock as it is now. Retries while the writer replaces it.
    ///
    /// # Errors
    /// `StoreCorrupt` when it stays unreadable.
    pub fn superblock(&self) -> Result<Superblock> {
        read_superblock(self.m.mapping())
    }

    /// The same of a store whose image is all here.
    fn whole(&self) -> Result<Superblock> {
        let sb = self.superblock()?;
        if sb.incompat & INCOMPAT_ARRIVING != 0 {
            return Err(Error::StoreArriving(format!(
                "{} has not arrived completely: there is no image to send",
                self.m.path().display()
            )));
        }
        Ok(sb)
    }

    /// Contiguous bytes of the log from `lsn` on; at most a ring's length. They are what the caller wants only if
    /// the tail has not passed `lsn` after they were used.
    ///
    /// # Errors
    /// `InvalidArgument` for more than a ring's length.
    pub fn log(&self, lsn: u64, len: u64) -> Result<(*const u8, usize)> {
        if len > self.m.mapping().log_size() {
            return Err(Error::InvalidArgument("more than the whole log".into()));
        }
        Ok((self.m.mapping().ring_at(lsn).cast_const(), len as usize))
    }

    /// Whether a group ends (and the next begins) at `lsn`, and the log still holds what follows.
    ///
    /// # Errors
    /// As [`LogTail::superblock`].
    pub fn boundary(&self, lsn: u64) -> Result<Option<Point>> {
        let sb = self.superblock()?;
        if lsn < sb.tail.lsn || lsn > self.control.get(word::COMMITTED) {
            return Ok(None);
        }
        Ok(point_at(self.m.mapping(), &sb, lsn))
    }

    /// The epoch that is current just before `lsn`.
    ///
    /// # Errors
    /// As [`LogTail::superblock`].
    pub fn epoch_before(&self, lsn: u64) -> Result<u64> {
        let sb = self.superblock()?;
        Ok(epoch_before(&sb.history, lsn, sb.epoch))
    }

    /// `pages` pages of the image from `first` on.
    ///
    /// # Errors
    /// `InvalidArgument` outside of the image.
    pub fn image(&self, first: u64, pages: u64) -> Result<(*const u8, usize)> {
        let sb = self.whole()?;
        image_pages(self.m.mapping(), &sb, first, pages)
    }

    /// First page from `page` on whose sum is not 0; the number of pages when there is none.
    ///
    /// # Errors
    /// As [`LogTail::superblock`].
    pub fn next_used_page(&self, page: u64) -> Result<u64> {
        let sb = self.whole()?;
        let sums = self.m.mapping().at(sb.sums_offset, sb.pages() * 8).cast::<u64>();
        // SAFETY: the sums of all pages are mapped.
        let used = (page..sb.pages()).find(|p| unsafe { sums.add(*p as usize).read_volatile() } != 0);
        Ok(used.unwrap_or(sb.pages()))
    }

    /// The first pages from `page` on whose sum is not 0, at most `most` that lie together: first page and count. The
    /// number of pages and 0 when there is none.
    ///
    /// # Errors
    /// As [`LogTail::superblock`].
    pub fn next_used_run(&self, page: u64, most: u64) -> Result<(u64, u64)> {
        let sb = self.whole()?;
        let sums = self.m.mapping().at(sb.sums_offset, sb.pages() * 8).cast::<u64>();
        // SAFETY: the sums of all pages are mapped.
        let used = |p: &u64| unsafe { sums.add(*p as usize).read_volatile() } != 0;
        let Some(first) = (page..sb.pages()).find(used) else { return Ok((sb.pages(), 0)) };
        Ok((first, (first..sb.pages()).take(most as usize).take_while(used).count() as u64))
    }

    /// Digests of pages, as they are now.
    ///
    /// # Errors
    /// As [`LogTail::image`].
    pub fn digests(&self, first: u64, pages: u64) -> Result<Vec<u8>> {
        let (p, len) = self.image(first, pages)?;
        Ok(digests(p, len))
    }
}

/// Digests of the pages at `p`.
pub(crate) fn digests(p: *const u8, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len / PAGE * 16);
    let mut copy = [0u8; PAGE];
    for at in (0..len).step_by(PAGE) {
        // SAFETY: `p` is readable for `len` bytes; a page that changes meanwhile gives a digest of neither state.
        unsafe { std::ptr::copy_nonoverlapping(p.add(at), copy.as_mut_ptr(), PAGE) };
        out.extend_from_slice(&page_digest(&copy));
    }
    out
}

/// Where pages of the image lie.
pub(crate) fn image_pages(
    mapping: &Mapping,
    sb: &Superblock,
    first: u64,
    pages: u64,
) -> Result<(*const u8, usize)> {
    if first.checked_add(pages).is_none_or(|end| end > sb.pages()) {
        return Err(Error::InvalidArgument(format!(
            "pages {first}+{pages} of an image of {} pages",
            sb.pages()
        )));
    }
    let p = mapping.at(sb.image_offset + first * PAGE_U64, pages * PAGE_U64);
    Ok((p.cast_const(), (pages * PAGE_U64) as usize))
}

/// The newest superblock of a mapping that another process may be writing.
///
/// # Errors
/// `StoreCorrupt` when it stays unreadable.
pub fn read_superblock(mapping: &Mapping) -> Result<Superblock> {
    let mut copy = vec![0u8; 8192];
    let mut attempt = 0;
    loop {
        // SAFETY: both superblocks are mapped; a copy torn by the writer fails its checksum.
        unsafe { std::ptr::copy_nonoverlapping(mapping.at(0, 8192), copy.as_mut_ptr(), copy.len()) };
        match crate::medium::pick_superblock(&copy) {
            Ok(sb) => return Ok(sb),
            Err(e) if attempt == 100 => return Err(e),
            Err(_) => std::thread::yield_now(),
        }
        attempt += 1;
    }
}
