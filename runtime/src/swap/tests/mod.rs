//! Swap against storage that breaks, lies and is shared with other incarnations.

use std::sync::{Arc, Mutex};

use praas_transport::BufPool;
use proptest::prelude::*;

use super::manifest::{HASH_BYTES, ObjectEntry};
use super::*;
use crate::files::{FILE_MODE_BITS, FILE_MODE_DEFAULT, ImageFile};
use crate::invocation::Status;
use crate::mailbox::MailMessage;
use storages::{Faulty, Leaves, MemStorage, Overtaken};

mod absent;
mod golden;
mod incremental;
mod properties;
mod storages;
mod through;

const SMALL: SwapConfig = SwapConfig {
    chunk_bytes: 64,
    pack_max_bytes: 200,
    compression: Compression::Lz4,
    zstd_level: 3,
    threads: 1,
    pack_live_min_percent: 50,
    small_packs_max: 2,
};

fn pool() -> BufPool {
    BufPool::new(1 << 26)
}

fn buf(bytes: impl Into<Vec<u8>>) -> Buf {
    Buf::from_vec(bytes.into())
}

fn object(key: &str, version: u64, bytes: impl Into<Vec<u8>>) -> (String, Buf, ObjectMeta) {
    let buf = buf(bytes);
    let meta = ObjectMeta {
        version,
        written_unix_ms: 1_700_000_000_000 + version,
        bytes: buf.len() as u64,
    };
    (key.into(), buf, meta)
}

fn message(key: &str, payload: impl Into<Vec<u8>>) -> MailMessage {
    MailMessage {
        source: "sender".into(),
        key: key.into(),
        payload: buf(payload),
    }
}

/// A small image with some of everything; `fill` makes it differ from others.
fn image(incarnation: u64, fill: u8) -> ProcessImage {
    ProcessImage {
        application: "app".into(),
        process: "k/1".into(),
        incarnation: Incarnation(incarnation),
        kind: ImageKind::Final,
        state_version: 5,
        state: vec![
            object("centroids", 3, patterned(fill, 150)),
            object("empty", 4, []),
            object("größe", 5, [fill, 1, 2]),
        ],
        mailbox: MailboxImage {
            messages: vec![message("a", [fill; 5]), message("b", [])],
            seen: vec![1, 2, 3],
        },
        sessions: vec![SessionImage {
            client: 7 << 100,
            base: 12,
            results: vec![
                None,
                Some((Some(Status::Ok), buf([fill; 9]))),
                Some((None, buf([]))),
                Some((Some(Status::OutcomeUnknown), buf([]))),
            ],
            passed: vec![(3, None), (11, Some((Some(Status::Ok), buf([fill; 2]))))],
        }],
        files: vec![file("log/out.txt", patterned(fill + 1, 70))],
    }
}

fn file(name: &str, bytes: impl Into<Vec<u8>>) -> ImageFile {
    ImageFile {
        name: name.into(),
        mode: 0o750,
        bytes: buf(bytes),
    }
}

/// Bytes that do not compress, and of which no two chunks are the same.
fn patterned(fill: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(fill.into()).fill(&mut bytes);
    bytes
}

fn load(storage: &dyn Storage) -> Result<Option<Loaded>, SwapError> {
    swap_in(storage, &pool(), "app", "k/1")
}

fn loaded(storage: &dyn Storage) -> Loaded {
    load(storage).unwrap().unwrap()
}

fn commit(storage: &dyn Storage, image: &ProcessImage) -> Committed {
    let committed = swap_out(storage, image, &SMALL).unwrap();
    assert!(committed.untidy.is_none());
    committed
}

/// The only reason for which the highest generation is not loaded.
fn rejection(storage: &dyn Storage) -> String {
    let loaded = loaded(storage);
    assert_eq!(loaded.rejected.len(), 1);
    loaded.rejected[0].to_string()
}

/// Two generations, the second of them with `fill` 2.
fn two_generations() -> MemStorage {
    let storage = MemStorage::default();
    commit(&storage, &image(1, 1));
    commit(&storage, &image(1, 2));
    storage
}

/// Replaces a manifest's checksum by one that fits.
fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - HASH_BYTES;
    let checksum = *blake3::hash(&bytes[..end]).as_bytes();
    bytes[end..].copy_from_slice(&checksum);
}

const MANIFEST_1: &str = "app/k%2F1/manifest-0000000000000001-0000000000000001";
const MANIFEST_2: &str = "app/k%2F1/manifest-0000000000000001-0000000000000002";
const PACK_2_1: &str = "app/k%2F1/pack-0000000000000001-0000000000000002-0001";

#[test]
fn what_goes_out_comes_in() {
    let storage = MemStorage::default();
    assert!(load(&storage).unwrap().is_none());
    let committed = commit(&storage, &image(1, 1));
    assert_eq!((committed.generation, committed.chunks), (1, 10));
    let names = storage.names();
    let stored: u64 = names.iter().map(|name| storage.size(name).unwrap()).sum();
    assert_eq!(committed.bytes, stored);
    let loaded = loaded(&storage);
    assert_eq!(loaded.image, image(1, 1));
    assert_eq!((loaded.generation, loaded.rejected), (1, vec![]));
}

#[test]
fn large_images_are_read_in_place_by_several_threads() {
    let directory = tempfile::tempdir().unwrap();
    let storage = DirStorage::new(directory.path()).unwrap();
    let bytes: Vec<u8> = (0..11_u32 << 20).map(|at| (at >> 10) as u8).collect();
    let mut image = image(1, 1);
    image.state.push(object("large", 9, &bytes[1..]));
    image.files.push(file("large", &bytes[..3 << 20]));
    image
        .mailbox
        .messages
        .push(message("large", &bytes[..1 << 20]));
    let config = SwapConfig {
        pack_max_bytes: 10 << 20,
        ..SwapConfig::default()
    };
    swap_out(&storage, &image, &config).unwrap();
    // The pool has room for each part once, rounded up to its size classes, and little more.
    let pool = BufPool::new((12 + 4 + 2 + 1) << 20);
    let loaded = swap_in(&storage, &pool, "app", "k/1").unwrap().unwrap();
    assert_eq!(loaded.image, image);
    let error = swap_in(&storage, &BufPool::new(4 << 20), "app", "k/1").unwrap_err();
    let SwapError::Pool { part, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(part, "object 'large'");
}

#[test]
fn what_is_stored_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("swap/images");
    swap_out(
        &DirStorage::new(&root).unwrap(),
        &image(1, 1),
        &SwapConfig::default(),
    )
    .unwrap();
    let mut folders = vec![directory.path().join("swap")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 2, "{files}");
}

#[test]
fn two_generations_stay_and_orphans_go() {
    let storage = two_generations();
    let orphan = |incarnation, generation| PackId {
        commit: CommitId {
            incarnation: Incarnation(incarnation),
            generation,
        },
        number: 0,
    };
    storage.insert(format!("app/k%2F1/{}", orphan(0, 9).name()), vec![1]);
    storage.insert(format!("app/k%2F1/{}", orphan(1, 3).name()), vec![1]);
    storage.insert("app/k%2F1/notes.txt".into(), vec![1]);
    // Generation 10: above all that left a trace.
    assert_eq!(commit(&storage, &image(1, 3)).generation, 10);
    let listing = Listing::read(&storage, "app/k%2F1/").unwrap();
    let generations: Vec<_> = listing.manifests.iter().map(|id| id.generation).collect();
    assert_eq!(generations, [2, 10]);
    assert!(
        listing
            .packs
            .iter()
            .all(|pack| [2, 10].contains(&pack.commit.generation))
    );
    assert_eq!(listing.packs.len(), 6);
    assert!(storage.names().contains(&"app/k%2F1/notes.txt".into()));
    // A torn generation does not count as one of the two.
    storage.edit(
        "app/k%2F1/manifest-0000000000000001-000000000000000a",
        |bytes| {
            bytes.truncate(50);
        },
    );
    assert_eq!(commit(&storage, &image(1, 4)).generation, 11);
    let listing = Listing::read(&storage, "app/k%2F1/").unwrap();
    let generations: Vec<_> = listing.manifests.iter().map(|id| id.generation).collect();
    assert_eq!(generations, [2, 11]);
}

#[test]
fn a_lower_incarnation_is_fenced() {
    let storage = two_generations();
    commit(&storage, &image(5, 3));
    let before = storage.names();
    let error = swap_out(&storage, &image(4, 9), &SMALL).unwrap_err();
    let SwapError::Fenced { ours, newer, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((ours, newer), (Incarnation(4), Incarnation(5)));
    assert_eq!(storage.names(), before);
    assert_eq!(loaded(&storage).image, image(5, 3));
}

#[test]
fn a_higher_incarnation_wins_at_every_step() {
    let mut fenced = 0;
    for step in 0.. {
        let inner = Arc::new(two_generations());
        let storage = Overtaken {
            inner: Arc::clone(&inner),
            left: Mutex::new(step),
        };
        let result = swap_out(&storage, &image(1, 3), &SMALL);
        let overtaken = *storage.left.lock().unwrap() > usize::MAX / 2;
        if !overtaken {
            assert!(result.is_ok() && step > 6);
            break;
        }
        fenced += usize::from(matches!(result, Err(SwapError::Fenced { .. })));
        let loaded = loaded(&*inner);
        assert_eq!(loaded.image, image(2, 9), "step {step}");
        assert_eq!(loaded.rejected, []);
        // The next commit leaves two generations and nothing else.
        commit(&*inner, &image(2, 10));
        let listing = Listing::read(&*inner, "app/k%2F1/").unwrap();
        assert_eq!(listing.manifests.len(), 2, "step {step}");
        assert!(listing.packs.iter().all(|pack| {
            let commits = &listing.manifests;
            commits.contains(&pack.commit)
        }));
    }
    assert!(fenced > 3);
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_generation() {
    for leaves in [Leaves::Nothing, Leaves::Half, Leaves::All] {
        for for_good in [true, false] {
            let mut outcomes = [0; 2];
            for fails_at in 0.. {
                let storage = Faulty {
                    inner: two_generations(),
                    operations: Mutex::new(0),
                    fails_at,
                    for_good,
                    leaves,
                };
                let result = swap_out(&storage, &image(1, 3), &SMALL);
                let steps = *storage.operations.lock().unwrap();
                if steps <= fails_at {
                    assert!(result.unwrap().untidy.is_none());
                    break;
                }
                let inner = storage.inner;
                let after = loaded(&inner);
                let is_new = after.image == image(1, 3);
                assert!(
                    is_new || after.image == image(1, 2),
                    "{leaves:?} {fails_at}"
                );
                assert!(is_new || result.is_err(), "{leaves:?} {fails_at}");
                outcomes[usize::from(is_new)] += 1;
                // Whatever is left behind does not disturb the next commit, which tidies up.
                commit(&inner, &image(1, 4));
                assert_eq!(loaded(&inner).image, image(1, 4));
                let listing = Listing::read(&inner, "app/k%2F1/").unwrap();
                assert_eq!((listing.manifests.len(), listing.packs.len()), (2, 6));
            }
            assert!(outcomes[0] > 3 && outcomes[1] > 3, "{outcomes:?}");
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let whole = two_generations();
    let mut harmless = 0;
    for name in whole.names() {
        for at in 0..whole.size(&name).unwrap() as usize * 8 {
            let storage = whole.clone();
            storage.edit(&name, |bytes| bytes[at / 8] ^= 1 << (at % 8));
            if name.contains("pack") && loaded(&storage).image == image(1, 2) {
                // Some bytes have more than one way to be compressed.
                harmless += 1;
                continue;
            }
            check_damaged(&storage, &name);
        }
    }
    assert!(harmless < 3000, "{harmless}");
}

#[test]
fn every_truncation_is_found() {
    let whole = two_generations();
    for name in whole.names() {
        for length in 0..whole.size(&name).unwrap() as usize {
            let storage = whole.clone();
            storage.edit(&name, |bytes| bytes.truncate(length));
            check_damaged(&storage, &name);
        }
        let storage = whole.clone();
        storage.edit(&name, |bytes| bytes.push(0));
        check_damaged(&storage, &name);
        let storage = whole.clone();
        storage.delete(&name).unwrap();
        if !name.contains("manifest") {
            check_damaged(&storage, &name);
        }
    }
}

/// One object of two generations is damaged: the other generation is loaded, and if the damage is
/// in the newer, the rejection names the object.
fn check_damaged(storage: &MemStorage, name: &str) {
    let loaded = loaded(storage);
    if name.contains("-0000000000000001-0000000000000001") {
        assert_eq!(loaded.image, image(1, 2));
        assert_eq!(loaded.rejected, []);
    } else {
        assert_eq!(loaded.image, image(1, 1));
        let [rejected] = &loaded.rejected[..] else {
            panic!("{:?}", loaded.rejected)
        };
        assert_eq!(rejected.name, MANIFEST_2);
        let component = name.rsplit('/').next().unwrap();
        assert!(rejected.to_string().contains(component), "{rejected}");
    }
}

/// What is cut off was never said to be there. Anything else may be all that there is of a process.
#[test]
fn commits_that_never_ended_are_told_from_damage() {
    let cut: fn(&mut Vec<u8>) = |bytes| bytes.truncate(bytes.len() / 2);
    let flip: fn(&mut Vec<u8>) = |bytes| bytes[70] ^= 1;
    let unfinished = |first: fn(&mut Vec<u8>), second: fn(&mut Vec<u8>)| {
        let storage = two_generations();
        for (name, edit) in [(MANIFEST_1, first), (MANIFEST_2, second)] {
            storage.edit(name, edit);
        }
        load(&storage).unwrap_err().is_of_unfinished_commits()
    };
    assert!(unfinished(cut, cut));
    assert!(!unfinished(flip, cut));
    assert!(!unfinished(cut, flip));
}

#[test]
fn rejections_say_what_is_wrong() {
    let damaged = |name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let storage = two_generations();
        storage.edit(name, edit);
        rejection(&storage).replace(MANIFEST_2, "M")
    };
    let pack = "pack-0000000000000001-0000000000000002-0001";
    let at = |at: usize, value: u8| {
        move |bytes: &mut Vec<u8>| {
            bytes[at] = value;
            seal(bytes);
        }
    };
    assert_eq!(
        damaged(PACK_2_1, &|bytes| bytes[0] ^= 1),
        format!("M: chunk 0 of file 'log/out.txt' in {pack}: hash mismatch")
    );
    assert_eq!(
        damaged(PACK_2_1, &|bytes| bytes.truncate(3)),
        format!("M: {pack}: has 3 bytes, not 164")
    );
    assert_eq!(
        damaged(MANIFEST_2, &|bytes| bytes[70] ^= 1),
        "M: checksum mismatch"
    );
    assert_eq!(
        damaged(MANIFEST_2, &|bytes| bytes[0] ^= 1),
        "M: is no manifest"
    );
    assert_eq!(damaged(MANIFEST_2, &at(8, 5)), "M: unknown version 5");
    assert_eq!(damaged(MANIFEST_2, &at(8, 0)), "M: unknown version 0");
    assert_eq!(damaged(MANIFEST_2, &at(10, 2)), "M: malformed: flags");
    let older = |bytes: &mut Vec<u8>| {
        (bytes[8], bytes[56]) = (2, 1);
        seal(bytes);
    };
    assert_eq!(
        damaged(MANIFEST_2, &older),
        "M: malformed: reserved bytes of the header"
    );
    assert_eq!(damaged(MANIFEST_2, &at(12, 65)), "M: malformed: chunk size");
    assert_eq!(damaged(MANIFEST_2, &at(47, 255)), "M: malformed: objects");
    assert_eq!(
        damaged(MANIFEST_2, &at(24, 1)),
        "M: malformed: pack that is newer than the manifest"
    );
    assert_eq!(
        damaged(MANIFEST_2, &at(24, 3)),
        "M: wrong name: it is manifest-0000000000000001-0000000000000003"
    );
    assert_eq!(
        damaged(MANIFEST_2, &at(66, b'z')),
        "M: wrong process: it is of 'k/1' of application 'zpp'"
    );
    let truncated = damaged(MANIFEST_2, &|bytes| bytes.truncate(100));
    assert!(
        truncated.starts_with("M: truncated: 100 of at least "),
        "{truncated}"
    );
    let storage = two_generations();
    storage.delete(PACK_2_1).unwrap();
    assert_eq!(
        rejection(&storage),
        format!("{MANIFEST_2}: missing pack {pack}")
    );
}

#[test]
fn if_none_verifies_all_are_named() {
    let storage = two_generations();
    storage.edit(MANIFEST_1, |bytes| bytes[20] ^= 1);
    storage.edit(MANIFEST_2, Vec::clear);
    let error = load(&storage).unwrap_err();
    let SwapError::NoneVerifies { rejected, .. } = &error else {
        panic!("{error}")
    };
    let names: Vec<_> = rejected.iter().map(|rejected| &rejected.name[..]).collect();
    assert_eq!(names, [MANIFEST_2, MANIFEST_1]);
    assert_eq!(rejected[1].reason, RejectReason::ChecksumMismatch);
}

#[test]
fn storage_that_fails_is_no_reason_for_an_older_generation() {
    for fails_at in 0.. {
        let storage = Faulty {
            inner: two_generations(),
            operations: Mutex::new(0),
            fails_at,
            for_good: false,
            leaves: Leaves::Nothing,
        };
        let result = load(&storage);
        if *storage.operations.lock().unwrap() <= fails_at {
            assert_eq!(result.unwrap().unwrap().image, image(1, 2));
            break;
        }
        assert!(
            matches!(result, Err(SwapError::Storage { .. })),
            "{fails_at}"
        );
    }
}

/// That a chunk cannot be decompressed for want of memory is not damage.
#[test]
fn no_memory_to_decompress_is_no_reason_for_an_older_generation() {
    let storage = MemStorage::default();
    let config = SwapConfig {
        compression: Compression::Zstd,
        chunk_bytes: 256,
        pack_max_bytes: 1 << 10,
        ..SMALL
    };
    for fill in [1, 2] {
        let mut image = image(1, fill);
        image.state.push(object("zeros", 6, vec![fill; 256]));
        swap_out(&storage, &image, &config).unwrap();
    }
    compress::tests::MEMORY_SHORT.set(true);
    let error = load(&storage).unwrap_err();
    compress::tests::MEMORY_SHORT.set(false);
    assert!(
        matches!(&error, SwapError::Decompressor { part, .. } if part == "object 'zeros'"),
        "{error:?}"
    );
    let loaded = loaded(&storage);
    assert_eq!((loaded.generation, loaded.rejected.len()), (2, 0));
}

#[test]
fn images_above_the_limits_are_refused() {
    let refuse = |edit: &dyn Fn(&mut ProcessImage, &mut SwapConfig)| {
        let (mut image, mut config) = (image(1, 1), SMALL);
        edit(&mut image, &mut config);
        let storage = MemStorage::default();
        let error = swap_out(&storage, &image, &config).unwrap_err();
        assert!(storage.names().is_empty());
        assert!(matches!(error, SwapError::BadImage { .. }), "{error}");
    };
    refuse(&|image, _| image.application = "x".repeat(256));
    refuse(&|image, _| image.state[0].0 = "x".repeat(256));
    refuse(&|image, _| image.files[0].name = vec![b'x'; 4097]);
    refuse(&|image, _| image.files[0].mode = 0o1000);
    refuse(&|_, config| config.chunk_bytes = 100);
    refuse(&|_, config| config.pack_max_bytes = 63);
    refuse(&|_, config| config.zstd_level = 0);
    refuse(&|_, config| config.zstd_level = 23);
    refuse(&|_, config| config.threads = 257);
    refuse(&|_, config| config.pack_live_min_percent = 101);
}

/// What an incremental swap would write: a manifest whose objects lie in older packs as well.
#[test]
fn chunks_may_lie_in_packs_of_older_generations() {
    let storage = two_generations();
    let mut bytes = [1, 2].map(|_| Vec::new());
    for (name, bytes) in [MANIFEST_1, MANIFEST_2].into_iter().zip(&mut bytes) {
        storage.edit(name, |stored| bytes.clone_from(stored));
    }
    let [old, mut new] = bytes.map(|bytes| Manifest::decode(&bytes).unwrap());
    let shift = new.packs.len() as u32;
    new.id.generation = 3;
    new.packs.extend(old.packs.iter().copied());
    let object: &ObjectEntry = &old.objects[0];
    new.objects[0].stream.clone_from(&object.stream);
    for chunk in &mut new.objects[0].stream.chunks {
        chunk.pack += shift;
    }
    storage.insert(
        format!("app/k%2F1/{}", new.id.manifest_name()),
        new.encode(),
    );
    let mut mixed = image(1, 2);
    mixed.state[0] = image(1, 1).state[0].clone();
    assert_eq!(loaded(&storage).image, mixed);
    // Generation 1 is no longer kept, but its packs are: generation 3 refers to them.
    commit(&storage, &image(1, 4));
    storage.delete(MANIFEST_1).unwrap_err();
    let newest = "app/k%2F1/manifest-0000000000000001-0000000000000004";
    storage.delete(newest).unwrap();
    assert_eq!(loaded(&storage).image, mixed);
}

#[test]
fn hostile_counts_and_lengths_allocate_nothing() {
    let storage = two_generations();
    let mut bytes = Vec::new();
    storage.edit(MANIFEST_2, |stored| bytes.clone_from(stored));
    // The counts of packs, objects, files and bodies, then every run of eight bytes after them.
    for at in 40..bytes.len() - HASH_BYTES - 8 {
        let mut hostile = bytes.clone();
        hostile[at..at + 8].fill(0xff);
        seal(&mut hostile);
        let _ = Manifest::decode(&hostile);
        fuzz_manifest(&hostile);
    }
}

#[test]
fn names_are_read_back_and_nothing_else() {
    let commit = CommitId {
        incarnation: Incarnation(0xab),
        generation: u64::MAX,
    };
    let pack = PackId {
        commit,
        number: 0x12345,
    };
    assert_eq!(pack.name(), "pack-00000000000000ab-ffffffffffffffff-12345");
    assert_eq!(PackId::from_name(&pack.name()), Some(pack));
    assert_eq!(
        CommitId::from_manifest_name(&commit.manifest_name()),
        Some(commit)
    );
    for name in [
        "manifest-1-2",
        "manifest-00000000000000AB-0000000000000001",
        "manifest-+0000000000000ab-0000000000000001",
        "manifest-00000000000000ab-0000000000000001.tmp",
        "manifest-00000000000000ab",
    ] {
        assert_eq!(CommitId::from_manifest_name(name), None, "{name}");
    }
    assert_eq!(
        PackId::from_name("pack-00000000000000ab-ffffffffffffffff-00012"),
        None
    );
}
