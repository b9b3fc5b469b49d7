//! Commits that write only what differs, over and over, with crashes in between.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::storages::{Faulty, Leaves, Losing, MemStorage};
use super::{SMALL, buf, file, image, loaded, message, object, patterned};
use crate::files::ImageFile;
use crate::swap::{
    Base, Committed, Compression, ImageKind, Listing, ProcessImage, Storage, SwapConfig, SwapError,
    swap_out_on,
};
use praas_transport::wire::Incarnation;

fn commit_on(
    storage: &dyn Storage,
    image: &ProcessImage,
    config: &SwapConfig,
    base: &mut Option<Base>,
) -> Committed {
    let committed = swap_out_on(storage, image, config, base).unwrap();
    assert!(committed.untidy.is_none(), "{:?}", committed.untidy);
    assert_eq!(
        base.as_ref().map(Base::generation),
        Some(committed.generation)
    );
    committed
}

fn listing(storage: &dyn Storage) -> Listing {
    Listing::read(storage, "app/k%2F1/").unwrap()
}

fn stored(storage: &MemStorage) -> u64 {
    let names = storage.names();
    names.iter().map(|name| storage.size(name).unwrap()).sum()
}

const WIDE: SwapConfig = SwapConfig {
    pack_max_bytes: 1 << 20,
    ..SMALL
};

/// An image with one object of a hundred chunks.
fn image_wide() -> ProcessImage {
    let mut image = image(1, 1);
    image.kind = ImageKind::Checkpoint;
    image.state.push(object("wide", 10, patterned(9, 6400)));
    image
        .mailbox
        .messages
        .push(message("large", patterned(5, 70_000)));
    image
}

#[test]
fn what_has_not_changed_is_not_written() {
    let (storage, mut base) = (MemStorage::default(), None);
    let mut image = image_wide();
    let first = commit_on(&storage, &image, &WIDE, &mut base);
    assert_eq!(
        (first.bytes_reused, first.chunks),
        (0, first.chunks_written)
    );
    let packs = listing(&storage).packs;
    let same = commit_on(&storage, &image, &WIDE, &mut base);
    assert_eq!((same.chunks, same.chunks_written), (first.chunks, 0));
    assert_eq!(listing(&storage).packs, packs);
    let manifest = "app/k%2F1/manifest-0000000000000001-0000000000000002";
    assert_eq!(same.bytes, storage.size(manifest).unwrap());
    assert_eq!(first.bytes - same.bytes, same.bytes_reused);
    assert_eq!(loaded(&storage).image, image);

    // One byte in the middle, another version: one chunk.
    let mut bytes = patterned(9, 6400);
    bytes[3000] ^= 1;
    image.state[3] = object("wide", 11, bytes.clone());
    let one = commit_on(&storage, &image, &WIDE, &mut base);
    assert_eq!(one.chunks_written, 1);
    assert_eq!(one.bytes, same.bytes + 64 + 28);
    assert_eq!(loaded(&storage).image, image);
    // Another version of the same bytes, and the same bytes elsewhere: nothing.
    image.state[3].2.version = 12;
    image.files.push(file("copy", &bytes[640..1280]));
    let none = commit_on(&storage, &image, &WIDE, &mut base);
    assert_eq!(none.chunks_written, 0);
    assert_eq!(loaded(&storage).image, image);
    // What is there already is known after a swap-in, too, also if another life goes on with it.
    let mut base = Some(loaded(&storage).base);
    image.incarnation = Incarnation(2);
    let next = commit_on(&storage, &image, &WIDE, &mut base);
    assert_eq!(next.chunks_written, 0);
    assert_eq!(loaded(&storage).image, image);
}

#[test]
fn an_object_of_the_same_version_is_not_read() {
    let (storage, mut base) = (MemStorage::default(), None);
    let image = image_wide();
    commit_on(&storage, &image, &WIDE, &mut base);
    let mut other = image.clone();
    other.state[3].1 = buf(patterned(8, 6400));
    commit_on(&storage, &other, &WIDE, &mut base);
    assert_eq!(loaded(&storage).image, image);
    // Not if it has another length, which the version says cannot be.
    other.state[3].1 = buf(patterned(8, 6401));
    other.state[3].2.bytes = 6401;
    commit_on(&storage, &other, &WIDE, &mut base);
    assert_eq!(loaded(&storage).image, other);
}

#[test]
fn what_the_storage_has_lost_is_written_again() {
    let (storage, mut base) = (MemStorage::default(), None);
    let config = SwapConfig {
        pack_max_bytes: 1000,
        small_packs_max: 1000,
        ..SMALL
    };
    let image = image_wide();
    let first = commit_on(&storage, &image, &config, &mut base);
    let packs = listing(&storage).packs;
    assert!(packs.len() > 50);
    for pack in packs.iter().step_by(5) {
        storage
            .delete(&format!("app/k%2F1/{}", pack.name()))
            .unwrap();
    }
    let again = commit_on(&storage, &image, &config, &mut base);
    let part = first.chunks / 8..first.chunks / 3;
    assert!(part.contains(&again.chunks_written), "{again:?}");
    assert_eq!(loaded(&storage).image, image);
    // Another storage, or another size of chunks: everything.
    let other = MemStorage::default();
    let all = commit_on(&other, &image, &config, &mut base);
    assert_eq!(all.chunks_written, first.chunks_written);
    assert_eq!(loaded(&other).image, image);
    let config = SwapConfig {
        chunk_bytes: 128,
        ..config
    };
    let all = commit_on(&other, &image, &config, &mut base);
    assert_eq!(all.bytes_reused, 0);
    assert_eq!(loaded(&other).image, image);
}

/// A lower incarnation that lives on may delete what it believes to be old: a commit that succeeds
/// does not refer to it.
#[test]
fn what_goes_while_it_is_referred_to_fails_the_commit() {
    let mut failed = 0;
    for step in 0..=5 {
        let (inner, mut base) = (MemStorage::default(), None);
        let image = image_wide();
        commit_on(&inner, &image, &WIDE, &mut base);
        let pack = listing(&inner).packs[0];
        let storage = Losing {
            inner,
            left: Mutex::new(step),
            object: format!("app/k%2F1/{}", pack.name()),
        };
        let result = swap_out_on(&storage, &image, &WIDE, &mut base);
        let after = super::load(&storage.inner);
        match result {
            // The list came first: all was written again. Or it was the last of all operations.
            Ok(_) if step == 0 => assert_eq!(after.unwrap().unwrap().image, image),
            Ok(_) => assert!(step >= 4, "{step}"),
            Err(error) => {
                assert!(matches!(error, SwapError::Storage { .. }), "{error}");
                failed += 1;
            }
        }
        commit_on(&storage.inner, &image, &WIDE, &mut base);
        assert_eq!(loaded(&storage.inner).image, image, "{step}");
    }
    assert!(failed >= 3, "{failed}");
}

#[test]
fn the_same_bytes_are_written_once() {
    let (storage, mut base) = (MemStorage::default(), None);
    let mut image = image(1, 1);
    image.state.push(object("zeros", 9, vec![0; 64 * 1000]));
    let committed = commit_on(&storage, &image, &WIDE, &mut base);
    assert!(committed.chunks > 1000 && committed.chunks_written < 20);
    assert_eq!(loaded(&storage).image, image);
}

/// A crash at any operation, absent, partial or whole, of commits that refer to older packs, write
/// them anew and compress; the process goes on with what it knows, or begins again.
#[test]
fn a_crash_at_any_step_of_an_incremental_commit_leaves_a_whole_generation() {
    let before = |compression| {
        let config = SwapConfig {
            compression,
            ..SMALL
        };
        let (storage, mut base) = (MemStorage::default(), None);
        let mut states = Vec::new();
        for round in 0..4 {
            let mut image = image(1, round);
            image.kind = ImageKind::Checkpoint;
            let round = u64::from(round);
            image.state = vec![
                object("changing", 50 + round, patterned(round as u8, 150)),
                object("replaced", 60 + round, []),
                object("staying", 3, vec![7; 1500]),
                object("small", 70 + round, vec![round as u8; 300]),
            ];
            states.push(image);
        }
        for image in &states[..3] {
            commit_on(&storage, image, &config, &mut base);
        }
        (storage, base, states, config)
    };
    for (leaves, compression) in [
        (Leaves::Nothing, Compression::Lz4),
        (Leaves::Half, Compression::Zstd),
        (Leaves::All, Compression::Lz4),
    ] {
        for for_good in [true, false] {
            let mut outcomes = [0; 2];
            for fails_at in 0.. {
                let (inner, mut base, mut states, config) = before(compression);
                let storage = Faulty {
                    inner,
                    operations: Mutex::new(0),
                    fails_at,
                    for_good,
                    leaves,
                };
                let result = swap_out_on(&storage, &states[3], &config, &mut base);
                if *storage.operations.lock().unwrap() <= fails_at {
                    assert!(result.unwrap().bytes_reused > 0);
                    break;
                }
                let inner = storage.inner;
                let after = loaded(&inner);
                let is_new = after.image == states[3];
                assert!(is_new || after.image == states[2], "{leaves:?} {fails_at}");
                assert!(is_new || result.is_err(), "{leaves:?} {fails_at}");
                outcomes[usize::from(is_new)] += 1;
                for mut base in [base, Some(after.base)] {
                    states[3].state[1].1 = buf(patterned(fails_at as u8, 100));
                    states[3].state[1].2.version += 1;
                    states[3].state[1].2.bytes = 100;
                    commit_on(&inner, &states[3], &config, &mut base);
                    assert_eq!(loaded(&inner).image, states[3]);
                    let listing = listing(&inner);
                    assert_eq!(listing.manifests.len(), 2);
                    assert!(listing.packs.len() < 20, "{listing:?}");
                }
            }
            assert!(outcomes[0] > 3 && outcomes[1] > 2, "{outcomes:?}");
        }
    }
}

#[test]
fn a_thousand_checkpoints_take_bounded_room() {
    const OBJECTS: usize = 64;
    let config = SwapConfig {
        chunk_bytes: 256,
        pack_max_bytes: 8 << 10,
        small_packs_max: 8,
        ..SMALL
    };
    let mut random = fastrand::Rng::with_seed(3);
    let mut content = |version: u64, len: usize| {
        let mut bytes = vec![0; len];
        random.fill(&mut bytes);
        object(
            &format!("object {}", version % OBJECTS as u64),
            version,
            bytes,
        )
    };
    let (storage, mut base) = (MemStorage::default(), None);
    let mut image = image(1, 1);
    image.kind = ImageKind::Checkpoint;
    image.state = (0..OBJECTS as u64).map(|at| content(at, 1024)).collect();
    let live = commit_on(&storage, &image, &config, &mut base).bytes;
    let (mut written, mut most, mut packs_most) = (0, 0, 0);
    let mut choose = fastrand::Rng::with_seed(4);
    for round in 1..=1000_u64 {
        // Some are written all the time, most now and then, and some never.
        let at = match round % 2 {
            0 => choose.usize(..4),
            _ => choose.usize(..OBJECTS - 8),
        };
        let version = round * OBJECTS as u64 + at as u64;
        let len = image.state[at].1.len();
        image.state[at] = content(version, len);
        written += commit_on(&storage, &image, &config, &mut base).bytes;
        most = most.max(stored(&storage));
        packs_most = packs_most.max(listing(&storage).packs.len());
        if round % 100 == 0 {
            assert_eq!(loaded(&storage).image, image);
        }
    }
    // Two generations, each in packs that are half alive; and what is small.
    assert!(most < 4 * live, "{most} of {live}");
    assert!(packs_most < 50, "{packs_most}");
    // A manifest of 16 KiB and a kilobyte of changes each, and what is written anew.
    let manifests = 1000 * (live - OBJECTS as u64 * 1024);
    let changes = 1000 * 1024;
    assert!(written < manifests + 4 * changes, "{written}");
}

/// What may happen to a process.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, Vec<u8>),
    Delete(u8),
    Send(Vec<u8>),
    Take,
    File(u8, Vec<u8>),
    /// A commit that succeeds.
    Commit,
    /// A commit during which the storage fails, and after which the process serves on, or not.
    Fail {
        at: usize,
        leaves: u8,
        dies: bool,
    },
    /// The process dies, and begins again from what is stored.
    Die,
}

fn any_step() -> impl Strategy<Value = Step> {
    let bytes = || {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..400),
            (0..4_u8, 0..2000_usize).prop_map(|(fill, len)| vec![fill; len]),
        ]
    };
    prop_oneof![
        6 => (0..6_u8, bytes()).prop_map(|(key, bytes)| Step::Put(key, bytes)),
        1 => (0..6_u8).prop_map(Step::Delete),
        2 => bytes().prop_map(Step::Send),
        1 => Just(Step::Take),
        1 => (0..3_u8, bytes()).prop_map(|(name, bytes)| Step::File(name, bytes)),
        4 => Just(Step::Commit),
        3 => (0..40_usize, 0..3_u8, any::<bool>())
            .prop_map(|(at, leaves, dies)| Step::Fail { at, leaves, dies }),
        1 => Just(Step::Die),
    ]
}

/// A process that is no more than its image, what it knows to be stored, and what may be.
struct Model {
    storage: MemStorage,
    config: SwapConfig,
    image: ProcessImage,
    base: Option<Base>,
    version: u64,
    /// What a life begun now may begin with: the newest that is surely stored, and attempts since.
    stored: Vec<ProcessImage>,
}

impl Model {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Put(key, bytes) => {
                self.version += 1;
                let key = format!("key {key}");
                let new = object(&key, self.version, bytes);
                let mut state: BTreeMap<_, _> = self.state_take();
                state.insert(key, new);
                self.image.state = state.into_values().collect();
            }
            Step::Delete(key) => {
                let key = format!("key {key}");
                self.image.state.retain(|(name, ..)| *name != key);
            }
            Step::Send(bytes) => self.image.mailbox.messages.push(message("k", bytes)),
            Step::Take if self.image.mailbox.messages.is_empty() => {}
            Step::Take => drop(self.image.mailbox.messages.remove(0)),
            Step::File(name, bytes) => {
                let name = format!("file {name}");
                let other = |file: &ImageFile| file.name != name.as_bytes();
                self.image.files.retain(other);
                self.image.files.push(file(&name, bytes));
            }
            Step::Commit => {
                commit_on(&self.storage, &self.image, &self.config, &mut self.base);
                self.stored = vec![self.image.clone()];
                prop_assert_eq!(&loaded(&self.storage).image, &self.image);
            }
            Step::Fail { at, leaves, dies } => self.fail(at, leaves, dies)?,
            Step::Die => self.die()?,
        }
        Ok(())
    }

    fn state_take(
        &mut self,
    ) -> BTreeMap<String, (String, praas_transport::Buf, super::ObjectMeta)> {
        let state = std::mem::take(&mut self.image.state);
        state
            .into_iter()
            .map(|object| (object.0.clone(), object))
            .collect()
    }

    fn fail(&mut self, at: usize, leaves: u8, dies: bool) -> Result<(), TestCaseError> {
        let storage = Faulty {
            inner: std::mem::take(&mut self.storage),
            operations: Mutex::new(0),
            fails_at: at,
            for_good: true,
            leaves: [Leaves::Nothing, Leaves::Half, Leaves::All][usize::from(leaves)],
        };
        let result = swap_out_on(&storage, &self.image, &self.config, &mut self.base);
        self.storage = storage.inner;
        match result {
            Ok(_) => self.stored = vec![self.image.clone()],
            Err(error) => {
                prop_assert!(matches!(error, SwapError::Storage { .. }), "{}", error);
                self.stored.push(self.image.clone());
            }
        }
        match dies {
            true => self.die(),
            false => Ok(()),
        }
    }

    fn die(&mut self) -> Result<(), TestCaseError> {
        let Some(restored) = super::load(&self.storage).unwrap_or_default() else {
            // Nothing was ever whole; if anything lies there, the next life starts above it.
            prop_assert!(
                self.stored
                    .iter()
                    .all(|image| self.base.is_none() || *image == self.image)
            );
            return Ok(());
        };
        prop_assert!(
            self.stored.contains(&restored.image),
            "{:?}",
            restored.image
        );
        self.stored = vec![restored.image.clone()];
        self.image = restored.image;
        self.image.incarnation.0 += 1;
        self.version = self.image.incarnation.0 << 32;
        self.base = Some(restored.base);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_life_comes_back_as_it_was(
        steps in proptest::collection::vec(any_step(), 1..60),
        config in super::properties::any_config(),
    ) {
        let mut model = Model {
            storage: MemStorage::default(),
            config,
            image: image(1, 1),
            base: None,
            version: 100,
            stored: Vec::new(),
        };
        for step in steps {
            model.step(step)?;
        }
        model.step(Step::Commit)?;
        model.step(Step::Die)?;
        let listing = listing(&model.storage);
        prop_assert!(listing.manifests.len() <= 2);
    }
}
