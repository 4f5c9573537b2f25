//! Crash states of a receiver on the simulated medium: whatever a crash leaves, recovery gives a state that the primary
//! had, and not an older one than what had been acknowledged; a snapshot that is not complete is refused by
//! applications; an epoch that was made durable stays.
//!
//! The oracle is the primary, which lies on a file of its own. `SUSTAIN_CRASH_STATES` sets how many states are drawn
//! in all (20,000 unless told), `SUSTAIN_SEED` where to begin.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Watched, setting, superblock};
use sustain_core::Error;
use sustain_core::base::Base;
use sustain_core::capture::Mode;
use sustain_core::checksum::crc;
use sustain_core::format::{Durability, FLAG_INCOMPLETE, PAGE, Superblock};
use sustain_core::medium::sim::{Faults, Rng, SimMedium};
use sustain_core::medium::{FileMedium, Medium};
use sustain_core::replica::Replica;
use sustain_core::store::{Options, Store, create};
use sustain_core::tail::LogTail;

const MIB2: u64 = 2 << 20;

fn options() -> Options {
    Options { capture: Some(Mode::Compare), verify_all: true, log_timeout: Duration::from_millis(50) }
}

/// The map's entries, added up: enough to tell states apart.
fn contents<M: Medium + 'static>(store: &Store<M>) -> u64 {
    let Ok(map) = store.change(|w, o| o.map(w, "m", false)) else { return 0 };
    let mut total = 0u64;
    let read = store.look(|w, o| {
        o.check(w)?;
        o.map_scan(w, map, 0, usize::MAX, |k, v| {
            total = total.wrapping_add(u64::from(crc(crc(0, k), v)));
        })
    });
    read.expect("a recovered store reads");
    total
}

/// What must hold of any crash state.
#[derive(Clone, Copy)]
struct Promise {
    /// The snapshot may be incomplete, and then is refused.
    snapshot: bool,
    /// End of what was acknowledged.
    end: u64,
    epoch: u64,
}

struct Scene {
    _dir: tempfile::TempDir,
    primary: Store<FileMedium>,
    tail: LogTail,
    /// Contents of the primary at each position.
    states: BTreeMap<u64, u64>,
    medium: Watched,
    rng: Rng,
    round: u64,
    checked: u64,
}

impl Scene {
    fn new(durability: Durability, seed: u64) -> (Self, Superblock) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.sus");
        let sb = Superblock::new([7; 16], MIB2, MIB2, Durability::Memory, 1).expect("sizes");
        create(&path, sb, Some(Durability::Memory)).expect("create");
        let primary = Store::open(&path, options()).expect("open");
        let tail = LogTail::open(&path).expect("tail");
        let theirs = primary.superblock().expect("open");
        let mut sb = Superblock::new(theirs.store_uuid, MIB2, MIB2, durability, 1).expect("sizes");
        sb.replica_uuid = [8; 16];
        sb.history.clone_from(&theirs.history);
        let mut rng = Rng::new(seed);
        let m = SimMedium::new(&sb).expect("memory");
        let medium = Watched::new(m, rng.draw(), false);
        let mut scene =
            Self { _dir: dir, primary, tail, states: BTreeMap::new(), medium, rng, round: 0, checked: 0 };
        (0..3).for_each(|_| scene.commit());
        scene.primary.checkpoint().expect("checkpoint");
        sb.tail = scene.primary.superblock().expect("open").tail;
        sb.flags = FLAG_INCOMPLETE;
        (scene, sb)
    }

    fn commit(&mut self) {
        self.round += 1;
        let map = self.primary.change(|w, o| o.map(w, "m", true)).expect("the map");
        for _ in 0..=self.rng.below(3) {
            let key = format!("k{}", self.rng.below(30)).into_bytes();
            let len = if self.rng.below(10) == 0 { 20_000 } else { self.rng.below(900) };
            let value = vec![self.round as u8; len as usize];
            self.primary.change(|w, o| o.map_set(w, map, &key, &value)).expect("set");
        }
        let lsn = self.primary.commit().expect("commit");
        self.states.insert(lsn, contents(&self.primary));
    }

    /// A replica with the primary's contents as of now.
    fn snapshot(&mut self, mut sb: Superblock) -> Replica<Watched> {
        Base::format(&self.medium, &mut sb).expect("format");
        self.medium.draw_per_flush(3);
        let mut replica = Replica::open_on(self.medium.clone(), sb, "b".into()).expect("open");
        let at = replica.end().lsn;
        let promise = Promise { snapshot: true, end: at, epoch: 1 };
        let mut page = 0;
        loop {
            page = self.tail.next_used_page(page).expect("pages");
            if page * PAGE as u64 >= MIB2 {
                break;
            }
            let (p, len) = self.tail.image(page, 1).expect("a page");
            // SAFETY: a page of the image, which stands still.
            replica.write_pages(page, unsafe { std::slice::from_raw_parts(p, len) }, None).expect("write");
            page += 1;
            if self.rng.below(8) == 0 {
                self.medium.draw();
                self.check(promise);
            }
        }
        replica.finish_snapshot().expect("finish");
        self.check(promise);
        self.medium.draw();
        self.check(Promise { snapshot: false, ..promise });
        replica
    }

    /// Log bytes up to the primary's end, or up to somewhere in the middle of a group, in pieces.
    fn feed(&mut self, replica: &mut Replica<Watched>, mut at: u64, epoch: u64) -> u64 {
        let end = self.primary.position().expect("open");
        let stop = if self.rng.below(4) == 0 { at + self.rng.below(end - at + 1) } else { end };
        while at < stop {
            let want = (1 + self.rng.below(6000)).min(stop - at);
            let before = Promise { snapshot: false, end: replica.end().lsn, epoch };
            let (p, len) = self.tail.log(at, want).expect("log");
            let (to, room) = replica.buffer(len).expect("room");
            let len = len.min(room);
            // SAFETY: bytes of the log, which stands still, into a buffer with room for them.
            unsafe { std::ptr::copy_nonoverlapping(p, to, len) };
            replica.advance(len).expect("advance");
            at += len as u64;
            self.check(before);
        }
        at
    }

    /// Every state that was drawn since the last check keeps the promise.
    fn check(&mut self, promise: Promise) {
        for (seed, after) in self.medium.take() {
            self.checked += 1;
            let sb = superblock(&after);
            if seed % 4 == 0 {
                let replica = Replica::open_on(after, sb.clone(), "b".into());
                let replica = replica.unwrap_or_else(|e| {
                    panic!("crash seed {seed}, {} acknowledged, {sb:?}: the receiver: {e}", promise.end)
                });
                let end = replica.end().lsn;
                assert!(end >= promise.end && self.states.contains_key(&end), "crash seed {seed}: at {end}");
                assert!(replica.epoch() >= promise.epoch, "crash seed {seed}: epoch {}", replica.epoch());
                continue;
            }
            match Store::open_on(after, sb.clone(), "b".into(), options()) {
                Ok(store) => {
                    let lsn = store.position().expect("open");
                    assert!(lsn >= promise.end, "crash seed {seed}: {lsn}, {} acknowledged", promise.end);
                    assert_eq!(self.states.get(&lsn), Some(&contents(&store)), "crash seed {seed}: at {lsn}");
                }
                Err(Error::StoreUntrusted(_)) if promise.snapshot && sb.flags & FLAG_INCOMPLETE != 0 => {}
                Err(e) => panic!("crash seed {seed}, {} acknowledged, {sb:?}: {e}", promise.end),
            }
        }
    }

    /// A new receiver of what the last one left in the page cache.
    fn reopen(&self) -> Replica<Watched> {
        let sb = superblock(&self.medium.m);
        Replica::open_on(self.medium.clone(), sb, "b".into()).expect("open again")
    }
}

/// The life of a replica: snapshot, stream with cuts, restarts and checkpoints, a newer epoch, promotion.
fn live(durability: Durability, seed: u64) -> u64 {
    let (mut scene, sb) = Scene::new(durability, seed);
    let mut replica = scene.snapshot(sb);
    let mut at = replica.end().lsn;
    for _ in 0..40 {
        (0..=scene.rng.below(3)).for_each(|_| scene.commit());
        at = scene.feed(&mut replica, at, 1);
        let now = Promise { snapshot: false, end: replica.end().lsn, epoch: 1 };
        match scene.rng.below(8) {
            0 => {
                replica.discard_partial();
                at = replica.end().lsn;
            }
            1 => {
                replica.checkpoint().expect("checkpoint");
            }
            2 => {
                drop(replica); // killed
                replica = scene.reopen();
                at = replica.end().lsn;
            }
            3 => {
                replica.close().expect("close");
                replica = scene.reopen();
                at = replica.end().lsn;
            }
            _ => {}
        }
        assert!(replica.end().lsn >= now.end);
        scene.check(now);
        scene.medium.draw();
        scene.check(now);
    }
    let mut now = Promise { snapshot: false, end: replica.end().lsn, epoch: 1 };
    replica.set_epoch(5).expect("set_epoch");
    scene.check(now);
    now.epoch = 5;
    scene.medium.draw();
    scene.check(now);
    let held = scene.states[&now.end];
    let begins = replica.promote(6).expect("promote");
    assert_eq!(begins, now.end);
    scene.states.insert(replica.end().lsn, held);
    scene.check(now);
    now = Promise { snapshot: false, end: replica.end().lsn, epoch: 6 };
    scene.medium.draw();
    scene.check(now);
    scene.checked
}

fn walk(durability: Durability) {
    let states = setting("SUSTAIN_CRASH_STATES", 20_000) / 2;
    let seed = setting("SUSTAIN_SEED", 1);
    println!("{states} states of {durability:?} from seed {seed}");
    let (mut checked, mut round) = (0, 0);
    while checked < states {
        checked += live(durability, seed.wrapping_add(round));
        round += 1;
    }
    println!("{checked} crash states, {round} lives");
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
fn a_failed_flush_poisons_and_nothing_acknowledged_is_lost() {
    for durability in [Durability::Pmem, Durability::Disk] {
        for errno in [libc::EIO, libc::ENOSPC] {
            for fail in 1..25 {
                let (mut scene, sb) = Scene::new(durability, fail);
                let mut replica = scene.snapshot(sb);
                scene.medium.draw_per_flush(0);
                let at = scene.medium.m.persists() + fail;
                scene.medium.m.set_faults(Faults { fail_persist: Some(at), errno });
                let failed = loop {
                    scene.commit();
                    let (from, end) = (replica.end().lsn, scene.primary.position().expect("open"));
                    let (p, len) = scene.tail.log(from, end - from).expect("log");
                    let (to, room) = match replica.buffer(len) {
                        Ok(given) => given,
                        Err(e) => break e,
                    };
                    assert_eq!(room, len);
                    // SAFETY: bytes of the log, which stands still, into a buffer with room for them.
                    unsafe { std::ptr::copy_nonoverlapping(p, to, len) };
                    if let Err(e) = replica.advance(len) {
                        break e;
                    }
                    if scene.rng.below(4) == 0
                        && let Err(e) = replica.checkpoint()
                    {
                        break e;
                    }
                };
                let said =
                    matches!(&failed, Error::Io { source, .. } if source.raw_os_error() == Some(errno));
                assert!(said, "{failed}");
                assert!(
                    matches!(replica.checkpoint(), Err(Error::StorePoisoned(_))),
                    "it must stay poisoned"
                );
                let promise = Promise { snapshot: false, end: replica.end().lsn, epoch: 1 };
                scene.medium.draw_per_flush(8);
                scene.medium.draw();
                scene.check(promise);
            }
        }
    }
}
