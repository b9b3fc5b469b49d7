//! What every storage promises.

use praas_runtime::mailbox::MailboxImage;
use praas_runtime::state::ObjectMeta;
use praas_runtime::swap::{
    Heir, ImageKind, ProcessImage, Storage, StorageError, SwapConfig, SwapError, Through,
    ThroughError, ThroughWriter, swap_in, swap_in_lazily, swap_out,
};
use praas_transport::wire::Incarnation;
use praas_transport::{Buf, BufPool};

use super::{Kind, Lab};

/// Bytes of an object that takes several parts on every server: a part has 8 MiB.
const LARGE_BYTES: usize = (20 << 20) + 12_345;

/// Bytes that differ from place to place.
fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pattern = vec![0; bytes];
    random.fill(&mut pattern);
    pattern
}

fn whole(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let size = storage.size(name).unwrap();
    let mut bytes = vec![0; size as usize];
    storage.read(name, 0, &mut bytes).unwrap();
    bytes
}

fn listed(storage: &dyn Storage, prefix: &str) -> Vec<String> {
    let mut names = storage.list(prefix).unwrap();
    names.sort();
    names
}

/// An object is there once it was created, with all parts in order; creating it again changes
/// nothing.
pub fn objects_are_created_once(lab: &Lab) {
    let storage = lab.storage();
    storage.check().unwrap();
    storage.put_new("a/x", &[b"", b"12", b"", b"3"]).unwrap();
    storage.put_new("a/empty", &[]).unwrap();
    for other in [&b"other"[..], b"", b"123"] {
        let error = storage.put_new("a/x", &[other]).unwrap_err();
        assert!(matches!(&error, StorageError::Exists { name } if name == "a/x"));
        let error = storage.put_new("a/empty", &[other]).unwrap_err();
        assert!(matches!(error, StorageError::Exists { .. }));
    }
    assert_eq!(whole(&*storage, "a/x"), b"123");
    assert_eq!(storage.size("a/empty").unwrap(), 0);
    // Somebody who comes later sees the same.
    let later = lab.storage();
    assert_eq!(whole(&*later, "a/x"), b"123");
    assert_eq!(listed(&*later, ""), ["a/empty", "a/x"]);
    let error = later.put_new("a/x", &[b"4"]).unwrap_err();
    assert!(matches!(error, StorageError::Exists { .. }));
}

/// Thousands of slices are one object.
pub fn many_slices_are_one_object(lab: &Lab) {
    let storage = lab.storage();
    let bytes = pattern(5000, 1);
    let slices: Vec<&[u8]> = bytes.chunks(1).collect();
    storage.put_new("many", &slices).unwrap();
    assert_eq!(whole(&*storage, "many"), bytes);
}

/// A read fills all that it was asked for, or says why not.
pub fn reads_are_exact(lab: &Lab) {
    let storage = lab.storage();
    let bytes = pattern(100_000, 2);
    storage.put_new("o", &[&bytes]).unwrap();
    for (offset, length) in [(0, 1), (0, 100_000), (99_999, 1), (4096, 8192), (77, 0)] {
        let mut into = vec![0; length];
        storage.read("o", offset as u64, &mut into).unwrap();
        assert_eq!(into, bytes[offset..offset + length]);
    }
    storage.read("o", 100_000, &mut []).unwrap();
    for (offset, length) in [(99_999, 2), (100_000, 1), (200_000, 1)] {
        let error = storage.read("o", offset, &mut vec![0; length]).unwrap_err();
        let end = offset + length as u64;
        assert!(
            matches!(&error, StorageError::Short { end: at, .. } if *at == end),
            "{offset}, {length}: {error:?}"
        );
    }
    for length in [0, 1] {
        let error = storage.read("none", 0, &mut vec![0; length]).unwrap_err();
        assert!(matches!(error, StorageError::NotFound { .. }), "{error:?}");
    }
}

/// A listing has what begins with the prefix, and all of it.
pub fn listings_are_complete(lab: &Lab) {
    let storage = lab.storage();
    assert_eq!(listed(&*storage, "a/p/"), Vec::<String>::new());
    for name in ["a/p/x-1", "a/p/x-2", "a/p/y", "a/pp/x", "b"] {
        storage.put_new(name, &[b"1"]).unwrap();
    }
    assert_eq!(listed(&*storage, "a/p/"), ["a/p/x-1", "a/p/x-2", "a/p/y"]);
    assert_eq!(listed(&*storage, "a/p/x"), ["a/p/x-1", "a/p/x-2"]);
    assert_eq!(listed(&*storage, "a/p").len(), 4);
    assert_eq!(listed(&*storage, "").len(), 5);
    storage.delete("a/p/x-1").unwrap();
    assert_eq!(listed(&*storage, "a/p/x"), ["a/p/x-2"]);
    // Servers give long listings in pages, of a thousand names often.
    let names: Vec<_> = (0..1234).map(|at| format!("many/{at:04}")).collect();
    for name in &names {
        storage.put_new(name, &[]).unwrap();
    }
    assert_eq!(listed(&*storage, "many/"), names);
}

/// What was deleted is not there, and its name is free.
pub fn what_is_deleted_is_gone(lab: &Lab) {
    let storage = lab.storage();
    for round in 0..2_u8 {
        storage.put_new("a/p/o", &[&[round; 10]]).unwrap();
        assert_eq!(whole(&*storage, "a/p/o"), [round; 10]);
        storage.delete("a/p/o").unwrap();
        for error in [
            storage.delete("a/p/o").unwrap_err(),
            storage.size("a/p/o").unwrap_err(),
            storage.read("a/p/o", 0, &mut [0; 2]).unwrap_err(),
        ] {
            assert!(matches!(error, StorageError::NotFound { .. }), "{error:?}");
        }
        assert!(storage.list("a").unwrap().is_empty());
    }
}

/// Names may be as long, as deep and as odd as the trait says, and not more.
pub fn names_have_their_limits(lab: &Lab) {
    let storage = lab.storage();
    // Servers that keep objects as files need room for names of their own.
    let long = "x".repeat(if lab.kind == Kind::S3 { 150 } else { 255 });
    let good = [
        "A-Z_a.z0~9%2F",
        "~x/%",
        "1/2/3/4/5/6/7/8",
        "a/manifest-0000000000000003-0000000000000011",
        &long,
    ];
    for name in good {
        storage.put_new(name, &[name.as_bytes()]).unwrap();
        assert_eq!(whole(&*storage, name), name.as_bytes());
    }
    let mut expected = good.map(String::from);
    expected.sort();
    assert_eq!(listed(&*storage, ""), expected);
    let too_long = "x".repeat(256);
    for name in [
        "",
        "..",
        "a/../b",
        "/a",
        "a//b",
        "a/",
        ".a",
        "a b",
        "ä",
        "a:b",
        "1/2/3/4/5/6/7/8/9",
        &too_long,
    ] {
        for error in [
            storage.put_new(name, &[]).err(),
            storage.size(name).err(),
            storage.read(name, 0, &mut [0]).err(),
            storage.delete(name).err(),
        ] {
            assert!(
                matches!(error, Some(StorageError::BadName { .. })),
                "{name}: {error:?}"
            );
        }
    }
    assert!(storage.list("../").is_err());
}

/// A large object is like a small one: whole, exclusive, and read in any piece.
pub fn large_objects_are_whole(lab: &Lab) {
    let storage = lab.storage();
    let bytes = pattern(LARGE_BYTES, 3);
    let (first, second) = bytes.split_at(LARGE_BYTES / 3);
    storage.put_new("a/large", &[first, second]).unwrap();
    assert_eq!(storage.size("a/large").unwrap(), LARGE_BYTES as u64);
    let error = storage.put_new("a/large", &[second, first]).unwrap_err();
    assert!(matches!(error, StorageError::Exists { .. }), "{error:?}");
    let error = storage.put_new("a/large", &[b"small"]).unwrap_err();
    assert!(matches!(error, StorageError::Exists { .. }), "{error:?}");
    assert!(whole(&*storage, "a/large") == bytes, "other bytes");
    let mut piece = vec![0; 1 << 20];
    for at in [
        0,
        (8 << 20) - 500_000,
        (16 << 20) - 1,
        LARGE_BYTES - (1 << 20),
    ] {
        storage.read("a/large", at as u64, &mut piece).unwrap();
        assert!(piece == bytes[at..at + piece.len()], "other bytes at {at}");
    }
    assert_eq!(listed(&*storage, "a/"), ["a/large"]);
    storage.delete("a/large").unwrap();
    assert!(storage.list("").unwrap().is_empty());
    storage.put_new("a/large", &[b"small"]).unwrap();
    assert_eq!(whole(&*storage, "a/large"), b"small");
}

/// Of those who create an object at the same time one does, and it is his.
pub fn one_of_many_creates(lab: &Lab) {
    if lab.kind == Kind::S3 {
        // This server looks whether the object is there, and renames a file later.
        return println!("SKIP s3 one_of_many_creates: s3s-fs is not exclusive for those at once");
    }
    for (name, bytes) in [("small", 100), ("large", LARGE_BYTES)] {
        let create = |seed: u64| {
            let bytes = pattern(bytes, seed);
            let created = lab.storage().put_new(name, &[&bytes]);
            match created {
                Ok(()) => Some(bytes),
                Err(StorageError::Exists { .. }) => None,
                Err(error) => panic!("{error:?}"),
            }
        };
        let created: Vec<_> = std::thread::scope(|scope| {
            let creators: Vec<_> = (0..6)
                .map(|seed| scope.spawn(move || create(seed)))
                .collect();
            let joined = creators.into_iter().map(|creator| creator.join().unwrap());
            joined.flatten().collect()
        });
        assert_eq!(created.len(), 1, "{name} was created by so many");
        assert!(
            whole(&*lab.storage(), name) == created[0],
            "{name} is another's"
        );
    }
}

fn image(incarnation: u64, seed: u64) -> ProcessImage {
    let pool = BufPool::new(1 << 30);
    let object = |key: &str, bytes, seed| {
        let buf: Buf = pool.copy_from(&pattern(bytes, seed)).unwrap();
        let meta = ObjectMeta {
            version: 1,
            written_unix_ms: 2,
            bytes: bytes as u64,
        };
        (key.to_owned(), buf, meta)
    };
    ProcessImage {
        kind: ImageKind::Final,
        state_version: 1,
        application: "an app".into(),
        process: "p/1".into(),
        incarnation: Incarnation(incarnation),
        state: vec![
            object("large", LARGE_BYTES, seed),
            object("small", 10, seed),
        ],
        mailbox: MailboxImage::default(),
        sessions: Vec::new(),
        files: Vec::new(),
    }
}

/// Objects are written through beside images: they are there, until a newer incarnation begins.
pub fn objects_are_written_through(lab: &Lab) {
    let storage = lab.storage();
    let name = ("an app", "p/1");
    swap_out(&*storage, &image(1, 1), &SwapConfig::default()).unwrap();
    let pool = BufPool::new(1 << 30);
    let object = |seed: u64, bytes: usize| {
        let buf: Buf = pool.copy_from(&pattern(bytes, seed)).unwrap();
        let meta = ObjectMeta {
            version: seed,
            written_unix_ms: 2,
            bytes: bytes as u64,
        };
        Through::Object(buf, meta)
    };
    let writer = ThroughWriter::new(&*storage, name, Incarnation(1));
    assert!(writer.check().is_err(), "it has no right yet");
    writer.license().unwrap();
    let entries = [
        ("large".into(), object(5, LARGE_BYTES)),
        ("small".into(), Through::Nothing(6)),
        ("new".into(), object(7, 0)),
    ];
    writer.write(1, &entries).unwrap();
    let heir = Heir {
        incarnation: Incarnation(2),
        life: Incarnation(0),
    };
    let loaded = swap_in_lazily(&storage, &pool, name, heir, u64::MAX).unwrap();
    let mut state = loaded.unwrap().0.image.state;
    state.sort_by(|a, b| a.0.cmp(&b.0));
    let keys: Vec<_> = state.iter().map(|(key, ..)| &**key).collect();
    assert_eq!(keys, ["large", "new"]);
    assert!(state[0].1[..] == pattern(LARGE_BYTES, 5), "other bytes");
    let refused = writer.write(2, &entries[2..]).unwrap_err();
    assert!(matches!(refused, ThroughError::Fenced { .. }), "{refused}");
    // Both images that are kept have it now.
    for incarnation in [2, 3] {
        swap_out(&*storage, &image(incarnation, 1), &SwapConfig::default()).unwrap();
    }
    let names = listed(&*storage, "an%20app/p%2F1/");
    let beside = |name: &&String| name.contains("through-") || name.contains("writer-");
    assert_eq!(names.iter().filter(beside).count(), 0, "{names:?}");
}

/// Processes are swapped out and in: the newest comes back, older generations go, and who is older
/// is fenced.
pub fn processes_are_kept(lab: &Lab) {
    let storage = lab.storage();
    let config = SwapConfig::default();
    let pool = BufPool::new(1 << 30);
    for seed in 1..4 {
        let committed = swap_out(&*storage, &image(seed, seed), &config).unwrap();
        assert_eq!(committed.generation, seed);
        assert!(committed.untidy.is_none(), "{:?}", committed.untidy);
        let back = swap_in(&*lab.storage(), &pool, "an app", "p/1");
        let back = back.unwrap().unwrap();
        assert_eq!(back.generation, seed);
        assert!(back.image == image(seed, seed) && back.rejected.is_empty());
    }
    let manifests = |name: &String| name.contains("/manifest-");
    let names = storage.list("").unwrap();
    assert_eq!(names.iter().filter(|name| manifests(name)).count(), 2);
    let fenced = swap_out(&*storage, &image(1, 9), &config);
    assert!(
        matches!(fenced, Err(SwapError::Fenced { .. })),
        "{fenced:?}"
    );
}
