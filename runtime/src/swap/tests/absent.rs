//! Commits of a process whose state is partly in storage only.

use std::sync::Mutex;

use super::storages::{Faulty, Leaves, MemStorage};
use super::{SMALL, image, loaded, object, patterned};
use crate::state::ObjectMeta;
use crate::swap::{
    Base, Committed, Compression, Listing, ProcessImage, Storage, SwapConfig, SwapError,
    swap_out_on, swap_out_with,
};

/// Nothing is written anew for the sake of packs.
const KEEPING: SwapConfig = SwapConfig {
    pack_live_min_percent: 0,
    small_packs_max: 1000,
    ..SMALL
};

/// An image with two objects of a hundred chunks, and the generation in which it lies.
fn stored(config: &SwapConfig) -> (MemStorage, ProcessImage, Base) {
    let storage = MemStorage::default();
    let mut image = image(1, 1);
    image
        .state
        .insert(0, object("a wide", 10, patterned(8, 6400)));
    image.state.push(object("z wide", 11, patterned(9, 6400)));
    let mut base = None;
    swap_out_on(&storage, &image, config, &mut base).unwrap();
    (storage, image, base.unwrap())
}

/// The image without its wide objects, and those.
fn part(image: &ProcessImage) -> (ProcessImage, Vec<(String, ObjectMeta)>) {
    let mut here = image.clone();
    let wide = |key: &str| key.ends_with("wide");
    here.state.retain(|(key, ..)| !wide(key));
    let absent = image.state.iter().filter(|(key, ..)| wide(key));
    let absent = absent.map(|(key, _, meta)| (key.clone(), *meta));
    (here, absent.collect())
}

fn commit(
    storage: &dyn Storage,
    part: &(ProcessImage, Vec<(String, ObjectMeta)>),
    config: &SwapConfig,
    base: &Base,
) -> Result<(Committed, Base), SwapError> {
    let mut base = Some(base.clone());
    let committed = swap_out_with(storage, &part.0, &part.1, config, &mut base)?;
    assert!(committed.untidy.is_none());
    Ok((committed, base.unwrap()))
}

#[test]
fn what_is_absent_stays_where_it_is() {
    let (storage, mut image, mut base) = stored(&KEEPING);
    let packs = Listing::read(&storage, "app/k%2F1/").unwrap().packs;
    // Over more generations than are kept: what is referred to is not deleted.
    for version in 20..30 {
        image.state[1] = object("centroids", version, patterned(version as u8, 150));
        let part = part(&image);
        let needed = base.bytes_needed(&storage, &KEEPING, &part.1).unwrap();
        assert!(needed.is_empty(), "{needed:?}");
        let (committed, next) = commit(&storage, &part, &KEEPING, &base).unwrap();
        assert!(committed.chunks_written <= 12, "{committed:?}");
        assert!(committed.bytes_reused >= 12_800);
        base = next;
        assert_eq!(loaded(&storage).image, image);
    }
    let left = Listing::read(&storage, "app/k%2F1/").unwrap();
    assert_eq!(left.manifests.len(), 2);
    let stay = packs.iter().filter(|pack| left.packs.contains(pack));
    assert!(stay.count() >= 12_800 / 200, "{left:?}");
}

#[test]
fn what_cannot_stay_is_named_and_nothing_is_written() {
    let (storage, image, base) = stored(&SMALL);
    let part = part(&image);
    let refused = |storage: &MemStorage, config: &SwapConfig, part: &_, keys: &[&str]| {
        let names = storage.names();
        let (_, absent): &(ProcessImage, Vec<(String, ObjectMeta)>) = part;
        let needed = base.bytes_needed(storage, config, absent).unwrap();
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), keys);
        let error = commit(storage, part, config, &base).unwrap_err();
        assert!(matches!(&error, SwapError::Absent { key, .. } if key == keys[0]));
        assert_eq!(storage.names(), names);
    };
    // It was written since.
    let mut newer = part.clone();
    newer.1[1].1.version = 12;
    refused(&storage, &SMALL, &newer, &["z wide"]);
    // It was never there.
    let mut other = part.clone();
    other.1[0].0 = "another".into();
    refused(&storage, &SMALL, &other, &["another"]);
    // Chunks are to be others.
    let config = SwapConfig {
        chunk_bytes: 128,
        ..SMALL
    };
    refused(&storage, &config, &part, &["a wide", "z wide"]);
    // The storage is another, or has lost its manifest.
    refused(&MemStorage::default(), &SMALL, &part, &["a wide", "z wide"]);
    // It has lost a pack.
    let lost = base.manifest().objects[4].stream.chunks[7].pack as usize;
    let lost = base.manifest().packs[lost].id.name();
    storage.delete(&format!("app/k%2F1/{lost}")).unwrap();
    refused(&storage, &SMALL, &part, &["z wide"]);
    // What is here helps.
    let mut base = Some(base.clone());
    swap_out_on(&storage, &image, &SMALL, &mut base).unwrap();
    assert_eq!(loaded(&storage).image, image);
}

/// Limits hold for what is absent as well: packs do not become more and smaller for ever.
#[test]
fn what_lies_in_packs_that_are_to_go_is_fetched_first() {
    let wide = SwapConfig {
        pack_max_bytes: 1 << 20,
        ..SMALL
    };
    let (storage, mut image, base) = stored(&wide);
    // Of the only pack less than half is referred to after this.
    image.state[0] = object("a wide", 30, patterned(20, 64));
    image.state[4] = object("z wide", 31, patterned(21, 6400));
    let mut base = Some(base);
    swap_out_on(&storage, &image, &wide, &mut base).unwrap();
    let first = ("größe".to_string(), image.state[3].2);
    let second = ("z wide".to_string(), image.state[4].2);
    let absent = [first, second];
    let base = base.unwrap();
    let needed = base.bytes_needed(&storage, &wide, &absent).unwrap();
    assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["größe"]);
}

#[test]
fn a_crash_at_any_step_of_a_commit_without_bytes_leaves_a_whole_generation() {
    for (leaves, compression) in [
        (Leaves::Nothing, Compression::None),
        (Leaves::Half, Compression::Lz4),
        (Leaves::All, Compression::Zstd),
    ] {
        let config = SwapConfig {
            compression,
            ..KEEPING
        };
        for for_good in [true, false] {
            let mut outcomes = [0; 2];
            for fails_at in 0.. {
                let (inner, before, base) = stored(&config);
                let storage = Faulty {
                    inner,
                    operations: Mutex::new(0),
                    fails_at,
                    for_good,
                    leaves,
                };
                let mut after = before.clone();
                after.state[1] = object("centroids", 40, patterned(40, 150));
                let result = commit(&storage, &part(&after), &config, &base);
                if *storage.operations.lock().unwrap() <= fails_at {
                    assert!(result.unwrap().0.bytes_reused > 0);
                    break;
                }
                let inner = storage.inner;
                let there = loaded(&inner);
                let is_new = there.image == after;
                assert!(is_new || there.image == before, "{leaves:?} {fails_at}");
                assert!(is_new || result.is_err(), "{leaves:?} {fails_at}");
                outcomes[usize::from(is_new)] += 1;
                // Who goes on, and who begins with what is there, has the bytes in neither case.
                let bases = [
                    Some(base),
                    result.ok().map(|(_, base)| base),
                    Some(there.base),
                ];
                for base in bases.into_iter().flatten() {
                    after.state[1].2.version += 1;
                    let next = commit(&inner, &part(&after), &config, &base);
                    // What it referred to may have been tidied away: it is told so.
                    assert!(
                        matches!(next, Ok(_) | Err(SwapError::Absent { .. })),
                        "{leaves:?} {fails_at}: {next:?}"
                    );
                    let image = loaded(&inner).image;
                    assert!(next.is_err() || image == after, "{leaves:?} {fails_at}");
                }
            }
            assert!(outcomes[0] > 3 && outcomes[1] > 0, "{outcomes:?}");
        }
    }
}
