//! The objects of a store: named maps, arrays and files in the image.
//!
//! Used by the store, which holds the one [`Objects`] of a view beside its [`Work`] under its mutex. Everything that
//! lasts lies in the image as `docs/formats/objects.md` has it; an `Objects` only remembers what helps (where to look
//! for free pages, which arrays are open, which extents applications look at). Nothing here knows of the log: changes
//! go through `Work`, which remembers the ranges.
//!
//! Failure: `StoreFull` leaves the objects as they were, so that an application may catch it and go on committing.
//! After `StoreCorrupt` nothing more should be committed. A damaged image gives `StoreCorrupt`, never a panic or an
//! endless loop.
//!
//! Handles ([`MapRef`], [`FileRef`]) are offsets with a generation. Deleting an object, a rollback or a refresh begins
//! a new generation, after which handles are looked up again by name. A table of live handles was rejected: it would
//! cost every access an indirection, to save a lookup after rare events.

mod array;
mod check;
mod directory;
mod file;
mod heap;
mod layout;
mod map;
mod pages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use array::{ArrayInfo, MAX_DIMS, MAX_DTYPE};
pub use check::CheckReport;
pub use directory::{Kind, MAX_NAME};
pub use file::MAX_FILE;
pub use map::{MAX_KEY, MAX_VALUE, Scan};

use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;
use heap::Heap;
use layout::{
    BITMAP, GROUP, ROOT_DATA_START, ROOT_DIRECTORY, ROOT_FRESH, ROOT_MAGIC, ROOT_PAGES, ROOT_SEED,
    ROOT_SEEDS_DRAWN, ROOT_USED, ROOT_VERSION, VERSION, data_start, word,
};

/// A map, found by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRef {
    at: u64,
    generation: u64,
}

impl MapRef {
    /// Two words that say it all, for who keeps it where only words can be kept.
    #[inline]
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.at, self.generation]
    }

    /// The map that [`MapRef::words`] were of. Any others are a handle that is out of date, or damage.
    #[inline]
    #[must_use]
    pub fn from_words([at, generation]: [u64; 2]) -> Self {
        Self { at, generation }
    }
}

/// A file, found by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRef {
    at: u64,
    generation: u64,
}

impl FileRef {
    /// Two words that say it all, for who keeps it where only words can be kept.
    #[inline]
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.at, self.generation]
    }

    /// The file that [`FileRef::words`] were of. Any others are a handle that is out of date, or damage.
    #[inline]
    #[must_use]
    pub fn from_words([at, generation]: [u64; 2]) -> Self {
        Self { at, generation }
    }
}

/// How full the image is. Free blocks inside slabs count as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of pages in use.
    pub used_bytes: u64,
    /// Bytes of free pages.
    pub free_bytes: u64,
}

/// What an array is asked to be: dtype, shape, bytes of an item.
pub type Wanted<'a> = (&'a str, &'a [u64], u64);

/// See the module.
#[derive(Debug)]
pub struct Objects {
    heap: Heap,
    generation: u64,
    /// Arrays opened in this process, with offset and bytes (whole pages).
    opened: BTreeMap<String, (u64, u64)>,
    /// The values of `opened`, for the commit.
    extents: Vec<(u64, u64)>,
    /// `opened` has to be looked up again.
    stale: bool,
    /// Extents of arrays that were deleted or moved since the last commit.
    retired: Vec<(u64, u64)>,
}

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn none_named(name: &str, kind: Kind) -> Error {
    Error::NoSuchObject(format!("there is no {} {name:?} in the store", kind.name()))
}

impl Objects {
    /// Write the root into an image that is all zero. `seed` should be random: it keeps hashes unpredictable.
    ///
    /// # Errors
    /// `InvalidArgument` for an image that cannot be one.
    pub fn format(work: &mut Work, seed: u64) -> Result<()> {
        let pages = work.len() / PAGE_U64;
        let start = data_start(pages);
        if work.len() % (64 * PAGE_U64) != 0 || pages < 64 || pages >> 36 != 0 {
            return Err(Error::InvalidArgument(format!("an image cannot have {} bytes", work.len())));
        }
        work.put_u64(0, ROOT_MAGIC)?;
        let words =
            [(ROOT_VERSION, VERSION), (ROOT_PAGES, pages), (ROOT_SEED, seed), (ROOT_DATA_START, start)];
        for (at, value) in words.into_iter().chain([(ROOT_USED, start), (ROOT_FRESH, start)]) {
            work.put_u64(at, value)?;
        }
        for page in 0..start {
            let at = BITMAP + page / 64 * 8;
            work.put_u64(at, work.u64(at)? | 1 << (page % 64))?;
        }
        let mut objects = Self::new(work);
        let seed = objects.draw_seed(work)?;
        map::create(work, &mut objects.heap, ROOT_DIRECTORY, seed)
    }

    /// The objects of an image.
    ///
    /// # Errors
    /// `NewerVersion`, `StoreCorrupt`.
    pub fn open(work: &Work) -> Result<Self> {
        let root = work.bytes(0, PAGE_U64)?;
        let field = |at: u64| word(root, at as usize / 8);
        if field(0) != ROOT_MAGIC {
            return Err(Error::corrupt("the image does not begin with the root of the objects"));
        }
        if field(ROOT_VERSION) > VERSION {
            return Err(Error::NewerVersion(format!(
                "the objects are of version {}, this Sustain knows {VERSION}",
                field(ROOT_VERSION)
            )));
        }
        let pages = work.len() / PAGE_U64;
        let sane = field(ROOT_PAGES) == pages
            && field(ROOT_DATA_START) == data_start(pages)
            && pages.div_ceil(GROUP) * PAGE_U64 + BITMAP <= work.len()
            && field(ROOT_FRESH) <= pages
            && field(ROOT_FRESH) >= data_start(pages);
        if !sane {
            return Err(Error::corrupt("the root of the objects is damaged"));
        }
        let objects = Self::new(work);
        objects.heap.pages.used(work)?;
        Ok(objects)
    }

    /// Of an image that is only about to be formatted.
    pub(crate) fn new(work: &Work) -> Self {
        Self {
            heap: Heap::new(work),
            generation: 1,
            opened: BTreeMap::new(),
            extents: Vec::new(),
            stale: false,
            retired: Vec::new(),
        }
    }

    fn draw_seed(&mut self, work: &mut Work) -> Result<u64> {
        let (seed, drawn) = (work.u64(ROOT_SEED)?, work.u64(ROOT_SEEDS_DRAWN)?);
        work.put_u64(ROOT_SEEDS_DRAWN, drawn.wrapping_add(1))?;
        Ok(splitmix64(seed ^ splitmix64(drawn)))
    }

    /// To be called when the view has moved to another commit (rollback, refresh): handles are out of date, and what
    /// was remembered of the image is looked up again. Exported extents stay out of use until they are given back.
    pub fn reset(&mut self) {
        self.generation += 1;
        self.heap.pages.forget();
        self.stale = true;
        self.retired.clear();
    }

    /// To be called when a commit was made: [`Objects::retired`] begins anew.
    #[inline]
    pub fn settle(&mut self) {
        self.retired.clear();
    }

    /// Offset and bytes of arrays that were deleted or moved since the last commit. The application may have changed
    /// them before, and a commit need not know; but a rollback must restore them, since it brings them back.
    #[must_use]
    pub fn retired(&self) -> &[(u64, u64)] {
        &self.retired
    }

    /// Handles of another generation are out of date.
    #[inline]
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the handle may be used, or its map must be looked up again.
    #[inline]
    #[must_use]
    pub fn map_is_current(&self, m: MapRef) -> bool {
        m.generation == self.generation
    }

    /// Whether the handle may be used, or its file must be looked up again.
    #[inline]
    #[must_use]
    pub fn file_is_current(&self, f: FileRef) -> bool {
        f.generation == self.generation
    }

    #[inline]
    fn current(&self, at: u64, generation: u64) -> Result<u64> {
        if generation == self.generation { Ok(at) } else { Err(out_of_date()) }
    }

    /// Look an object up, or make it with `make` when `create` is set and the view can be written.
    fn find_or_make(
        &mut self,
        work: &mut Work,
        name: &str,
        kind: Kind,
        create: bool,
        make: impl FnOnce(&mut Self, &mut Work) -> Result<u64>,
    ) -> Result<u64> {
        if let Some(at) = directory::find_kind(work, name, kind)? {
            return Ok(at);
        }
        if !create || !work.writable() {
            return Err(none_named(name, kind));
        }
        let at = make(self, work)?;
        if let Err(e) = directory::insert(work, &mut self.heap, name, kind, at) {
            self.destroy(work, name, kind, at)?;
            return Err(e);
        }
        Ok(at)
    }

    fn destroy(&mut self, work: &mut Work, name: &str, kind: Kind, at: u64) -> Result<()> {
        match kind {
            Kind::Map => {
                map::destroy(work, &mut self.heap, at)?;
                self.heap.free(work, at, map::HEADER)
            }
            Kind::Array => array::destroy(work, &mut self.heap, at, name),
            Kind::File => file::destroy(work, &mut self.heap, at),
        }
    }

    /// The map with this name, made if it is absent and `create` is set.
    ///
    /// # Errors
    /// `NoSuchObject`, `StoreFull`, `InvalidArgument` for an impossible name.
    pub fn map(&mut self, work: &mut Work, name: &str, create: bool) -> Result<MapRef> {
        let at = self.find_or_make(work, name, Kind::Map, create, |this, work| {
            let at = this.heap.alloc(work, map::HEADER)?;
            let seed = this.draw_seed(work)?;
            if let Err(e) = map::create(work, &mut this.heap, at, seed) {
                this.heap.free(work, at, map::HEADER)?;
                return Err(e);
            }
            Ok(at)
        })?;
        Ok(MapRef { at, generation: self.generation })
    }

    /// The value of a key.
    #[inline]
    pub fn map_get<'w>(&self, work: &'w Work, m: MapRef, key: &[u8]) -> Result<Option<&'w [u8]>> {
        map::get(work, self.current(m.at, m.generation)?, key)
    }

    /// Set the value of a key; whether the key is new.
    ///
    /// # Errors
    /// `StoreFull`, `InvalidArgument` when key or value are too long.
    #[inline]
    pub fn map_set(&mut self, work: &mut Work, m: MapRef, key: &[u8], value: &[u8]) -> Result<bool> {
        let at = self.current(m.at, m.generation)?;
        map::set(work, &mut self.heap, at, key, value)
    }

    /// Remove a key; whether it was there.
    pub fn map_remove(&mut self, work: &mut Work, m: MapRef, key: &[u8]) -> Result<bool> {
        let at = self.current(m.at, m.generation)?;
        map::remove(work, &mut self.heap, at, key)
    }

    /// Whether a key is there.
    pub fn map_contains(&self, work: &Work, m: MapRef, key: &[u8]) -> Result<bool> {
        self.map_get(work, m, key).map(|v| v.is_some())
    }

    /// Number of keys.
    pub fn map_len(&self, work: &Work, m: MapRef) -> Result<u64> {
        Ok(map::Header::load(work, self.current(m.at, m.generation)?)?.count)
    }

    /// Remove all keys and give back their room.
    pub fn map_clear(&mut self, work: &mut Work, m: MapRef) -> Result<()> {
        let at = self.current(m.at, m.generation)?;
        map::clear(work, &mut self.heap, at)
    }

    /// Call `f` with at least `limit` entries, if there are so many from `cursor` on (0 begins), and a few more up to
    /// the end of a bucket. Values may be replaced between two calls; when keys come or go, the answer is `Changed`.
    pub fn map_scan(
        &self,
        work: &Work,
        m: MapRef,
        cursor: u64,
        limit: usize,
        f: impl FnMut(&[u8], &[u8]),
    ) -> Result<Scan> {
        map::scan(work, self.current(m.at, m.generation)?, cursor, limit, f)
    }

    /// The array with this name. With `wanted` it is made of zeros if absent, and grown if its first dimension is
    /// smaller than asked.
    ///
    /// # Errors
    /// `NoSuchObject` (absent and nothing wanted, or read-only), `InvalidArgument` (another dtype or shape),
    /// `ObjectInUse` (it has to move and views are alive), `StoreFull`.
    pub fn array(&mut self, work: &mut Work, name: &str, wanted: Option<Wanted<'_>>) -> Result<ArrayInfo> {
        let at = self.find_or_make(work, name, Kind::Array, wanted.is_some(), |this, work| match wanted {
            Some((dtype, shape, itemsize)) => array::create(work, &mut this.heap, dtype, shape, itemsize),
            None => Err(none_named(name, Kind::Array)),
        })?;
        let before = ArrayInfo::load(work, at).map(|a| (a.offset, a.capacity)).ok();
        let info = match wanted {
            Some(wanted) => array::open(work, &mut self.heap, at, name, wanted)?,
            None => ArrayInfo::load(work, at)?,
        };
        let extent = (info.offset, info.len.next_multiple_of(PAGE_U64));
        if before.is_some_and(|b| b.0 != extent.0) {
            self.retired.extend(before);
        }
        if self.opened.get(name) != Some(&extent) {
            self.opened.insert(name.to_owned(), extent);
            self.list_extents();
        }
        Ok(info)
    }

    fn list_extents(&mut self) {
        self.extents.clear();
        self.extents.extend(self.opened.values().copied());
    }

    /// Offset and bytes (whole pages) of the arrays that were opened in this process; what a commit has to search for
    /// changes. Costs nothing unless the view was reset.
    pub fn array_extents(&mut self, work: &Work) -> Result<&[(u64, u64)]> {
        if self.stale {
            let names: Vec<String> = self.opened.keys().cloned().collect();
            for name in names {
                match directory::find(work, &name)? {
                    Some((Kind::Array, at)) => {
                        let info = ArrayInfo::load(work, at)?;
                        self.opened.insert(name, (info.offset, info.len.next_multiple_of(PAGE_U64)));
                    }
                    _ => {
                        self.opened.remove(&name);
                    }
                }
            }
            self.list_extents();
            self.stale = false;
        }
        Ok(&self.extents)
    }

    /// Whether arrays were opened in this process.
    #[inline]
    #[must_use]
    pub fn has_arrays(&self) -> bool {
        !self.opened.is_empty()
    }

    /// A view of `len` bytes at `offset` was given to the application: the array there can neither move nor be
    /// deleted, and if a rollback undoes its creation, nothing else gets its pages.
    pub fn export(&mut self, offset: u64, len: u64) {
        self.heap.pages.export(offset, len);
    }

    /// That view is gone.
    pub fn unexport(&mut self, offset: u64) {
        self.heap.pages.unexport(offset);
    }

    /// The file with this name, made if it is absent and `create` is set.
    ///
    /// # Errors
    /// As [`Objects::map`].
    pub fn file(&mut self, work: &mut Work, name: &str, create: bool) -> Result<FileRef> {
        let at = self
            .find_or_make(work, name, Kind::File, create, |this, work| file::create(work, &mut this.heap))?;
        Ok(FileRef { at, generation: self.generation })
    }

    /// Fill `buf` from `offset` on; the number of bytes before the end of the file.
    pub fn file_read(&self, work: &Work, f: FileRef, offset: u64, buf: &mut [u8]) -> Result<usize> {
        file::read(work, self.current(f.at, f.generation)?, offset, buf)
    }

    /// Put `data` at `offset`; the file grows as needed.
    ///
    /// # Errors
    /// `StoreFull`, then nothing was changed; `InvalidArgument` beyond [`MAX_FILE`].
    pub fn file_write(&mut self, work: &mut Work, f: FileRef, offset: u64, data: &[u8]) -> Result<()> {
        let at = self.current(f.at, f.generation)?;
        file::write(work, &mut self.heap, at, offset, data)
    }

    /// Make the file `size` bytes long; new bytes read as zeros.
    pub fn file_truncate(&mut self, work: &mut Work, f: FileRef, size: u64) -> Result<()> {
        let at = self.current(f.at, f.generation)?;
        file::truncate(work, &mut self.heap, at, size)
    }

    /// Bytes in the file.
    pub fn file_size(&self, work: &Work, f: FileRef) -> Result<u64> {
        Ok(file::Header::load(work, self.current(f.at, f.generation)?)?.size)
    }

    /// Delete an object and free what it holds.
    ///
    /// # Errors
    /// `NoSuchObject`; `ObjectInUse` when views of an array are alive.
    pub fn delete(&mut self, work: &mut Work, name: &str) -> Result<()> {
        let (kind, at) = directory::find(work, name)?
            .ok_or_else(|| Error::NoSuchObject(format!("there is no {name:?} in the store")))?;
        if !work.writable() {
            return Err(Error::StoreReadOnly(format!(
                "{name:?} cannot be deleted: the store is open read-only"
            )));
        }
        let array = if kind == Kind::Array { ArrayInfo::load(work, at).ok() } else { None };
        self.destroy(work, name, kind, at)?;
        self.retired.extend(array.map(|a| (a.offset, a.capacity)));
        directory::remove(work, &mut self.heap, name)?;
        self.generation += 1;
        if self.opened.remove(name).is_some() {
            self.list_extents();
        }
        Ok(())
    }

    /// Every object: name, kind and bytes held, sorted by name.
    pub fn list(&self, work: &Work) -> Result<Vec<(String, Kind, u64)>> {
        let mut all = Vec::new();
        directory::each(work, |name, kind, at| {
            let held = match kind {
                Kind::Map => map::Header::load(work, at)?.held.saturating_add(heap::gross(map::HEADER)),
                Kind::Array => ArrayInfo::load(work, at)?.capacity + heap::gross(array::HEADER),
                Kind::File => file::Header::load(work, at)?.held + heap::gross(file::HEADER),
            };
            all.push((name.to_owned(), kind, held));
            Ok(())
        })?;
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// How full the image is.
    pub fn usage(&self, work: &Work) -> Result<Usage> {
        let used_bytes = self.heap.pages.used(work)? * PAGE_U64;
        Ok(Usage { image_bytes: work.len(), used_bytes, free_bytes: work.len() - used_bytes })
    }

    /// Check everything: each block reached once, each count right, each key where its hash says.
    ///
    /// # Errors
    /// `StoreCorrupt` with the first thing that is wrong.
    pub fn check(&self, work: &Work) -> Result<CheckReport> {
        check::check(work)
    }
}

#[cold]
fn out_of_date() -> Error {
    Error::NoSuchObject("the object was deleted, or its handle is from before a rollback".into())
}
