//! Pages of a region and their digests: which pages of some memory differ from a table of digests.
//!
//! Used by region evacuation, which scans whole devices again and again while a program it knows nothing of
//! writes to them. So memory comes as a raw pointer, and every page is copied before anything is made of it: the
//! digest is that of bytes which the page really held, as far as a copy can be, and the copy lies in the cache
//! when it is hashed. The format is in `docs/formats/region.md`.
//!
//! Memory that is the caller's own ([`Memory::still`]) is hashed where it lies. Rejected for all other: it saves the
//! copy, nearly half of the time, and needs a slice over memory that others change.

use std::sync::OnceLock;

use twox_hash::XxHash3_128;

use crate::format::PAGE;
use crate::medium::pmem;

/// Bytes of a digest.
pub const DIGEST: usize = 16;

/// A run of pages: the first, and how many.
pub type Run = (usize, usize);

#[repr(align(64))]
struct Page([u8; PAGE]);

impl Page {
    const ZERO: Self = Self([0; PAGE]);

    /// # Safety
    /// `from` points to `len` ≤ 4096 readable bytes.
    unsafe fn fill(&mut self, from: *const u8, len: usize) {
        // SAFETY: the caller's promise; the page is ours.
        unsafe { std::ptr::copy_nonoverlapping(from, self.0.as_mut_ptr(), len) };
        self.0[len..].fill(0);
    }
}

fn is_zero(page: &[u8; PAGE]) -> bool {
    let or = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte);
    // Almost every page that is not zero says so in its first line; the rest goes in larger steps.
    or(&page[..64]) == 0 && page.chunks_exact(512).all(|lines| or(lines) == 0)
}

fn digest_of_page(page: &[u8; PAGE]) -> u128 {
    if is_zero(page) { zero_digest() } else { XxHash3_128::oneshot(page) }
}

/// Digest of a page of zeros.
#[must_use]
pub fn zero_digest() -> u128 {
    static DIGEST_OF_ZEROS: OnceLock<u128> = OnceLock::new();
    *DIGEST_OF_ZEROS.get_or_init(|| XxHash3_128::oneshot(&[0; PAGE]))
}

/// Pages that `len` bytes take.
#[must_use]
pub fn pages_of(len: usize) -> usize {
    len.div_ceil(PAGE)
}

/// Memory of `len` bytes at a pointer, which others may change at any time, unless it is still; of a last page that is
/// not whole, the rest counts as zeros.
#[derive(Clone, Copy)]
pub struct Memory {
    start: *const u8,
    len: usize,
    still: bool,
}

impl Memory {
    /// # Safety
    /// `start` points to `len` bytes that stay readable as long as this is used.
    #[must_use]
    pub unsafe fn new(start: *const u8, len: usize) -> Self {
        Self { start, len, still: false }
    }

    /// # Safety
    /// As for `new`, and nobody changes the memory as long as this is used.
    #[must_use]
    pub unsafe fn still(start: *const u8, len: usize) -> Self {
        Self { start, len, still: true }
    }

    /// Whole pages, and a last one that is not.
    #[must_use]
    pub fn pages(&self) -> usize {
        pages_of(self.len)
    }

    fn digest_of(&self, page: usize, scratch: &mut Page) -> u128 {
        let at = page * PAGE;
        assert!(at < self.len);
        if self.still && self.len - at >= PAGE {
            // SAFETY: within the memory, which `still` was promised to be readable and unchanged; bytes need no alignment.
            return digest_of_page(unsafe { &*self.start.add(at).cast::<[u8; PAGE]>() });
        }
        // SAFETY: within the memory, which `new` was promised to be readable.
        unsafe { scratch.fill(self.start.add(at), PAGE.min(self.len - at)) };
        digest_of_page(&scratch.0)
    }
}

/// Digests in a table of 16 bytes a page, which others had better not change meanwhile (but may).
#[derive(Clone, Copy)]
pub struct Table {
    start: *mut u8,
    pages: usize,
}

impl Table {
    /// # Safety
    /// `start` points to `pages * 16` bytes that stay readable as long as this is used, and writable when it is
    /// given to [`digests`], or to [`changed`] with `update`.
    #[must_use]
    pub unsafe fn new(start: *mut u8, pages: usize) -> Self {
        Self { start, pages }
    }

    fn get(&self, page: usize) -> u128 {
        assert!(page < self.pages);
        // SAFETY: within the table, by `new`; unaligned reads are allowed.
        u128::from_le(unsafe { self.start.add(page * DIGEST).cast::<u128>().read_unaligned() })
    }

    fn set(&self, page: usize, digest: u128) {
        assert!(page < self.pages);
        // SAFETY: within the table, which is writable, by `new`.
        unsafe { self.start.add(page * DIGEST).cast::<u128>().write_unaligned(digest.to_le()) }
    }
}

/// Write the digest of every page of `memory` into `table`, which has as many.
pub fn digests(memory: Memory, table: Table) {
    assert_eq!(memory.pages(), table.pages);
    let mut scratch = Page::ZERO;
    for page in 0..table.pages {
        table.set(page, memory.digest_of(page, &mut scratch));
    }
}

/// The runs of pages of `memory` whose digest is not the one in `table`; with `update` it is put there.
#[must_use]
pub fn changed(memory: Memory, table: Table, update: bool) -> Vec<Run> {
    assert_eq!(memory.pages(), table.pages);
    let mut scratch = Page::ZERO;
    runs(table.pages, |page| {
        let digest = memory.digest_of(page, &mut scratch);
        let differs = digest != table.get(page);
        if differs && update {
            table.set(page, digest);
        }
        differs
    })
}

/// The runs of pages whose digests differ in two tables of the same length.
#[must_use]
pub fn differing(one: Table, other: Table) -> Vec<Run> {
    assert_eq!(one.pages, other.pages);
    runs(one.pages, |page| one.get(page) != other.get(page))
}

/// Digest of a whole table (or of anything else), which others may change: copied piece by piece.
#[must_use]
pub fn digest_of(memory: Memory) -> [u8; DIGEST] {
    let mut hasher = XxHash3_128::new();
    let mut scratch = Page::ZERO;
    for at in (0..memory.len).step_by(PAGE) {
        let len = PAGE.min(memory.len - at);
        // SAFETY: within the memory, which `new` was promised to be readable.
        unsafe { scratch.fill(memory.start.add(at), len) };
        hasher.write(&scratch.0[..len]);
    }
    hasher.finish_128().to_le_bytes()
}

/// Return when the cache lines of `memory` are in the persistence domain; for a mapped device that has no other way.
pub fn write_back(memory: Memory) {
    // SAFETY: the memory is readable, by `new`, so it is mapped.
    unsafe { pmem::write_back(memory.start, memory.len) };
    pmem::fence();
}

fn runs(pages: usize, mut differs: impl FnMut(usize) -> bool) -> Vec<Run> {
    let mut found: Vec<Run> = Vec::new();
    for page in 0..pages {
        if differs(page) {
            match found.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => found.push((page, 1)),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(bytes: &[u8]) -> Memory {
        // SAFETY: a slice that outlives its use in these tests.
        unsafe { Memory::new(bytes.as_ptr(), bytes.len()) }
    }

    fn still(bytes: &[u8]) -> Memory {
        // SAFETY: a slice that outlives its use in these tests.
        unsafe { Memory::still(bytes.as_ptr(), bytes.len()) }
    }

    fn table(bytes: &mut [u8]) -> Table {
        // SAFETY: a slice that outlives its use in these tests.
        unsafe { Table::new(bytes.as_mut_ptr(), bytes.len() / DIGEST) }
    }

    fn table_of(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; pages_of(bytes.len()) * DIGEST];
        digests(memory(bytes), table(&mut out));
        out
    }

    #[test]
    fn the_digest_is_that_of_the_document() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let text = include_str!("../../../docs/formats/region.md");
        let zeros = hex(&table_of(&[0; PAGE]));
        assert!(text.contains(&zeros), "{zeros}");
        // Worked out by the reference implementation of XXH3 (python-xxhash), least significant byte first.
        assert_eq!(zeros, "ba89c648e16fd79395e47e9e4fdce83e");
        let mut counting = [0; PAGE];
        for (i, byte) in counting.iter_mut().enumerate() {
            *byte = i as u8;
        }
        assert_eq!(hex(&table_of(&counting)), "51918707377c4beb667a9f9678659103");
        assert_eq!(hex(&digest_of(memory(&[7; 100_000]))), "3bc684d5c928b311786b366e51cf096e");
    }

    #[test]
    fn a_last_page_that_is_not_whole_counts_as_filled_up_with_zeros() {
        let mut whole = vec![3; 2 * PAGE];
        whole[PAGE + 10..].fill(0);
        assert_eq!(table_of(&whole[..PAGE + 10]), table_of(&whole));
        assert_eq!(table_of(&whole[..PAGE]), table_of(&whole)[..DIGEST]);
    }

    #[test]
    fn every_flipped_bit_of_a_page_is_seen() {
        let mut page: Vec<u8> = (0..PAGE).map(|i| ((i * 31) >> 3) as u8).collect();
        let mut was = table_of(&page);
        for bit in 0..PAGE * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(changed(memory(&page), table(&mut was), false), [(0, 1)], "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        // One bit in a page of zeros, wherever it lies, is not taken for zeros.
        let mut zeros = vec![0; PAGE];
        let mut was = table_of(&zeros);
        for at in 0..PAGE {
            zeros[at] = 1;
            assert_eq!(changed(memory(&zeros), table(&mut was), false), [(0, 1)], "byte {at}");
            zeros[at] = 0;
        }
    }

    proptest! {
        #[test]
        fn exactly_the_pages_that_changed_are_found(
            pages in 1usize..40,
            cut in 0usize..PAGE,
            changes in proptest::collection::vec((0usize..40 * PAGE, 1u8..), 0..30),
        ) {
            let mut bytes = vec![0u8; pages * PAGE - cut];
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = if i / PAGE % 3 == 0 { 0 } else { (i / 7) as u8 };
            }
            let mut known = table_of(&bytes);
            let before = known.clone();
            let old = bytes.clone();
            for (at, by) in changes {
                let at = at % bytes.len();
                bytes[at] = bytes[at].wrapping_add(by);
            }
            let expected: Vec<usize> = (0..pages)
                .filter(|p| {
                    let end = ((p + 1) * PAGE).min(bytes.len());
                    bytes[p * PAGE..end] != old[p * PAGE..end]
                })
                .collect();
            let flat = |runs: &[Run]| runs.iter().flat_map(|(f, n)| *f..f + n).collect::<Vec<_>>();
            let found = changed(memory(&bytes), table(&mut known), false);
            prop_assert_eq!(flat(&found), expected.clone());
            prop_assert!(found.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "runs are as long as can be");
            prop_assert_eq!(&known, &before);
            prop_assert_eq!(&changed(memory(&bytes), table(&mut known), true), &found);
            prop_assert_eq!(&known, &table_of(&bytes));
            prop_assert_eq!(changed(still(&bytes), table(&mut known), false), []);
            prop_assert_eq!(&changed(still(&old), table(&mut known), false), &found);
            let mut where_it_lies = vec![0; known.len()];
            digests(still(&bytes), table(&mut where_it_lies));
            prop_assert_eq!(&where_it_lies, &known);
            prop_assert_eq!(changed(memory(&bytes), table(&mut known), true), []);
            let mut before = before;
            prop_assert_eq!(differing(table(&mut before), table(&mut known)), found);
        }
    }
}
