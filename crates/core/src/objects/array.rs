//! Arrays: one extent each, described by a header; the memory itself belongs to the application.
//!
//! Used by `Objects`. The extent is plain memory that NumPy reads and writes; nothing here reads its contents, but
//! for the copy when an array has to move in order to grow. Growing in pieces was rejected: an array must be
//! contiguous to be a NumPy array.

use super::heap::Heap;
use super::layout::{extent, pages_for, word};
use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

const MAGIC: u64 = u64::from_le_bytes(*b"SUSARR1\0");
/// Bytes of a header.
pub(super) const HEADER: u64 = 144;
const DTYPE: usize = 48;
/// Longest name of a dtype.
pub const MAX_DTYPE: usize = 32;
/// Most dimensions.
pub const MAX_DIMS: usize = 8;

/// An array as it lies in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayInfo {
    /// Offset of the first item in the image, page-aligned.
    pub offset: u64,
    /// Bytes of all items.
    pub len: u64,
    /// Bytes of the extent, whole pages.
    pub capacity: u64,
    /// Bytes of one item.
    pub itemsize: u64,
    /// dtype as it was given.
    pub dtype: String,
    /// Dimensions, C order.
    pub shape: Vec<u64>,
}

impl ArrayInfo {
    /// Bytes of an array of this kind; `StoreFull` when that is more than the image can ever have.
    fn measure(work: &Work, dtype: &str, shape: &[u64], itemsize: u64) -> Result<u64> {
        if dtype.is_empty() || dtype.len() > MAX_DTYPE || !dtype.is_ascii() || dtype.contains('\0') {
            return Err(Error::InvalidArgument(format!(
                "a dtype is 1 to {MAX_DTYPE} ASCII characters, not {dtype:?}"
            )));
        }
        if shape.len() > MAX_DIMS || itemsize == 0 {
            return Err(Error::InvalidArgument(format!(
                "arrays have up to {MAX_DIMS} dimensions and items of at least one byte, not {shape:?} of {itemsize}"
            )));
        }
        if shape.contains(&0) {
            return Ok(0);
        }
        let len = shape.iter().try_fold(itemsize, |n, d| n.checked_mul(*d)).filter(|n| *n <= work.len());
        len.ok_or_else(|| {
            Error::StoreFull(format!(
                "no room for an array of shape {shape:?} in a store of {} bytes",
                work.len()
            ))
        })
    }

    /// Read and check the header at `at`.
    pub(super) fn load(work: &Work, at: u64) -> Result<Self> {
        let b = work.bytes(at, HEADER)?;
        let bad = || Error::corrupt(format!("the array header at {at:#x} is damaged"));
        let (offset, capacity, len, itemsize, dims) =
            (word(b, 1), word(b, 2), word(b, 3), word(b, 4), word(b, 5));
        if word(b, 0) != MAGIC
            || dims > MAX_DIMS as u64
            || len > capacity
            || capacity % PAGE_U64 != 0
            || capacity == 0
        {
            return Err(bad());
        }
        extent(work, offset, capacity / PAGE_U64)?;
        let dtype = b[DTYPE..DTYPE + MAX_DTYPE].split(|c| *c == 0).next().unwrap_or_default();
        let dtype = std::str::from_utf8(dtype).map_err(|_| bad())?.to_owned();
        let shape: Vec<u64> = (0..dims as usize).map(|i| word(b, 10 + i)).collect();
        if Self::measure(work, &dtype, &shape, itemsize).ok() != Some(len) {
            return Err(bad());
        }
        Ok(Self { offset, len, capacity, itemsize, dtype, shape })
    }

    fn save(&self, work: &mut Work, at: u64) -> Result<()> {
        let mut b = [0; HEADER as usize];
        let dims = self.shape.len() as u64;
        let words = [MAGIC, self.offset, self.capacity, self.len, self.itemsize, dims];
        for (i, w) in words.iter().enumerate() {
            b[i * 8..i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
        b[DTYPE..DTYPE + self.dtype.len()].copy_from_slice(self.dtype.as_bytes());
        for (i, d) in self.shape.iter().enumerate() {
            b[80 + i * 8..88 + i * 8].copy_from_slice(&d.to_le_bytes());
        }
        work.write(at, &b)
    }
}

/// Make an array of zeros; where its header is.
pub(super) fn create(
    work: &mut Work,
    heap: &mut Heap,
    dtype: &str,
    shape: &[u64],
    itemsize: u64,
) -> Result<u64> {
    let len = ArrayInfo::measure(work, dtype, shape, itemsize)?;
    let at = heap.alloc(work, HEADER)?;
    // Empty arrays too have a page, so that each has an offset of its own.
    let pages = pages_for(len).max(1);
    let offset = match heap.take_zeroed(work, pages) {
        Ok(offset) => offset,
        Err(e) => {
            heap.free(work, at, HEADER)?;
            return Err(e);
        }
    };
    let capacity = pages * PAGE_U64;
    ArrayInfo { offset, len, capacity, itemsize, dtype: dtype.into(), shape: shape.into() }.save(work, at)?;
    Ok(at)
}

/// What the array at `at` is when it is asked for as `dtype`, `shape`: itself, or grown to that.
pub(super) fn open(
    work: &mut Work,
    heap: &mut Heap,
    at: u64,
    name: &str,
    (dtype, shape, itemsize): (&str, &[u64], u64),
) -> Result<ArrayInfo> {
    let mut a = ArrayInfo::load(work, at)?;
    if a.dtype != dtype || a.itemsize != itemsize {
        return Err(Error::InvalidArgument(format!("the array {name:?} has dtype {}, not {dtype}", a.dtype)));
    }
    if a.shape == shape {
        return Ok(a);
    }
    let grows = a.shape.len() == shape.len()
        && !shape.is_empty()
        && a.shape[1..] == shape[1..]
        && a.shape[0] < shape[0];
    if !grows {
        return Err(Error::InvalidArgument(format!(
            "the array {name:?} has shape {:?}, not {shape:?}; only its first dimension can grow",
            a.shape
        )));
    }
    if !work.writable() {
        return Err(Error::StoreReadOnly(format!(
            "the array {name:?} cannot grow: the store is open read-only"
        )));
    }
    let len = ArrayInfo::measure(work, dtype, shape, itemsize)?;
    let zero_from = if len <= a.capacity { Some(u64::MAX) } else { extend(work, heap, &mut a, len)? };
    match zero_from {
        // Items that a view grown before a rollback may have touched: they begin as zero again.
        Some(zero_from) => {
            let (from, end) = (a.offset + a.len, zero_from.min(a.offset + len));
            work.trust(from, end - from);
            work.zero(from, end - from)?;
        }
        None => relocate(work, heap, &mut a, name, len)?,
    }
    a.len = len;
    a.shape = shape.into();
    a.save(work, at)?;
    Ok(a)
}

/// Take the pages that follow, if they are free; from which offset on they are zero.
fn extend(work: &mut Work, heap: &mut Heap, a: &mut ArrayInfo, len: u64) -> Result<Option<u64>> {
    let more = pages_for(len) - a.capacity / PAGE_U64;
    let taken = heap.pages.extend(work, a.offset, a.offset + a.capacity, more)?;
    if taken.is_some() {
        a.capacity += more * PAGE_U64;
    }
    Ok(taken.map(|t| t.zero_from))
}

/// Move to a larger extent, with some room to grow on; what follows the items there is zero.
fn relocate(work: &mut Work, heap: &mut Heap, a: &mut ArrayInfo, name: &str, len: u64) -> Result<()> {
    if heap.pages.exported(a.offset) {
        return Err(Error::ObjectInUse(format!(
            "the array {name:?} has to move in order to grow, and views of it are alive"
        )));
    }
    let pages = pages_for(len);
    let (taken, pages) = match heap.take(work, pages + pages / 4, 1) {
        Ok(taken) => (taken, pages + pages / 4),
        Err(Error::StoreFull(_)) => (heap.take(work, pages, 1)?, pages),
        Err(e) => return Err(e),
    };
    // The application may have changed any page of the old extent behind our back.
    work.trust(a.offset, a.capacity);
    work.copy(a.offset, taken.offset, a.len)?;
    let (rest, end) = (taken.offset + a.len, taken.zero_from.min(taken.offset + len));
    if end > rest {
        work.zero(rest, end - rest)?;
    }
    heap.pages.give(work, a.offset, a.capacity / PAGE_U64)?;
    a.offset = taken.offset;
    a.capacity = pages * PAGE_U64;
    Ok(())
}

/// Free the extent and the header.
pub(super) fn destroy(work: &mut Work, heap: &mut Heap, at: u64, name: &str) -> Result<()> {
    let a = ArrayInfo::load(work, at)?;
    if heap.pages.exported(a.offset) {
        return Err(Error::ObjectInUse(format!(
            "the array {name:?} cannot be deleted: views of it are alive"
        )));
    }
    heap.pages.give(work, a.offset, a.capacity / PAGE_U64)?;
    work.put_u64(at, 0)?;
    heap.free(work, at, HEADER)
}
