//! The side of an arriving store that brings the pages: verifies, puts in place, makes durable, and ends the arriving.
//!
//! Used by `sustain restore`, through the binding; where pages come from is not known here. A page is compared with
//! the sum that came with it, written with that sum, and only then said to be here. Pages that are here are not
//! written again, whatever comes: the application may have changed them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::arrival::{Arrival, State};
use crate::base::check_page;
use crate::checksum::page_sum;
use crate::control::Lock;
use crate::error::{Error, Result};
use crate::format::{FLAG_CLEAN, INCOMPAT_ARRIVING, PAGE, PAGE_U64, Point, SUPERBLOCK_SIZE, Superblock};
use crate::medium::{FileMedium, Medium};
use crate::tail;

/// A page's worth of aligned memory.
#[repr(align(4096))]
struct Aligned([u8; PAGE]);

/// See the module. Holds the fetcher's lock.
#[derive(Debug)]
pub struct Fetcher {
    m: FileMedium,
    arrival: Arc<Arrival>,
    sb: Superblock,
    name: String,
    /// One put at a time: between the look at a bit and the write nobody else may bring the page.
    putting: Mutex<()>,
}

impl Fetcher {
    /// Of the arriving store at `path`.
    ///
    /// # Errors
    /// `InvalidArgument` when it has arrived, `StoreBusy` when another process fetches it, or as for opening a store.
    pub fn open(path: &Path) -> Result<Self> {
        let (m, sb) = FileMedium::open(path, true)?;
        let name = path.display().to_string();
        let Some(arrival) = m.arrival().cloned() else {
            return Err(Error::InvalidArgument(format!("{name} is a whole store: nothing is to be fetched")));
        };
        if !arrival.claim()? {
            return Err(Error::StoreBusy(format!("{name}: another process fetches its pages already")));
        }
        Ok(Self { m, arrival, sb, name, putting: Mutex::new(()) })
    }

    /// What is here.
    #[must_use]
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// The superblock as it is now.
    ///
    /// # Errors
    /// `StoreCorrupt` when it stays unreadable.
    pub fn superblock(&self) -> Result<Superblock> {
        tail::read_superblock(self.m.mapping())
    }

    /// The group boundary at `lsn` in this copy's log; `None` when the log does not show one.
    ///
    /// # Errors
    /// As [`Fetcher::superblock`].
    pub fn boundary(&self, lsn: u64) -> Result<Option<Point>> {
        if lsn == self.arrival.point().lsn {
            return Ok(Some(self.arrival.point()));
        }
        let sb = self.superblock()?;
        let oldest = sb.tail.lsn;
        Ok(if lsn < oldest { None } else { tail::point_at(self.m.mapping(), &sb, lsn) })
    }

    /// Pages that are asked for; waits at most `timeout_ns` for the first.
    #[must_use]
    pub fn wanted(&self, timeout_ns: u64) -> Vec<u64> {
        self.arrival.take_wanted(timeout_ns)
    }

    /// Take `pages` pages from `first` on: `data` holds their sums, then those pages whose sum is not 0. How many of
    /// them were not here before.
    ///
    /// # Errors
    /// `StoreCorrupt` for a page that does not match its sum; what the system said.
    pub fn put(&self, first: u64, pages: u64, data: &[u8]) -> Result<u64> {
        let sums_len = pages as usize * 8;
        let fits =
            first.checked_add(pages).is_some_and(|end| end <= self.sb.pages()) && data.len() >= sums_len;
        if !fits {
            return Err(Error::corrupt(format!("{}: no such pages: {first}+{pages}", self.name)));
        }
        let (sums, mut rest) = data.split_at(sums_len);
        let sum = |i: u64| u64::from_le_bytes(sums[i as usize * 8..][..8].try_into().expect("eight bytes"));
        if rest.len() != (0..pages).filter(|i| sum(*i) != 0).count() * PAGE {
            return Err(Error::corrupt(format!(
                "{}: pages and sums of {first}+{pages} do not fit",
                self.name
            )));
        }
        let _one = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut i, mut fresh) = (0, 0);
        while i < pages {
            if self.arrival.is_here(first + i) {
                rest = &rest[if sum(i) == 0 { 0 } else { PAGE }..];
                i += 1;
                continue;
            }
            if sum(i) == 0 {
                self.place_zero(first + i)?;
                self.arrival.set_here(first + i);
                (i, fresh) = (i + 1, fresh + 1);
                continue;
            }
            let more =
                (i + 1..pages).take_while(|k| sum(*k) != 0 && !self.arrival.is_here(first + k)).count();
            let run = 1 + more as u64;
            let (now, later) = rest.split_at(run as usize * PAGE);
            self.verify(first + i, now, |k| sum(i + k))?;
            let io = |e| Error::io(format!("write pages of {}", self.name), e);
            self.m.place(self.sb.image_offset + (first + i) * PAGE_U64, now).map_err(io)?;
            let these = &sums[i as usize * 8..(i + run) as usize * 8];
            self.m.place(self.sb.sums_offset + (first + i) * 8, these).map_err(io)?;
            (first + i..first + i + run).for_each(|page| self.arrival.set_here(page));
            (rest, i, fresh) = (later, i + run, fresh + run);
        }
        if fresh > 0 {
            self.arrival.announce();
        }
        Ok(fresh)
    }

    fn verify(&self, first: u64, data: &[u8], sum: impl Fn(u64) -> u64) -> Result<()> {
        let mut copy = Aligned([0; PAGE]);
        for (k, page) in data.chunks_exact(PAGE).enumerate() {
            copy.0.copy_from_slice(page);
            // SAFETY: a whole aligned page of our own.
            let found = unsafe { page_sum(first + k as u64, copy.0.as_ptr()) };
            if found != sum(k as u64) {
                return Err(Error::corrupt(format!(
                    "{}: page {} does not match its sum as it came from the source",
                    self.name,
                    first + k as u64
                )));
            }
        }
        Ok(())
    }

    /// A page of zeros. A new file reads as zero, and stays sparse; but one that lost power may hold something.
    fn place_zero(&self, page: u64) -> Result<()> {
        let io = |e| Error::io(format!("write pages of {}", self.name), e);
        for (at, len) in [(self.sb.image_offset + page * PAGE_U64, PAGE), (self.sb.sums_offset + page * 8, 8)]
        {
            let mut copy = Aligned([0; PAGE]);
            self.m.look(at, &mut copy.0[..len]).map_err(io)?;
            if copy.0[..len].iter().any(|b| *b != 0) {
                self.m.place(at, &[0; PAGE][..len]).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Make durable what is here.
    ///
    /// # Errors
    /// What the system said.
    pub fn settle(&self) -> Result<()> {
        self.m.settle_all().map_err(|e| Error::io(format!("flush {}", self.name), e))
    }

    /// Everything is here: make it durable, and say so.
    ///
    /// # Errors
    /// `InvalidArgument` when something is missing; what the system said.
    pub fn complete(&self) -> Result<()> {
        if let Some((page, _)) = self.arrival.next_missing(0, 1) {
            return Err(Error::InvalidArgument(format!("{}: page {page} is not here yet", self.name)));
        }
        self.m.reserve_all().map_err(|e| Error::io(format!("reserve the bytes of {}", self.name), e))?;
        self.settle()?;
        assert!(self.arrival.all_durable(), "a flush makes durable what was here");
        self.arrival.set_complete().map_err(|e| Error::io(format!("flush the bits of {}", self.name), e))
    }

    /// Make the complete store an ordinary one; false: the application that has it open will do that.
    ///
    /// # Errors
    /// `StoreCorrupt` when a page does not match its sum; what the system said.
    pub fn try_finish(&self) -> Result<bool> {
        if self.arrival.state() != State::Complete {
            return Err(Error::InvalidArgument(format!("{} is not complete", self.name)));
        }
        if self.superblock()?.incompat & INCOMPAT_ARRIVING == 0 {
            return Ok(true);
        }
        let file = self.m.mapping().file();
        if !Lock::Writer.take(file).map_err(|e| Error::io(format!("lock {}", self.name), e))? {
            return Ok(false);
        }
        let done = self.finish_locked();
        Lock::Writer.release(file);
        done.map(|()| true)
    }

    fn finish_locked(&self) -> Result<()> {
        let mut sb = self.superblock()?;
        if sb.incompat & INCOMPAT_ARRIVING == 0 {
            return Ok(());
        }
        // After an unclean end the log has to put pages right first: recovery compares them.
        if sb.flags & FLAG_CLEAN != 0 {
            for page in 0..sb.pages() {
                let at = self.m.mapping().at(sb.sums_offset + page * 8, 8);
                // SAFETY: one aligned word of the sums.
                if unsafe { at.cast::<u64>().read() } != 0 {
                    check_page(&self.m, &sb, page)?;
                }
            }
        }
        sb.incompat &= !INCOMPAT_ARRIVING;
        sb.sequence += 1;
        let at = sb.sequence % 2 * SUPERBLOCK_SIZE as u64;
        self.m.store(at, &sb.encode());
        self.m
            .settle(at, SUPERBLOCK_SIZE as u64)
            .map_err(|e| Error::io(format!("flush the superblock of {}", self.name), e))?;
        self.arrival.remove();
        Ok(())
    }

    /// Give up: who waits hears why.
    pub fn fail(&self, why: &str) {
        self.arrival.set_failed(why);
    }

    /// Give the fetcher's lock back.
    pub fn release(&self) {
        self.arrival.release();
    }
}

/// The side that is fetched from: pages and sums of a whole store, which a receiver may be changing.
///
/// What is read of a page that changes meanwhile may be torn. Such a page is one that the fetching store has already
/// (see `docs/decisions/0013-on-demand.md`), so nobody will look at it.
#[derive(Debug)]
pub struct Source {
    m: FileMedium,
    sb: Superblock,
}

impl Source {
    /// Of the store at `path`.
    ///
    /// # Errors
    /// As for opening a store; `StoreArriving` for one that is not whole itself.
    pub fn open(path: &Path) -> Result<Self> {
        let (m, sb) = FileMedium::open(path, false)?;
        if sb.incompat & INCOMPAT_ARRIVING != 0 {
            return Err(Error::StoreArriving(format!("{} is itself still arriving", path.display())));
        }
        Ok(Self { m, sb })
    }

    /// Sums of `pages` pages from `first` on, then those pages whose sum is not 0.
    ///
    /// # Errors
    /// `InvalidArgument` outside of the image.
    pub fn read(&self, first: u64, pages: u64) -> Result<Vec<u8>> {
        let (image, len) = tail::image_pages(self.m.mapping(), &self.sb, first, pages)?;
        let sums = self.m.mapping().at(self.sb.sums_offset + first * 8, pages * 8).cast::<u64>();
        let mut out = Vec::with_capacity(pages as usize * 8 + len);
        for i in 0..pages as usize {
            // SAFETY: one aligned word of the sums, which a receiver may change.
            out.extend_from_slice(&unsafe { sums.add(i).read_volatile() }.to_ne_bytes());
        }
        for i in 0..pages as usize {
            if out[i * 8..i * 8 + 8] != [0; 8] {
                let at = out.len();
                // SAFETY: room was set aside for all pages; `image` has them all. A page that a receiver changes is
                // of no interest to who asks.
                unsafe {
                    std::ptr::copy_nonoverlapping(image.add(i * PAGE), out.as_mut_ptr().add(at), PAGE);
                    out.set_len(at + PAGE);
                }
            }
        }
        Ok(out)
    }
}
