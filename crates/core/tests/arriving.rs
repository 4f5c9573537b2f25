//! A store that is arriving, without a network: what its bits promise to whom, over reboots and failures.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sustain_core::arrival::{State, path_beside};
use sustain_core::control::Lock;
use sustain_core::fetcher::{Fetcher, Source};
use sustain_core::format::{Durability, Superblock};
use sustain_core::replica::{Replica, SnapshotStart};
use sustain_core::store::{Options, Store, create};
use sustain_core::{Error, tail};

const PAGES: u64 = 512;

struct Hosts {
    _folder: tempfile::TempDir,
    source: PathBuf,
    new: PathBuf,
}

/// A source with a map of 100 entries, and a store that is to become its copy.
fn hosts() -> Hosts {
    let folder = tempfile::tempdir().unwrap();
    let (source, new) = (folder.path().join("a.sus"), folder.path().join("b.sus"));
    let sb = Superblock::for_new_store(None, PAGES * 4096, 2 << 20, 1).unwrap();
    create(&source, sb, Some(Durability::Disk)).unwrap();
    let store = Store::open(&source, Options::default()).unwrap();
    put(&store, 0, 100);
    store.close().unwrap();
    let mut replica = Replica::open(&source).unwrap();
    let (end, sb) = (replica.end(), replica.superblock().clone());
    replica.close().unwrap();
    let start = SnapshotStart {
        image_size: sb.image_size,
        log_size: sb.log_size,
        store_uuid: sb.store_uuid,
        epoch: sb.epoch,
        history: sb.history,
        start: end,
    };
    Replica::create_arriving(&new, &start, Some(Durability::Disk), Duration::from_millis(300)).unwrap();
    Hosts { _folder: folder, source, new }
}

fn put(store: &Store<sustain_core::medium::FileMedium>, first: u32, count: u32) {
    for i in first..first + count {
        store
            .change(|w, o| {
                let users = o.map(w, "users", true)?;
                o.map_set(w, users, &i.to_le_bytes(), &[7; 300])
            })
            .unwrap();
    }
    store.commit().unwrap();
}

fn fetch(h: &Hosts, fetcher: &Fetcher, first: u64, count: u64) -> u64 {
    fetcher.put(first, count, &Source::open(&h.source).unwrap().read(first, count).unwrap()).unwrap()
}

/// The words say that they are of another boot.
fn reboot(path: &Path) {
    let file = OpenOptions::new().write(true).open(path_beside(path)).unwrap();
    file.write_all_at(&[0xEE; 16], 0x1000).unwrap();
}

#[test]
fn only_durable_pages_are_here_after_a_reboot() {
    let h = hosts();
    let fetcher = Fetcher::open(&h.new).unwrap();
    assert_eq!(fetcher.arrival().next_missing(0, 1000), Some((0, PAGES)));
    assert_eq!(fetch(&h, &fetcher, 0, 10), 10);
    fetcher.settle().unwrap();
    assert_eq!(fetch(&h, &fetcher, 20, 10), 10);
    assert_eq!(fetch(&h, &fetcher, 5, 20), 10, "those that are here are not taken again");
    assert_eq!(fetcher.arrival().counts(), (PAGES, 30, 0));
    assert_eq!(fetcher.arrival().next_missing(3, 7), Some((30, 7)));
    fetcher.release();
    drop(fetcher);
    // A process that ends takes nothing away.
    let again = Fetcher::open(&h.new).unwrap();
    assert_eq!(again.arrival().counts().1, 30);
    drop(again);
    reboot(&h.new);
    let after = Fetcher::open(&h.new).unwrap();
    assert_eq!(after.arrival().counts().1, 10);
    assert!(after.arrival().is_here(9) && !after.arrival().is_here(10) && !after.arrival().is_here(20));
}

#[test]
fn requests_reach_the_fetcher_and_are_asked_again() {
    let h = hosts();
    let fetcher = Fetcher::open(&h.new).unwrap();
    let a = fetcher.arrival();
    for page in [3, 7, 3, PAGES - 1] {
        a.ask(page);
    }
    let mut wanted = fetcher.wanted(0);
    wanted.sort_unstable();
    assert_eq!(wanted, [3, 7, PAGES - 1]);
    assert!(fetcher.wanted(0).is_empty());
    // More than there are slots: none is lost for who asks again.
    for page in 0..300 {
        a.ask(page);
    }
    let mut seen = fetcher.wanted(0);
    assert!(!seen.is_empty() && seen.len() < 300);
    while seen.len() < 300 {
        for page in (0..300).filter(|p| !seen.contains(p)) {
            a.ask(page);
        }
        seen.extend(fetcher.wanted(0));
    }
    fetch(&h, &fetcher, 0, 8);
    a.ask(5);
    assert!(fetcher.wanted(0).is_empty(), "it is here");
}

#[test]
fn who_waits_hears_of_a_failure_and_of_the_limit() {
    let h = hosts();
    let fetcher = Fetcher::open(&h.new).unwrap();
    let missing = |e: Error| match e {
        Error::StoreArriving(what) => what,
        e => panic!("{e}"),
    };
    let text = missing(fetcher.arrival().need(2).unwrap_err());
    assert!(text.contains("page 2") && text.contains("the source does not send it"), "{text}");
    let long = "ä".repeat(400); // longer than there is room for, and no cut inside a character
    fetcher.fail(&format!("x{long}"));
    assert_eq!(fetcher.arrival().state(), State::Failed);
    let text = missing(fetcher.arrival().need(2).unwrap_err());
    assert!(text.contains("xää") && !text.contains('\u{FFFD}'), "{text}");
    fetcher.release();
    drop(fetcher);
    // Another try begins without it.
    let again = Fetcher::open(&h.new).unwrap();
    assert_eq!(again.arrival().state(), State::Arriving);
    assert_eq!(again.arrival().failure(), "");
    assert!(matches!(Fetcher::open(&h.new), Err(Error::StoreBusy(_))));
    again.release();
    let text = missing(again.arrival().need(2).unwrap_err());
    assert!(text.contains("nobody fetches"), "{text}");
}

#[test]
fn a_checkpoint_settles_what_its_commits_stand_on() {
    if !sustain_core::pager::available() {
        return; // opening would wait for all of it
    }
    let h = hosts();
    let fetcher = Fetcher::open(&h.new).unwrap();
    fetch(&h, &fetcher, 0, 256);
    fetch(&h, &fetcher, 256, 200);
    let store = Store::open(&h.new, Options::default()).unwrap();
    put(&store, 100, 50);
    let before = store.superblock().unwrap().tail;
    store.checkpoint().unwrap();
    assert!(store.superblock().unwrap().tail.lsn > before.lsn);
    store.close().unwrap();
    drop(store);
    drop(fetcher);
    // The log of those commits is gone: pages that came again from the source would undo them.
    reboot(&h.new);
    let fetcher = Fetcher::open(&h.new).unwrap();
    assert_eq!(fetcher.arrival().counts().1, 456);
    fetch(&h, &fetcher, 256, 256);
    fetcher.complete().unwrap();
    assert!(fetcher.try_finish().unwrap());
    assert!(!path_beside(&h.new).exists());
    let store = Store::open(&h.new, Options { verify_all: true, ..Options::default() }).unwrap();
    let count = store.change(|w, o| {
        let users = o.map(w, "users", false)?;
        o.map_len(w, users)
    });
    assert_eq!(count.unwrap(), 150);
}

#[test]
fn nothing_is_believed_of_a_file_that_is_not_its_own() {
    let h = hosts();
    let own = path_beside(&h.new);
    let good = std::fs::read(&own).unwrap();
    for damage in [0usize, 9, 20, 40, 50, 60, 77] {
        let mut bad = good.clone();
        bad[damage] ^= 1;
        std::fs::write(&own, &bad).unwrap();
        assert!(Fetcher::open(&h.new).is_err(), "byte {damage}");
    }
    std::fs::write(&own, &good[..0x2000]).unwrap();
    assert!(matches!(Fetcher::open(&h.new), Err(Error::StoreCorrupt(_))));
    std::fs::remove_file(&own).unwrap();
    assert!(matches!(Store::open(&h.new, Options::default()), Err(Error::StoreCorrupt(_))));
}

#[test]
fn an_opener_waits_for_a_fetcher_that_finishes_and_not_for_an_application() {
    let h = hosts();
    let open = |path: &Path| Store::open(path, Options::default());
    // What a fetcher does that makes of a complete store an ordinary one.
    let file = OpenOptions::new().read(true).write(true).open(&h.source).unwrap();
    assert!(Lock::Writer.take(&file).unwrap());
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| open(&h.source));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!opener.is_finished(), "it waits");
        Lock::Writer.release(&file);
        let store = opener.join().unwrap().unwrap();
        let began = Instant::now();
        assert!(matches!(open(&h.source), Err(Error::StoreBusy(_))));
        assert!(began.elapsed() < Duration::from_secs(4));
        store.close().unwrap();
    });
}

#[test]
fn openers_that_need_every_page_refuse() {
    let h = hosts();
    let arriving = |e: Error| assert!(matches!(e, Error::StoreArriving(_)), "{e}");
    arriving(Store::open_readonly(&h.new, Options::default()).err().unwrap());
    arriving(Replica::open(&h.new).err().unwrap());
    arriving(Source::open(&h.new).err().unwrap());
    let tail = tail::LogTail::open(&h.new).unwrap();
    arriving(tail.image(0, 1).unwrap_err());
    arriving(tail.next_used_page(0).unwrap_err());
    // Never over a file that is there.
    let replica = Replica::open_arriving(&h.new).unwrap();
    let sb = replica.superblock().clone();
    drop(replica);
    let start = SnapshotStart {
        image_size: sb.image_size,
        log_size: sb.log_size,
        store_uuid: sb.store_uuid,
        epoch: sb.epoch,
        history: sb.history,
        start: sb.tail,
    };
    assert!(Replica::create_arriving(&h.new, &start, None, Duration::from_secs(1)).is_err());
    assert!(path_beside(&h.new).exists());
}
