//! What the crash tests have in common: a medium that is looked at while somebody works on it.

use std::sync::{Arc, Mutex};

use sustain_core::format::Superblock;
use sustain_core::medium::sim::{Rng, SimMedium};
use sustain_core::medium::{Mapping, Medium};

/// Crash states drawn at flushes, each with its seed.
struct Probe {
    rng: Rng,
    per_flush: u64,
    drawn: Vec<(u64, SimMedium)>,
}

/// A medium that the test looks at while a store works on it.
#[derive(Clone)]
pub struct Watched {
    pub m: Arc<SimMedium>,
    probe: Arc<Mutex<Probe>>,
    /// Broken on purpose: flushes do nothing.
    lies: bool,
}

impl Watched {
    /// Flushes of `m` are looked at once `draw_per_flush` says how many states to draw at each.
    pub fn new(m: SimMedium, seed: u64, lies: bool) -> Self {
        let probe = Probe { rng: Rng::new(seed), per_flush: 0, drawn: Vec::new() };
        Self { m: Arc::new(m), probe: Arc::new(Mutex::new(probe)), lies }
    }

    pub fn draw_per_flush(&self, states: u64) {
        self.probe.lock().unwrap().per_flush = states;
    }

    /// Crash states of this moment.
    pub fn draw(&self) {
        let mut probe = self.probe.lock().unwrap();
        for _ in 0..probe.per_flush {
            let seed = probe.rng.draw();
            let sb = superblock(&self.m);
            let after = self.m.crash(&sb, &mut Rng::new(seed)).expect("draw a crash state");
            probe.drawn.push((seed, after));
        }
    }

    /// What was drawn since the last time.
    pub fn take(&self) -> Vec<(u64, SimMedium)> {
        std::mem::take(&mut self.probe.lock().unwrap().drawn)
    }
}

impl Medium for Watched {
    fn mapping(&self) -> &Mapping {
        self.m.mapping()
    }
    fn stored(&self, offset: u64, len: u64) {
        self.m.stored(offset, len);
    }
    fn persist(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.draw();
        if self.lies { Ok(()) } else { self.m.persist(offset, len) }
    }
    fn persist_all(&self) -> std::io::Result<()> {
        self.draw();
        if self.lies { Ok(()) } else { self.m.persist_all() }
    }
    fn settle(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.draw();
        if self.lies { Ok(()) } else { self.m.settle(offset, len) }
    }
    fn settle_all(&self) -> std::io::Result<()> {
        self.draw();
        if self.lies { Ok(()) } else { self.m.settle_all() }
    }
    fn slow_persist(&self) -> bool {
        self.m.slow_persist()
    }
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// The newest superblock of a medium, as opening a file would find it.
pub fn superblock(m: &SimMedium) -> Superblock {
    sustain_core::tail::read_superblock(m.mapping()).expect("one superblock is always valid")
}
