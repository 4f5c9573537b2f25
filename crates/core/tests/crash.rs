//! Crash states on the simulated medium: at every flush, and between flushes, the medium may hold any part of what was
//! stored and not flushed. Whatever it holds, recovery must give a state that some commit left behind, and not an
//! older one than the last commit that returned.
//!
//! The oracle lies outside of the faulted path: for every position it remembers the whole contents.
//! `SUSTAIN_CRASH_STATES` sets how many states are drawn in all (100,000 unless told), `SUSTAIN_SEED` where to begin.

mod common;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::{Watched, setting, superblock};
use sustain_core::base::Base;
use sustain_core::capture::Mode;
use sustain_core::format::{Durability, FLAG_CLEAN, Superblock};
use sustain_core::medium::Medium;
use sustain_core::medium::sim::{Faults, Rng, SimMedium};
use sustain_core::objects::Objects;
use sustain_core::store::{Options, Store};
use sustain_core::{Error, Result};

const MIB2: u64 = 2 << 20;
const CELLS: u64 = 1500;

/// Everything that a store of this test holds.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct State {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    array: BTreeMap<u64, u64>,
}

fn options() -> Options {
    Options { capture: Some(Mode::Compare), verify_all: false, log_timeout: Duration::from_millis(50) }
}

fn cells<M: Medium + 'static>(store: &Store<M>) -> Result<*mut u64> {
    let opened = store.array(|w, o| {
        let a = o.array(w, "a", Some(("<i8", &[CELLS], 8)))?;
        Ok(((), a.offset, a.len))
    })?;
    Ok(opened.1.cast())
}

fn read<M: Medium + 'static>(store: &Store<M>) -> Result<State> {
    let mut state = State::default();
    store.look(|w, o| o.check(w).map(|_| ()))?;
    if let Ok(map) = store.change(|w, o| o.map(w, "m", false)) {
        store.look(|w, o| {
            o.map_scan(w, map, 0, usize::MAX, |k, v| {
                state.map.insert(k.to_vec(), v.to_vec());
            })
        })?;
    }
    if let Ok(((), p)) = store.array(|w, o| o.array(w, "a", None).map(|a| ((), a.offset, a.len))) {
        for i in 0..CELLS {
            // SAFETY: inside the array, which has CELLS aligned cells.
            let v = unsafe { p.cast::<u64>().add(i as usize).read() };
            if v != 0 {
                state.array.insert(i, v);
            }
        }
    }
    Ok(state)
}

/// Changes of one commit, in the store and in the oracle.
fn change(store: &Store<Watched>, state: &mut State, rng: &mut Rng) -> Result<()> {
    let map = store.change(|w, o| o.map(w, "m", true))?;
    for _ in 0..=rng.below(4) {
        let key = format!("k{}", rng.below(40)).into_bytes();
        if rng.below(4) == 0 {
            store.change(|w, o| o.map_remove(w, map, &key))?;
            state.map.remove(&key);
        } else {
            let value = vec![rng.draw() as u8; rng.below(300) as usize];
            store.change(|w, o| o.map_set(w, map, &key, &value))?;
            state.map.insert(key, value);
        }
    }
    if rng.below(2) == 0 {
        let p = cells(store)?;
        for _ in 0..=rng.below(6) {
            let (i, v) = (rng.below(CELLS), rng.draw() | 1);
            // SAFETY: inside the array; this thread alone writes it.
            unsafe { p.add(i as usize).write(v) };
            state.array.insert(i, v);
        }
    }
    Ok(())
}

/// Open what a crash left: it must be one of `history`, at or after `at_least`.
fn check(after: SimMedium, history: &BTreeMap<u64, State>, at_least: u64, seed: u64) {
    let sb = superblock(&after);
    let store = Store::open_on(after, sb, "sim".into(), options())
        .unwrap_or_else(|e| panic!("crash seed {seed}: recovery fails: {e}"));
    let position = store.position().expect("it is open");
    assert!(position >= at_least, "crash seed {seed}: recovered {position}, but {at_least} had returned");
    let expected = history.get(&position);
    let expected =
        expected.unwrap_or_else(|| panic!("crash seed {seed}: recovered {position}, where no commit ended"));
    let found = read(&store).unwrap_or_else(|e| panic!("crash seed {seed}: reading: {e}"));
    assert!(found == *expected, "crash seed {seed}: wrong state at {position}");
}

struct Scene {
    store: Store<Watched>,
    medium: Watched,
    history: BTreeMap<u64, State>,
    state: State,
    last: u64,
    rng: Rng,
}

impl Scene {
    /// A formatted store on a fresh medium; `log` is what the ring holds.
    fn new(durability: Durability, seed: u64, per_flush: u64, lies: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut sb = Superblock::new([9; 16], MIB2, MIB2, durability, 1).expect("sizes");
        let m = SimMedium::new(&sb).expect("memory");
        Base::format(&m, &mut sb).expect("format");
        let medium = Watched::new(m, rng.draw(), lies);
        let store = Store::open_on(medium.clone(), sb, "sim".into(), options()).expect("open");
        store.change(|w, _| Objects::format(w, 7)).expect("format the objects");
        let last = store.commit().expect("first commit");
        medium.draw_per_flush(per_flush);
        let state = State::default();
        Self { store, medium, history: BTreeMap::from([(last, state.clone())]), state, last, rng }
    }

    fn check_drawn(&self, drawn: Vec<(u64, SimMedium)>, at_least: u64) -> u64 {
        let n = drawn.len() as u64;
        drawn.into_iter().for_each(|(seed, m)| check(m, &self.history, at_least, seed));
        n
    }

    /// One commit; nothing is drawn.
    fn commit(&mut self) {
        change(&self.store, &mut self.state, &mut self.rng).expect("change");
        self.last = self.store.commit().expect("commit");
        self.history.insert(self.last, self.state.clone());
    }

    /// One commit, with the crash states of its flushes and of the moment after it; how many.
    fn step(&mut self) -> u64 {
        let before = self.last;
        self.commit();
        let during = self.medium.take();
        let mut n = self.check_drawn(during, before);
        if self.rng.below(6) == 0 {
            self.store.checkpoint().expect("checkpoint");
        }
        self.medium.draw();
        n += self.check_drawn(self.medium.take(), self.last);
        n
    }
}

fn walk(durability: Durability) {
    let states = setting("SUSTAIN_CRASH_STATES", 100_000) / 2;
    let seed = setting("SUSTAIN_SEED", 1);
    println!("{} states of {durability:?} from seed {seed}", states);
    let (mut drawn, mut round) = (0, 0);
    while drawn < states {
        let mut scene = Scene::new(durability, seed.wrapping_add(round), 3, false);
        for _ in 0..40 {
            drawn += scene.step();
        }
        round += 1;
    }
    println!("{drawn} crash states, {round} histories");
}

#[test]
fn pmem_crash_states() {
    walk(Durability::Pmem);
}

#[test]
fn disk_crash_states() {
    walk(Durability::Disk);
}

#[test]
fn the_checker_catches_a_medium_that_does_not_flush() {
    for durability in [Durability::Pmem, Durability::Disk] {
        let caught = (0..20).any(|seed| {
            catch_unwind(AssertUnwindSafe(|| {
                let mut scene = Scene::new(durability, seed, 3, true);
                (0..10).for_each(|_| assert!(scene.step() > 0));
            }))
            .is_err()
        });
        assert!(caught, "{durability:?}: lost commits were not noticed");
    }
}

#[test]
fn a_failed_flush_poisons_and_the_store_opens_at_the_last_durable_commit() {
    for durability in [Durability::Pmem, Durability::Disk] {
        for errno in [libc::EIO, libc::ENOSPC] {
            for fail in 1..40 {
                let mut scene = Scene::new(durability, fail, 0, false);
                let at = scene.medium.m.persists() + fail;
                scene.medium.m.set_faults(Faults { fail_persist: Some(at), errno });
                let failed = loop {
                    change(&scene.store, &mut scene.state, &mut scene.rng).expect("change");
                    match scene.store.commit() {
                        Ok(position) => {
                            scene.history.insert(position, scene.state.clone());
                            scene.last = position;
                            if scene.rng.below(3) == 0
                                && let Err(e) = scene.store.checkpoint()
                            {
                                break e;
                            }
                        }
                        Err(e) => break e,
                    }
                };
                assert!(
                    matches!(&failed, Error::Io { source, .. } if source.raw_os_error() == Some(errno)),
                    "{failed}"
                );
                change(&scene.store, &mut scene.state.clone(), &mut scene.rng).expect("memory still works");
                assert!(
                    matches!(scene.store.commit(), Err(Error::StorePoisoned(_))),
                    "it must stay poisoned"
                );
                // The commit that failed may or may not be there: its outcome is unknown until recovery tells.
                let sb = superblock(&scene.medium.m);
                let mut left = vec![scene.medium.m.after_kill(&sb).expect("memory")];
                left.extend((0..4).map(|n| scene.medium.m.crash(&sb, &mut Rng::new(n)).expect("memory")));
                for after in left {
                    let sb = superblock(&after);
                    let maybe = Store::open_on(after, sb, "sim".into(), options()).expect("reopen");
                    let position = maybe.position().expect("open");
                    let found = read(&maybe).expect("read");
                    assert!(position >= scene.last);
                    match scene.history.get(&position) {
                        Some(expected) => assert!(found == *expected),
                        None => {
                            assert!(found == scene.state, "neither the last commit nor the one that failed")
                        }
                    }
                }
            }
        }
    }
}

/// What a power loss may leave of a `memory` store: everything as it was closed, or a file that says it was open.
#[test]
fn a_closed_memory_store_survives_power_loss_and_an_open_one_never_looks_closed() {
    for seed in 0..50 {
        let mut scene = Scene::new(Durability::Memory, seed, 0, false);
        (0..5).for_each(|_| scene.commit());
        scene.store.close().expect("close");
        for draw in 0..20 {
            let after =
                scene.medium.m.crash(&superblock(&scene.medium.m), &mut Rng::new(draw)).expect("draw");
            assert!(
                superblock(&after).flags & FLAG_CLEAN != 0,
                "seed {seed}: a closed store that looks open"
            );
            check(after, &scene.history, scene.last, draw);
        }
        let sb = superblock(&scene.medium.m);
        let again = Store::open_on(scene.medium.clone(), sb, "sim".into(), options()).expect("open again");
        change(&again, &mut scene.state, &mut scene.rng).expect("change");
        again.commit().expect("commit");
        for draw in 0..20 {
            let after =
                scene.medium.m.crash(&superblock(&scene.medium.m), &mut Rng::new(draw)).expect("draw");
            assert!(
                superblock(&after).flags & FLAG_CLEAN == 0,
                "seed {seed}: an open store that looks closed"
            );
        }
    }
}
