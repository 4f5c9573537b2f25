//! A simulated medium for crash tests: live memory on one side, what is durable on the other.
//!
//! Stores change the live mapping at once and become durable only by a persist, or by luck: a crash may keep any
//! subset of what was stored and not persisted, torn at the granularity of the medium: 8 bytes inside a cache line
//! (pmem: lines reach the medium in any order), or 512-byte sectors (disk). [`SimMedium::crash`] draws one such state.
//! Every persist is a crash point; a plan can also make one fail.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::format::{CONTROL_OFFSET, CONTROL_SIZE, Durability, PAGE, PAGE_U64, Superblock};
use crate::medium::{Mapping, Medium};

/// A small deterministic generator (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.draw() % n }
    }
}

/// What goes wrong, and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The persist with this number fails, and all after it.
    pub fail_persist: Option<u64>,
    /// With which error.
    pub errno: i32,
}

type Pages = BTreeMap<u64, Box<[u8; PAGE]>>;

/// Put the bytes of a unit into its page.
fn put(pages: &mut Pages, at: u64, bytes: &[u8]) {
    let page = pages.entry(at / PAGE_U64 * PAGE_U64).or_insert_with(|| Box::new([0; PAGE]));
    let inside = (at % PAGE_U64) as usize;
    page[inside..inside + bytes.len()].copy_from_slice(bytes);
}

#[derive(Default)]
struct State {
    /// What is durable, by page; a page that is not here is zero.
    durable: Pages,
    /// Units stored since, with every version they had (the last is the live one).
    volatile: BTreeMap<u64, Vec<Vec<u8>>>,
    persists: u64,
    faults: Faults,
}

/// See the module.
pub struct SimMedium {
    /// There until it is dropped.
    mapping: Option<Mapping>,
    durability: Durability,
    unit: u64,
    state: Mutex<State>,
}

/// Mappings of media that are gone: most of the time of a crash state would go into faulting pages in.
static SPARE: Mutex<Vec<Mapping>> = Mutex::new(Vec::new());

/// A mapping that is all zero.
fn spare(sb: &Superblock) -> Result<Mapping> {
    let mut pool = SPARE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let fits = |m: &Mapping| m.len() == sb.file_size() && m.log_size() == sb.log_size;
    let Some(i) = pool.iter().position(fits) else {
        let file = super::memory_file(c"sustain-sim", sb.file_size())
            .map_err(|e| Error::io("make a memory file", e))?;
        return Mapping::new(file, sb.file_size(), sb.log_size, true, false).map_err(|e| Error::io("map", e));
    };
    let mapping = pool.swap_remove(i);
    drop(pool);
    for at in (0..mapping.len()).step_by(PAGE) {
        let p = mapping.at(at, PAGE_U64);
        // SAFETY: a page of a mapping that nobody else uses.
        unsafe {
            if !super::page_is_zero(p) {
                std::ptr::write_bytes(p, 0, PAGE);
            }
        }
    }
    Ok(mapping)
}

impl Drop for SimMedium {
    fn drop(&mut self) {
        let mut pool = SPARE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if pool.len() < 16 {
            pool.extend(self.mapping.take());
        }
    }
}

impl SimMedium {
    /// A new, empty one for `sb`.
    ///
    /// # Errors
    /// No memory.
    pub fn new(sb: &Superblock) -> Result<Self> {
        Self::with(sb, BTreeMap::new())
    }

    fn with(sb: &Superblock, durable: Pages) -> Result<Self> {
        let mapping = spare(sb)?;
        for (at, bytes) in &durable {
            // SAFETY: a page of the fresh mapping, which nobody else uses yet.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.at(*at, PAGE_U64), PAGE) };
        }
        let unit = if sb.durability == Durability::Pmem { 64 } else { 512 };
        let state = Mutex::new(State { durable, ..State::default() });
        Ok(Self { mapping: Some(mapping), durability: sb.durability, unit, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Plan faults.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Persists so far: each is a crash point.
    #[must_use]
    pub fn persists(&self) -> u64 {
        self.state().persists
    }

    /// Units that were stored and not persisted.
    #[must_use]
    pub fn volatile_units(&self) -> usize {
        self.state().volatile.len()
    }

    fn live_unit(&self, at: u64) -> Vec<u8> {
        let mut bytes = vec![0u8; self.unit as usize];
        // SAFETY: a unit inside the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(self.mapping().at(at, self.unit), bytes.as_mut_ptr(), bytes.len())
        };
        bytes
    }

    /// The medium as it may be found after a crash now: all that is durable, and of the rest what `rng` lets through.
    ///
    /// # Errors
    /// No memory.
    pub fn crash(&self, sb: &Superblock, rng: &mut Rng) -> Result<Self> {
        let state = self.state();
        let mut after = state.durable.clone();
        // Some crashes keep nothing, some keep all, most keep some.
        let keep = [0, 256, 128, 32, 224][rng.below(5) as usize];
        for (at, versions) in &state.volatile {
            if rng.below(256) >= keep {
                continue;
            }
            let version = &versions[rng.below(versions.len() as u64) as usize];
            // A line evicted in the middle of being written is torn between aligned words.
            let torn = self.durability == Durability::Pmem && rng.below(4) == 0;
            let kept = if torn { rng.below(8) as usize * 8 } else { version.len() };
            put(&mut after, *at, &version[..kept]);
        }
        drop(state);
        Self::with(sb, after)
    }

    /// The medium as another process finds it after this one was killed: the page cache survives.
    ///
    /// # Errors
    /// No memory.
    pub fn after_kill(&self, sb: &Superblock) -> Result<Self> {
        let state = self.state();
        let mut after = state.durable.clone();
        for (at, versions) in &state.volatile {
            put(&mut after, *at, versions.last().expect("a stored unit has a version"));
        }
        drop(state);
        Self::with(sb, after)
    }
}

impl Medium for SimMedium {
    fn mapping(&self) -> &Mapping {
        self.mapping.as_ref().expect("there until it is dropped")
    }

    fn stored(&self, offset: u64, len: u64) {
        if len == 0 || (CONTROL_OFFSET..CONTROL_OFFSET + CONTROL_SIZE).contains(&offset) {
            return;
        }
        let mut state = self.state();
        let mut at = offset / self.unit * self.unit;
        while at < offset + len {
            let live = self.live_unit(at);
            let versions = state.volatile.entry(at).or_default();
            // A few versions are enough to be found in any of them.
            if versions.len() >= 4 {
                versions.remove(0);
            }
            versions.push(live);
            at += self.unit;
        }
    }

    fn persist(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.durability == Durability::Memory {
            return Ok(()); // as on a real one: only `settle` makes anything durable
        }
        self.settle(offset, len)
    }

    fn settle(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.persists += 1;
        if state.faults.fail_persist.is_some_and(|n| state.persists >= n) {
            return Err(io::Error::from_raw_os_error(state.faults.errno));
        }
        let (first, last) = match self.durability {
            // A fence orders everything that was written back before.
            Durability::Pmem => (0, u64::MAX),
            _ => (offset / self.unit * self.unit, offset.saturating_add(len)),
        };
        let units: Vec<u64> = state.volatile.range(first..last).map(|(at, _)| *at).collect();
        for at in units {
            state.volatile.remove(&at);
            let live = self.live_unit(at);
            put(&mut state.durable, at, &live);
        }
        Ok(())
    }

    fn persist_all(&self) -> io::Result<()> {
        self.persist(0, u64::MAX)
    }

    fn settle_all(&self) -> io::Result<()> {
        self.settle(0, u64::MAX)
    }

    fn slow_persist(&self) -> bool {
        self.durability == Durability::Disk
    }
}
