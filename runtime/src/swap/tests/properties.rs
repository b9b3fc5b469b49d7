//! What holds of any image, any settings and any damage.

use proptest::prelude::*;

use super::*;

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let small = || proptest::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        20 => small(),
        // Above the size from which payloads are bodies.
        1 => (small(), 60_000..80_000_usize).prop_map(|(mut bytes, length)| {
            bytes.resize(length, 42);
            bytes
        }),
    ]
}

fn any_result() -> impl Strategy<Value = Option<(Option<Status>, Buf)>> {
    prop_oneof![
        Just(None),
        Just(Some((None, Buf::default()))),
        (0..13_u16, any_bytes())
            .prop_map(|(code, output)| Some((Status::from_code(code), buf(output)))),
    ]
}

pub(super) fn any_image() -> impl Strategy<Value = ProcessImage> {
    let name = "[a-zß/. ]{0,12}";
    let object = (name, any::<u64>(), any_bytes());
    let object = object.prop_map(|(key, version, bytes)| object_any(&key, version, bytes));
    let message = (name, name, any_bytes()).prop_map(|(source, key, payload)| MailMessage {
        source,
        key,
        payload: buf(payload),
    });
    let results = proptest::collection::vec(any_result(), 0..6);
    let passed = proptest::collection::vec((any::<u64>(), any_result()), 0..3);
    let session = (any::<u128>(), any::<u64>(), results, passed);
    let session = session.prop_map(|(client, base, results, passed)| SessionImage {
        client,
        base,
        results,
        passed,
    });
    let name = proptest::collection::vec(any::<u8>(), 0..12);
    let file = (name, any_bytes(), 0..=FILE_MODE_BITS).prop_map(|(name, bytes, mode)| ImageFile {
        name,
        mode,
        bytes: buf(bytes),
    });
    (
        any::<u64>(),
        proptest::collection::vec(object, 0..6),
        proptest::collection::vec(message, 0..6),
        any_bytes(),
        proptest::collection::vec(session, 0..4),
        proptest::collection::vec(file, 0..4),
    )
        .prop_map(
            |(incarnation, state, messages, seen, sessions, files)| ProcessImage {
                application: "app".into(),
                process: "k/1".into(),
                incarnation: Incarnation(incarnation),
                kind: match incarnation % 2 {
                    0 => ImageKind::Final,
                    _ => ImageKind::Checkpoint,
                },
                state_version: incarnation.rotate_left(7),
                state,
                mailbox: MailboxImage { messages, seen },
                sessions,
                files,
            },
        )
}

fn object_any(key: &str, version: u64, bytes: Vec<u8>) -> (String, Buf, ObjectMeta) {
    let mut entry = object(key, 0, bytes);
    entry.2.version = version;
    entry.2.written_unix_ms = !version;
    entry
}

pub(super) fn any_config() -> impl Strategy<Value = SwapConfig> {
    let compression = prop_oneof![
        Just(Compression::None),
        Just(Compression::Lz4),
        Just(Compression::Zstd),
    ];
    let limits = (0..=100_u32, 0..4_u32, 0..3_u32);
    let sizes = (6..10_u32, 1..40_u64);
    (sizes, compression, limits).prop_map(|(sizes, compression, limits)| SwapConfig {
        chunk_bytes: 1 << sizes.0,
        pack_max_bytes: sizes.1 << sizes.0,
        compression,
        zstd_level: 1 + limits.0 as i32 / 10,
        threads: limits.2,
        pack_live_min_percent: limits.0,
        small_packs_max: limits.1,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_image_comes_back(image in any_image(), config in any_config()) {
        let storage = MemStorage::default();
        let committed = swap_out(&storage, &image, &config).unwrap();
        let loaded = loaded(&storage);
        prop_assert_eq!(loaded.image, image);
        prop_assert_eq!(loaded.generation, committed.generation);
        for (name, bytes) in storage.objects.lock().unwrap().iter() {
            if name.contains("manifest") {
                fuzz_manifest(bytes);
            } else {
                prop_assert!(bytes.len() as u64 <= config.pack_max_bytes);
            }
        }
    }

    #[test]
    fn damage_to_any_image_is_found(
        old in any_image(),
        mut new in any_image(),
        config in any_config(),
        picks: [prop::sample::Index; 2],
        cut: bool,
    ) {
        let storage = MemStorage::default();
        swap_out(&storage, &old, &config).unwrap();
        new.incarnation = old.incarnation;
        swap_out(&storage, &new, &config).unwrap();
        let newer = |name: &&String| name.contains("-0000000000000002");
        let names: Vec<_> = storage.names().iter().filter(newer).cloned().collect();
        storage.edit(&names[picks[0].index(names.len())], |bytes| {
            let at = picks[1].index(bytes.len() * 8);
            match cut {
                true => bytes.truncate(at / 8),
                false => bytes[at / 8] ^= 1 << (at % 8),
            }
        });
        let loaded = loaded(&storage);
        if loaded.image == new && !cut {
            // Some bytes have more than one way to be compressed.
            return Ok(());
        }
        prop_assert_eq!(loaded.image, old);
        prop_assert_eq!(loaded.rejected.len(), 1);
    }

    #[test]
    fn any_bytes_are_a_manifest_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_manifest(&bytes);
    }

    /// The checksum keeps nobody from writing nonsense on purpose.
    #[test]
    fn sealed_nonsense_is_a_manifest_or_not(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let storage = two_generations();
        storage.edit(MANIFEST_2, |bytes| {
            for (at, value) in edits {
                let at = at.index(bytes.len() - HASH_BYTES);
                bytes[at] = value;
            }
            seal(bytes);
            fuzz_manifest(bytes);
        });
        // It may even load: then it says what its own checksum vouches for.
        let _ = load(&storage);
    }
}
