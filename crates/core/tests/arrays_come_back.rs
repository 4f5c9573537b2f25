//! A rollback brings back arrays that were deleted or moved, as of the last commit: what the application had changed
//! in their memory before is gone. The pages are then in no array that is open, so that capture alone misses them.

use sustain_core::format::{Durability, Superblock};
use sustain_core::store::{Options, Store, create};

const LEN: usize = 8000;

type FileStore = Store<sustain_core::medium::FileMedium>;

fn open(store: &FileStore, name: &str, shape: u64) -> *mut u8 {
    let array = store.array(|w, o| {
        let a = o.array(w, name, Some(("u1", &[shape], 1)))?;
        Ok(((), a.offset, a.len))
    });
    array.expect("the array").1
}

/// Whether the array begins with `LEN` times `value`; it then holds the next value.
fn filled(store: &FileStore, shape: u64, value: u8) -> bool {
    let base = open(store, "a", shape);
    // SAFETY: the array's memory, at least `LEN` bytes, which only this thread uses.
    let memory = unsafe { std::slice::from_raw_parts_mut(base, LEN) };
    let same = memory.iter().all(|b| *b == value);
    memory.fill(value + 1);
    same
}

#[test]
fn deleted_and_moved_arrays_come_back_as_committed() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s.sus");
    let sb = Superblock::new([7; 16], 8 << 20, 2 << 20, Durability::Memory, 1).expect("sizes");
    create(&path, sb, Some(Durability::Memory)).expect("create");
    let store = Store::open(&path, Options::default()).expect("open");

    assert!(filled(&store, LEN as u64, 0));
    store.commit().expect("commit");
    assert!(filled(&store, LEN as u64, 1), "committed as filled");
    store.change(|w, o| o.delete(w, "a")).expect("delete");
    store.rollback().expect("rollback");
    assert!(filled(&store, LEN as u64, 1), "back after a delete");
    store.rollback().expect("rollback");

    // Something behind the array, so that it has to move.
    open(&store, "wall", 1);
    store.commit().expect("commit");
    assert!(filled(&store, LEN as u64, 1));
    assert!(filled(&store, 1 << 20, 2), "moved with what the application had written");
    store.rollback().expect("rollback");
    assert!(filled(&store, LEN as u64, 1), "back after a move");
    store.close().expect("close");
}
