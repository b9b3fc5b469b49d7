//! What is written through: its bytes, what is made of any others, and who may write.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;

fn written() -> Vec<(Box<str>, Through)> {
    let through = |key: &str, version: u64, bytes: &[u8]| {
        let (key, buf, meta) = object(key, version, bytes);
        (key.into(), Through::Object(buf, meta))
    };
    vec![
        through("centroids", 9, &[1; 100]),
        ("größe".into(), Through::Nothing(8)),
        through("\0/~", 7, b""),
    ]
}

fn writer(storage: &dyn Storage, incarnation: u64) -> ThroughWriter<'_> {
    ThroughWriter::new(storage, ("app", "k/1"), Incarnation(incarnation))
}

fn names(storage: &dyn Storage, what: &str) -> Vec<String> {
    let names = storage.list("app/k%2F1/").unwrap().into_iter();
    let mut names: Vec<_> = names.filter(|name| name.contains(what)).collect();
    names.sort();
    names
}

const THROUGH: &str = "app/k%2F1/through-0000000000000003-0000000000000009-00000001";

/// An image, and what was written through after it.
fn storage() -> MemStorage {
    let storage = MemStorage::default();
    commit(&storage, &image(3, 1));
    let writer = writer(&storage, 3);
    writer.license().unwrap();
    writer.write(1, &written()).unwrap();
    storage
}

fn bytes(storage: &MemStorage) -> Vec<u8> {
    storage.objects.lock().unwrap()[THROUGH].clone()
}

/// The bytes on storage are pinned: `PRAAS_BLESS=1` rewrites the file after a change of format.
#[test]
fn golden_files_are_what_is_written_through() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/through");
    let storage = storage();
    let bytes = bytes(&storage);
    if std::env::var_os("PRAAS_BLESS").is_some() {
        std::fs::create_dir_all(golden).unwrap();
        std::fs::write(format!("{golden}/three"), &bytes).unwrap();
    }
    assert_eq!(bytes, std::fs::read(format!("{golden}/three")).unwrap());
    fuzz_through(&bytes);
    assert_eq!(
        names(&storage, "writer-"),
        ["app/k%2F1/writer-0000000000000003"]
    );
    let loaded = loaded(&storage);
    assert_eq!(
        (loaded.through, loaded.image.kind),
        (3, ImageKind::Checkpoint)
    );
    let keys = loaded.image.state.into_iter().map(|(key, ..)| key);
    let mut keys: Vec<_> = keys.collect();
    keys.sort();
    assert_eq!(keys, ["\0/~", "centroids", "empty"]);
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let storage = storage();
    let bytes = bytes(&storage);
    for at in 0..bytes.len() {
        storage.edit(THROUGH, |stored| stored[at] ^= 1 << (at % 8));
        fuzz_through(&self::bytes(&storage));
        let now = loaded(&storage);
        // A length that grew is taken for something that was cut off.
        assert!(
            now.rejected.len() == 1 || (32..40).contains(&at),
            "{at}: {:?}",
            now.rejected
        );
        let mut state = now.image.state.iter();
        let there = state.find(|(key, ..)| key == "centroids").unwrap();
        assert_eq!(there.1[..], patterned(1, 150)[..], "{at}");
        storage.edit(THROUGH, |stored| stored[at] ^= 1 << (at % 8));
    }
    for length in 0..bytes.len() {
        storage.edit(THROUGH, |stored| stored.truncate(length));
        let now = loaded(&storage);
        assert_eq!((now.through, now.rejected.len()), (0, 0), "{length}");
        assert_eq!(now.image.state, image(3, 1).state);
        storage.edit(THROUGH, |stored| stored.clone_from(&bytes));
    }
}

/// An heir sees nothing of lives before its own, and begins from nothing that a higher incarnation
/// has left.
#[test]
fn an_heir_begins_within_its_life() {
    let through: Arc<dyn Storage> = Arc::new(storage());
    commit(&*through, &image(5, 2));
    writer(&*through, 5).license().unwrap();
    writer(&*through, 5).write(1, &written()).unwrap();
    let images: Arc<dyn Storage> = Arc::new(MemStorage::default());
    commit(&*images, &image(3, 1));
    commit(&*images, &image(5, 2));
    for (storage, newer) in [(through, 3), (images, 0)] {
        let begin = |incarnation, life| {
            let heir = Heir {
                incarnation: Incarnation(incarnation),
                life: Incarnation(life),
            };
            let loaded = swap_in_lazily(&storage, &pool(), ("app", "k/1"), heir, 0)?;
            let from = loaded.map(|(loaded, _)| (loaded.image.incarnation.0, loaded.through));
            Ok::<_, SwapError>(from)
        };
        assert_eq!(begin(7, 3).unwrap(), Some((5, newer)));
        assert_eq!(begin(8, 5).unwrap(), Some((5, newer)));
        assert_eq!(begin(9, 6).unwrap(), None);
        let refused = begin(4, 3).unwrap_err();
        assert!(matches!(refused, SwapError::Fenced { ours, .. } if ours == Incarnation(4)));
    }
}

/// A start takes the right away; what the older one writes after that counts for nothing, and
/// neither do its images.
#[test]
fn of_two_incarnations_one_may_write_through() {
    let storage: Arc<dyn Storage> = Arc::new(storage());
    let heir = Heir {
        incarnation: Incarnation(4),
        life: Incarnation(0),
    };
    let lazily = swap_in_lazily(&storage, &pool(), ("app", "k/1"), heir, 0).unwrap();
    assert_eq!(lazily.unwrap().0.through, 3);
    assert_eq!(
        names(&*storage, "writer-"),
        ["app/k%2F1/writer-0000000000000004"]
    );
    let late = vec![("late".into(), Through::Nothing(77))];
    let refused = writer(&*storage, 3).write(2, &late).unwrap_err();
    assert!(matches!(refused, ThroughError::Fenced { ours, .. } if ours == Incarnation(3)));
    assert!(writer(&*storage, 3).license().is_err());
    // It stays: whoever began meanwhile may have seen it. What that one has committed covers it.
    assert_eq!(names(&*storage, "through-").len(), 2);
    let refused = swap_out(&*storage, &image(3, 5), &SMALL).unwrap_err();
    assert!(matches!(refused, SwapError::Fenced { .. }), "{refused}");
    // Both images that are kept must have it before it goes.
    let now = loaded(&*storage).image;
    for (left, generation) in [(2, 2), (0, 3)] {
        let next = ProcessImage {
            incarnation: Incarnation(4),
            state_version: 9 + generation,
            ..now.clone()
        };
        assert_eq!(commit(&*storage, &next).generation, generation);
        assert_eq!(names(&*storage, "through-").len(), left);
    }
    assert_eq!(names(&*storage, "writer-").len(), 1);
    let last = ProcessImage {
        kind: ImageKind::Final,
        ..loaded(&*storage).image
    };
    commit(&*storage, &last);
    assert!(names(&*storage, "writer-").is_empty());
}

proptest! {
    /// Whatever is written through, the newest of each key that the image does not cover is what is
    /// begun with, of whichever incarnation it is.
    #[test]
    fn the_newest_of_each_key_counts(
        all in proptest::collection::vec(
            (0..4_u64, 0..3_usize, any::<bool>(), 0..200_usize), 0..12,
        ),
        covered in (3..6_u64, 0..14_u64),
    ) {
        let storage = MemStorage::default();
        let mut first = image(covered.0, 1);
        (first.state_version, first.state) = (covered.1, Vec::new());
        commit(&storage, &first);
        let mut model = BTreeMap::new();
        for (at, (incarnation, key, there, bytes)) in all.into_iter().enumerate() {
            let (incarnation, version) = (incarnation + 3, at as u64 + 1);
            let (key, buf, meta) = object(&format!("k{key}"), version, vec![at as u8; bytes]);
            let through = match there {
                true => Through::Object(buf.clone(), meta),
                false => Through::Nothing(version),
            };
            let entries = [(key.clone().into(), through)];
            let writer = writer(&storage, incarnation);
            // Whether it has the right, and is told that it did: the file stays.
            let licensed = at % 2 == 0;
            let right = format!("app/k%2F1/writer-{incarnation:016x}");
            if licensed {
                storage.insert(right.clone(), Vec::new());
            }
            prop_assert_eq!(writer.write(at as u32, &entries).is_ok(), licensed);
            prop_assert_eq!(names(&storage, "through-").len(), model.len() + 1);
            if licensed {
                storage.delete(&right).unwrap();
            }
            model.insert((incarnation, version), (key, there.then_some(buf)));
        }
        let mut expected = BTreeMap::new();
        let newer = |at: &(u64, u64)| *at > covered;
        for (_, (key, value)) in model.into_iter().filter(|(at, _)| newer(at)) {
            expected.insert(key, value);
        }
        let found = loaded(&storage);
        prop_assert_eq!(found.through, expected.len());
        let state = found.image.state.into_iter().map(|(key, buf, _)| (key, buf));
        let state: BTreeMap<_, _> = state.collect();
        let expected = expected.into_iter().filter_map(|(key, value)| Some((key, value?)));
        prop_assert_eq!(state, expected.collect());
    }
}
